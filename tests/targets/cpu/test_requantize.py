"""Requantizations with multipliers: at the ends of their fields, and beyond what halves hold."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_convolutions import conv_reference
from cpu_kernels import EXECUTED, TARGET, codes, run

from targets.cpu.host import CpuFeatures
from targets.cpu.kernels import make_kernel
from targets.cpu.requantize import Epilogue
from targets.layers import Conv2d, Requantize, Residual, Value, Weights
from targets.rounding import FLOOR, HALF_UP
from targets.sum_bounds import bound_sums

CHANNELS = 64


def _layer(reach: int, shifts: tuple[int, int], residual: int | None, rounding, fraction) -> Conv2d:
    """Sums up to ``reach``; shifts in a range, a residual whose left shift is up to some places."""
    rng = np.random.default_rng(reach + 7 * shifts[0] + (residual or 0))
    weight = rng.integers(-128, 128, (CHANNELS, 1, 1, 4)).astype(np.int8)
    bias = rng.integers(-reach, reach + 1, CHANNELS).astype(np.int32)
    bias[:4] = [reach, -reach, 0, -1]
    multiplier = rng.choice([1, 2, 32767, 32768, 65534, 65535], CHANNELS).astype(np.int32)
    shift = rng.integers(shifts[0], shifts[1] + 1, CHANNELS).astype(np.int32)
    skip = None
    if residual is not None:
        left = rng.integers(max(residual - 15, 0), residual + 1, CHANNELS).astype(np.int32)
        skip = Residual(Value("r", (1, 9, CHANNELS), "uint8"), 3, 65535, left)
    q = Requantize(fraction, multiplier, shift, -5, -128, 127, rounding, skip)
    return Conv2d(
        "c", "", "conv2d", Value("x", (1, 9, 4), "uint8"), Value("y", (1, 9, CHANNELS), "int8"),
        Weights(weight), bias, (1, 1), (0,) * 4, (1, 1), 1, 0, q,
        bound_sums(weight, bias, 0, 255).reach,
    )  # fmt: skip


CASES = {
    "small sums": (1000, (17, 24), None, HALF_UP, 0, True),
    "large sums": (2**29, (30, 45), None, HALF_UP, 0, True),
    "largest shifts": (2**28, (32, 47), 20, HALF_UP, 0, False),
    "large shifts": (2**28, (32, 46), 20, HALF_UP, 0, True),
    "to the floor": (2**24, (20, 35), 15, FLOOR, 0, True),
    "residual around a half": (2**20, (24, 35), 18, HALF_UP, 0, True),
    "residual of 2**46": (2**20, (32, 46), 22, HALF_UP, 3, True),
    "residual too large": (2**20, (32, 46), 23, HALF_UP, 0, False),
    "shifts of a half": (2**20, (16, 18), None, HALF_UP, 0, False),
    "fraction": (2**20, (28, 35), 12, HALF_UP, 9, True),
    "fraction beyond": (2**20, (28, 35), 12, HALF_UP, 13, False),
}


@pytest.mark.parametrize("name", CASES)
def test_multipliers(name: str) -> None:
    *fields, halved = CASES[name]
    layer = _layer(*fields)
    epilogue = Epilogue.of(layer, layer.bias, lambda channels: channels)
    assert (epilogue.halves is not None) == halved
    rng = np.random.default_rng(0)
    inputs = [codes(rng, 2, value) for value in layer.inputs]
    if len(inputs) > 1:
        inputs[1][:, :, :3] = np.array([0, 255, 3])[:, None]
    want = conv_reference(layer, inputs)
    assert len(np.unique(want)) > 1
    got = run(make_kernel(layer, CpuFeatures.of(TARGET)), layer, inputs)
    np.testing.assert_array_equal(got, want)


def test_a_small_multiplier_is_raised_with_its_shift() -> None:
    layer = _layer(1000, (17, 24), 5, HALF_UP, 0)
    q = layer.requantize
    assert q is not None
    assert q.residual is not None
    small = Requantize(
        0, np.full_like(q.multiplier, 3), q.shift - 10, 0, -128, 127, HALF_UP,
        Residual(q.residual.value, 3, 1, q.residual.shift),
    )  # fmt: skip
    layer = Conv2d(**{**vars(layer), "requantize": small})
    epilogue = Epilogue.of(layer, layer.bias, lambda channels: channels)
    assert epilogue.halves is not None
    assert epilogue.halves.shift.min() == 1
    inputs = [codes(np.random.default_rng(0), 2, value) for value in layer.inputs]
    for instructions, target in EXECUTED.items():
        kernel = make_kernel(layer, CpuFeatures(instructions, 1))
        got = run(kernel, layer, inputs, target)
        np.testing.assert_array_equal(got, conv_reference(layer, inputs))
