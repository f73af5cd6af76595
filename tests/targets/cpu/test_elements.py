"""Additions, pools and tables of the host against plain NumPy int64, integer for integer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cpu_kernels import RANGE, TARGET, call, codes, compiled, rounded, run

from targets.cpu.host import CpuFeatures
from targets.cpu.kernels import make_kernel
from targets.layers import Add, Lut, MaxPool2d, Move, Operand, Value
from targets.rounding import FLOOR, HALF_UP, Rounding

VECTOR = CpuFeatures.of(TARGET)


@pytest.mark.parametrize(
    ("shape", "rounding"),
    [((1, 1, 17), HALF_UP), ((5, 7, 3), FLOOR), ((16, 16, 32), HALF_UP)],
    ids=["dense", "to the floor", "image"],
)
@pytest.mark.parametrize(
    ("a", "b", "shift", "zero_point"),
    [
        (("int8", 0, 1, 3), ("int8", 0, 1, 0), 4, 0),
        (("uint8", 130, 1, 0), ("int8", -7, 1, 0), 0, 5),
        (("int8", 3, 65535, 0), ("uint8", 9, 40000, 0), 16, -4),
        (("int8", 0, 65535, 9), ("int8", 0, 1, 30), 40, 0),
    ],
)
def test_additions(shape, rounding: Rounding, a, b, shift: int, zero_point: int) -> None:
    operands = [
        Operand(Value(name, shape, dtype), zero, multiplier, left)
        for name, (dtype, zero, multiplier, left) in zip("ab", (a, b), strict=True)
    ]
    layer = Add(
        "add", "", *operands, Value("y", shape, "int8"), shift, zero_point, -100, 120, rounding
    )
    kernel = make_kernel(layer, VECTOR)
    built = compiled(kernel)
    rng = np.random.default_rng(3)
    for n in (1, 3):
        inputs = [codes(rng, n, value) for value in layer.inputs]
        total = sum(
            ((x.astype(np.int64) - o.zero_point) * o.multiplier) << o.shift
            for x, o in zip(inputs, operands, strict=True)
        )
        want = np.clip(rounded(total, shift, rounding) + zero_point, -100, 120)
        np.testing.assert_array_equal(call(built, kernel, layer, inputs), want)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "padding", "dilation"),
    [
        ((8, 8, 16), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
        ((9, 7, 5), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
        ((11, 10, 64), (3, 2), (1, 3), (0, 2, 3, 0), (2, 3)),
        ((1, 1, 3), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ],
)
def test_maximum_pools(dtype, shape, kernel, strides, padding, dilation) -> None:
    size = [
        (shape[i] + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // strides[i]
        + 1
        for i in range(2)
    ]
    value, output = Value("x", shape, dtype), Value("y", (*size, shape[2]), dtype)
    layer = MaxPool2d("pool", "", value, output, kernel, strides, padding, dilation)
    x = codes(np.random.default_rng(4), 3, value)
    t, left, b, r = padding
    wide = np.pad(x, ((0, 0), (t, b), (left, r), (0, 0)), constant_values=RANGE[dtype][0])
    want = np.empty((3, *output.shape), dtype)
    for y, p in itertools.product(*map(range, size)):
        window = wide[:, y * strides[0] :, p * strides[1] :]
        window = window[:, : kernel[0] * dilation[0] : dilation[0]]
        want[:, y, p] = window[:, :, : kernel[1] * dilation[1] : dilation[1]].max(axis=(1, 2))
    np.testing.assert_array_equal(run(make_kernel(layer, VECTOR), layer, [x]), want)


@pytest.mark.parametrize(("dtype", "to"), [("int8", "int8"), ("uint8", "int8"), ("int8", "uint8")])
@pytest.mark.parametrize("shape", [(1, 1, 17), (16, 16, 16)])
def test_tables(dtype: str, to: str, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(5)
    table = rng.integers(0, 256, 256).astype(np.uint8)
    layer = Lut("lut", "", Value("x", shape, dtype), Value("y", shape, to), table.tobytes())
    x = codes(rng, 2, layer.input)
    want = table[x.view(np.uint8)].view(to)
    np.testing.assert_array_equal(run(make_kernel(layer, VECTOR), layer, [x]), want)


def test_moves_are_left_to_tvm() -> None:
    layer = Move("m", "", (), Value("y", (1, 1, 1), "int8"), 0)
    assert make_kernel(layer, VECTOR) is None
