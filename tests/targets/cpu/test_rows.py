"""Softmax and layer norm on the host against their definition, integer for integer."""

import numpy as np
import pytest
from cpu_kernels import TARGET, codes, rounded, run

from targets.cpu.host import CpuFeatures
from targets.cpu.kernels import make_kernel
from targets.layers import Norm, Requantize, Softmax, Value
from targets.rounding import FLOOR, HALF_UP
from targets.rows import LONGEST_ROW, derive_norm, exponentials, gain_step, norm_sums, softmax_sums

HOST = CpuFeatures.of(TARGET)


def _requantize(channels, multiplier, shift, dtype, rounding):
    limits = np.iinfo(dtype)
    ones = np.ones(channels, np.int32)
    zero = 3 if dtype == "uint8" else -5
    return Requantize(
        0, multiplier * ones, shift * ones, zero, int(limits.min), int(limits.max), rounding
    )


@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize(
    ("shape", "dtype", "multiplier", "shift"),
    [((1, 7, 12), "int8", 1, 22), ((2, 3, 60), "uint8", 40001, 38), ((1, 1, 12), "int8", 1, 24)],
)
@pytest.mark.parametrize("rounding", [HALF_UP, FLOOR], ids=["half up", "floor"])
def test_softmax_is_its_definition(shape, dtype, multiplier, shift, heads, rounding):
    q = _requantize(shape[2], multiplier, shift, "uint8", rounding)
    table = exponentials(2.0**-4)
    values = Value("x", shape, dtype), Value("y", shape, "uint8")
    layer = Softmax("soft", "", *values, heads, table, q)
    x = codes(np.random.default_rng(0), 3, layer.input)
    split = x.reshape(*x.shape[:3], heads, -1)
    want = _codes(softmax_sums(split, table).reshape(x.shape), q, "uint8")
    got = run(make_kernel(layer, HOST), layer, [x])
    np.testing.assert_array_equal(got, want)
    assert len(np.unique(want)) > 5


@pytest.mark.parametrize(
    ("shape", "dtype", "multiplier", "shift"),
    [
        *(
            ((1, 7, 12), "int8", 1, 22),
            ((2, 3, 61), "uint8", 40001, 38),
            ((1, 2, 1), "int8", 1, 20),
        ),
        ((1, 2, LONGEST_ROW + 7), "uint8", 1, 18),
    ],
)
@pytest.mark.parametrize("kind", [{}, {"centred": False}, {"centred": False, "zero_point": 9}])
def test_norm_is_its_definition(shape, dtype, multiplier, shift, kind):
    rng = np.random.default_rng(1)
    gamma, beta = rng.normal(size=(2, shape[2]))
    scale = derive_norm(gamma, beta, 1e-5, 2.0**-5, gain_step(gamma, beta), **kind)
    q = _requantize(shape[2], multiplier, shift, "int8", HALF_UP)
    layer = Norm("norm", "", Value("x", shape, dtype), Value("y", shape, "int8"), scale, q)
    x = codes(rng, 3, layer.input)
    x[0, 0, 0] = x[0, 0, 0, 0]  # a row without variance
    want = _codes(norm_sums(x, scale), q, "int8")
    got = run(make_kernel(layer, HOST), layer, [x])
    np.testing.assert_array_equal(got, want)
    assert shape[2] == 1 or len(np.unique(want)) > 20


def _codes(sums, q, dtype):
    t = rounded(sums * q.multiplier.astype(np.int64), q.shift, q.rounding)
    return np.clip(t + q.zero_point, q.low, q.high).astype(dtype)
