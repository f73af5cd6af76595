"""Convolutions of the host against plain NumPy int64, integer for integer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tvm
import tvm_ffi
from cpu_kernels import RANGE, TARGET, codes, rounded, run
from hypothesis import given, settings
from hypothesis import strategies as st
from npu_layers import by_borders
from tvm import relax, tirx

from targets.arithmetic import border_thresholds
from targets.cpu.host import CpuFeatures
from targets.cpu.kernels import make_kernel
from targets.errors import UnsupportedError
from targets.layers import (
    Conv2d,
    Requantize,
    Residual,
    Value,
    Weights,
)
from targets.product_factors import ProductFactors
from targets.rounding import FLOOR, HALF_UP, Rounding, RoundingMode
from targets.sum_bounds import bound_sums

VECTOR = CpuFeatures.of(TARGET)
PLAIN = CpuFeatures(vnni=False, cores=2)


def conv_reference(layer: Conv2d, inputs: list[np.ndarray]) -> np.ndarray:
    x = inputs[0].astype(np.int64)
    n = len(x)
    k, r, s, c = layer.weight_shape
    ho, wo, _ = layer.output.shape
    (sy, sx), (dy, dx), (t, left, b, right) = layer.strides, layer.dilation, layer.padding
    x = np.pad(x, ((0, 0), (t, b), (left, right), (0, 0)), constant_values=layer.input_zero_point)
    acc = np.zeros((n, ho, wo, k), np.int64)
    for ko in range(k):
        first = ko // (k // layer.groups) * c
        for i, j in itertools.product(range(r), range(s)):
            window = x[:, i * dy :, j * dx :, first : first + c]
            window = window[:, : (ho - 1) * sy + 1 : sy, : (wo - 1) * sx + 1 : sx]
            each = layer.right.codes[ko, i, j].astype(np.int64)
            if (scaled := layer.right.factors) is not None:
                each *= scaled.factors[ko, np.arange(c) // scaled.channels]
            acc[..., ko] += window @ each
    acc += layer.bias
    q = layer.requantize
    if q is None:
        return acc.astype(np.int32)
    total = (acc << q.fraction) * q.multiplier.astype(np.int64)
    if q.residual is not None:
        r64 = inputs[1].astype(np.int64) - q.residual.zero_point
        total += (r64 * q.residual.multiplier) << q.residual.shift.astype(np.int64)
    if q.rounding.borders:
        table = q.rounding.table(q.low, q.high)
        thresholds = border_thresholds(q.shift, table, q.low - q.zero_point)
        code = q.low + (total[..., None] >= thresholds).sum(-1)
    else:
        code = rounded(total, q.shift, q.rounding) + q.zero_point
    return np.clip(code, q.low, q.high).astype(layer.output.dtype)


def conv(
    shape=(8, 8, 16),
    k=16,
    kernel=(3, 3),
    strides=(1, 1),
    padding=(1, 1, 1, 1),
    dilation=(1, 1),
    groups=1,
    dtype="int8",
    out_dtype=None,
    residual=None,
    multiplier=False,
    raw=False,
    fraction=0,
    zero_point=0,
    rounding=HALF_UP,
    limits=None,
    seed=0,
    weight_bits=8,
    products=0,
) -> Conv2d:
    """A layer with random weights whose codes spread over the whole output range."""
    rng = np.random.default_rng(seed)
    h, w, c = shape
    (kr, ks), (sy, sx), (dy, dx), (t, left, b, right) = kernel, strides, dilation, padding
    ho = (h + t + b - dy * (kr - 1) - 1) // sy + 1
    wo = (w + left + right - dx * (ks - 1) - 1) // sx + 1
    most = 1 << (weight_bits - 1)
    weight = rng.integers(-most, most, (k, kr, ks, c // groups)).astype(np.int8)
    right = Weights(weight)
    if products:
        factors = rng.choice([16, 8, 24, 12, 15, 17], (k, -(-c // groups // products)))
        right = Weights(weight, 8, ProductFactors(products, factors.astype(np.int32)))
    out_dtype = "int32" if raw else out_dtype or dtype
    output = Value("y", (ho, wo, k), out_dtype)
    bias = rng.integers(-5000, 5000, k).astype(np.int32)
    requantize = None
    if not raw:
        low, high = RANGE[out_dtype]
        spread = int(np.log2(74 * 74 * np.sqrt(kr * ks * c // groups) / 50))
        m = rng.integers(1, 65536, k).astype(np.int32) if multiplier else np.ones(k, np.int32)
        bits = np.floor(np.log2(m)).astype(np.int32)
        shift = np.maximum(spread + rng.integers(-1, 2, k) + bits + fraction, 0).astype(np.int32)
        skip = None
        if residual:
            rm = int(rng.integers(1, 65536)) if multiplier else 1
            rs = np.maximum(shift - (int(np.log2(rm))) - 1, 0).astype(np.int32)
            rz = int(rng.integers(RANGE[residual][0], RANGE[residual][1] + 1))
            skip = Residual(Value("r", (ho, wo, k), residual), rz, rm, rs)
        zy = int(rng.integers(low, high + 1)) if zero_point else 0
        ends = limits or (low + 1, high - 2)
        requantize = Requantize(fraction, m, shift, zy, *ends, rounding, skip)
    return Conv2d(
        "conv", "test", "conv2d", Value("x", shape, dtype), output, right, bias, strides,
        padding, dilation, groups, zero_point, requantize,
        bound_sums(right.scaled, bias, *RANGE[dtype]).reach,
    )  # fmt: skip


CONVS = {
    "square": {},
    "stem": {"shape": (17, 15, 3), "k": 24, "strides": (2, 2), "dtype": "uint8"},
    "three channels 7x7": {"shape": (20, 20, 3), "kernel": (7, 7), "padding": (3, 3, 3, 3)},
    "odd channels": {"shape": (5, 7, 5), "k": 17, "zero_point": -3},
    "hundred channels": {"shape": (4, 4, 100), "k": 100, "residual": "int8"},
    "dense": {"shape": (1, 1, 70), "k": 10, "kernel": (1, 1), "padding": (0,) * 4, "raw": True},
    "dense wide": {"shape": (1, 1, 64), "k": 128, "kernel": (1, 1), "padding": (0,) * 4},
    "dense residual": {
        "shape": (1, 1, 9), "k": 33, "kernel": (1, 1), "padding": (0,) * 4, "residual": "uint8",
    },
    "1x1 plane, 3x3 kernel": {"shape": (1, 1, 8), "k": 32, "zero_point": 5, "dtype": "uint8"},
    "pointwise": {"shape": (6, 6, 32), "k": 48, "kernel": (1, 1), "padding": (0,) * 4},
    "pointwise ragged": {
        "shape": (5, 23, 24), "k": 40, "kernel": (1, 1), "padding": (0,) * 4, "residual": "int8",
    },
    "pointwise strided": {
        "shape": (8, 8, 16), "k": 32, "kernel": (1, 1), "padding": (0,) * 4, "strides": (2, 2),
    },
    "pointwise padded": {
        "shape": (3, 5, 16), "k": 16, "kernel": (1, 1), "padding": (1, 0, 2, 1), "zero_point": 7,
    },
    "asymmetric": {
        "shape": (9, 10, 6), "k": 20, "kernel": (2, 5), "padding": (0, 3, 2, 1), "dilation": (3, 2),
        "strides": (1, 2), "zero_point": -100,
    },
    "depthwise": {"shape": (9, 9, 32), "k": 32, "groups": 32, "zero_point": 11},
    "scaled products in bytes": {
        "shape": (6, 7, 20), "k": 20, "products": 8, "weight_bits": 2, "fraction": 1,
        "zero_point": 9, "residual": "int8",
    },
    "scaled products in words": {"shape": (6, 7, 21), "k": 33, "products": 4, "dtype": "uint8"},
    "scaled products in groups": {
        "shape": (5, 6, 24), "k": 20, "groups": 2, "products": 5, "multiplier": True,
        "zero_point": -7,
    },
    "scaled products, dense": {
        "shape": (1, 1, 70), "k": 10, "kernel": (1, 1), "padding": (0,) * 4, "raw": True,
        "products": 16,
    },
    "depthwise ragged": {
        "shape": (7, 11, 19), "k": 19, "groups": 19, "strides": (2, 1), "dtype": "uint8",
        "zero_point": 130, "residual": "uint8", "multiplier": True,
    },
    "depthwise pool": {
        "shape": (8, 8, 64), "k": 64, "groups": 64, "kernel": (8, 8), "padding": (0,) * 4,
        "multiplier": True,
    },
    "channel multiplier": {"shape": (6, 6, 4), "k": 8, "groups": 4},
    "grouped": {"shape": (6, 6, 24), "k": 36, "groups": 3, "residual": "int8"},
    "grouped by blocks": {"shape": (4, 5, 6), "k": 51, "groups": 3, "residual": "uint8"},
    "grouped full": {"shape": (6, 8, 64), "k": 64, "groups": 2, "residual": "int8"},
    "multiplier": {"multiplier": True, "zero_point": 3, "fraction": 4, "residual": "uint8"},
    "residual": {"residual": "int8", "fraction": 3},
    "raw": {"raw": True, "shape": (3, 3, 16), "k": 32},
    "mixed types": {"dtype": "uint8", "out_dtype": "int8", "residual": "uint8", "zero_point": 9},
    "pointwise unsigned": {
        "shape": (7, 7, 64), "k": 64, "kernel": (1, 1), "padding": (0,) * 4, "dtype": "uint8",
    },
    "pointwise, rows of no whole tiles": {
        "shape": (14, 14, 192), "k": 64, "kernel": (1, 1), "padding": (0,) * 4, "dtype": "uint8",
    },
    "unpadded unsigned": {"shape": (9, 9, 16), "k": 32, "padding": (0,) * 4, "dtype": "uint8"},
    "by borders": {
        "multiplier": True, "residual": "int8", "rounding": by_borders(16, first=-7),
        "limits": (-6, 7), "zero_point": 3,
    },
    "by a row of borders": {
        "shape": (5, 7, 5), "k": 17, "out_dtype": "uint8", "rounding": by_borders(1),
        "limits": (0, 15),
    },
    "to the floor": {"multiplier": True, "residual": "int8", "rounding": FLOOR},
    "tall": {"shape": (64, 3, 16), "k": 16},
    "deep": {"shape": (7, 7, 128), "k": 256},
}  # fmt: skip


@pytest.mark.parametrize("host", [VECTOR, PLAIN], ids=["vector", "plain"])
@pytest.mark.parametrize("name", CONVS)
def test_convolutions(name: str, host: CpuFeatures) -> None:
    layer = conv(**CONVS[name])
    kernel = make_kernel(layer, host)
    rng = np.random.default_rng(1)
    for n in (1, 3):
        inputs = [codes(rng, n, value) for value in layer.inputs]
        want = conv_reference(layer, inputs)
        np.testing.assert_array_equal(run(kernel, layer, inputs), want)


def test_another_rounding_is_refused() -> None:
    """Half up in its place, it would quietly be another network."""
    layer = conv(rounding=Rounding(RoundingMode.HALF_EVEN))
    with pytest.raises(UnsupportedError, match="conv: rounds by HALF_EVEN, but the CPU only by"):
        make_kernel(layer, VECTOR)


sides = st.integers(1, 9)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_random_convolutions(data: st.DataObject) -> None:
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 4))
    shape = [draw(sides), draw(sides)]
    for axis in range(2):
        # The dilated window must fit the padded image.
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        shape[axis] = max(shape[axis], reach - padding[axis] - padding[axis + 2])
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    c, k = groups * draw(st.integers(1, 20)), groups * draw(st.integers(1, 40))
    if draw(st.booleans()) and groups > 1:
        groups = k = c
    layer = conv(
        (*shape, c),
        k,
        kernel,
        draw(st.tuples(*[st.integers(1, 3)] * 2)),
        padding,
        dilation,
        groups,
        draw(st.sampled_from(["int8", "uint8"])),
        draw(st.sampled_from(["int8", "uint8"])),
        draw(st.sampled_from([None, "int8", "uint8"])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([0, 2])),
        draw(st.sampled_from([0, 17])),
        draw(st.sampled_from([HALF_UP, FLOOR])),
        draw(st.integers(0, 99)),
        draw(st.sampled_from([8, 2])),
        draw(st.sampled_from([0, 0, 3, 16])),
    )
    inputs = [codes(np.random.default_rng(0), 2, value) for value in layer.inputs]
    host = draw(st.sampled_from([VECTOR, PLAIN]))
    got = run(make_kernel(layer, host), layer, inputs)
    np.testing.assert_array_equal(got, conv_reference(layer, inputs))


@pytest.mark.parametrize("code", [-128, 127])
@pytest.mark.parametrize("fraction", [0, 11, 12, 15])
def test_sums_at_the_edge_of_int32(code: int, fraction: int) -> None:
    """Terms of sums and residual that only just fit, or do not fit, 32 bits."""
    value, skip = Value("x", (1, 2, 31), "int8"), Value("r", (1, 2, 16), "int8")
    one = np.ones(16, np.int32)
    q = Requantize(
        fraction,
        one,
        one * 24,
        0,
        -128,
        127,
        HALF_UP,
        Residual(skip, 127 if code < 0 else -128, 1, one * 23),
    )
    weight = np.full((16, 1, 1, 31), code, np.int8)
    layer = Conv2d(
        "c",
        "",
        "conv2d",
        value,
        Value("y", (1, 2, 16), "int8"),
        Weights(weight),
        one * 0,
        (1, 1),
        (0,) * 4,
        (1, 1),
        1,
        0,
        q,
        bound_sums(weight, one * 0, -128, 127).reach,
    )
    inputs = [np.full((1, *v.shape), code, np.int8) for v in layer.inputs]
    got = run(make_kernel(layer, VECTOR), layer, inputs)
    np.testing.assert_array_equal(got, conv_reference(layer, inputs))


def test_layers_of_one_shape_share_a_function() -> None:
    a, b = (make_kernel(conv(residual="int8", seed=seed), VECTOR) for seed in (1, 2))
    other = make_kernel(conv(residual="int8", k=32), VECTOR)
    # The residual's zero point is part of the code, the rest is data.
    same = conv(residual="int8", seed=1)
    twin = make_kernel(same, VECTOR)
    assert tvm_ffi.structural_equal(a.func, twin.func)
    assert not tvm_ffi.structural_equal(a.func, other.func)
    assert not np.array_equal(a.constants[0], b.constants[0])


def test_kernels_run_inside_relax() -> None:
    """Scheduled functions must survive Relax's own pipeline: fusion and memory planning."""
    layers = [
        conv(shape=(8, 8, 3), k=20),
        conv(shape=(8, 8, 20), k=20, seed=1),
        conv(shape=(8, 8, 20)),
    ]
    n = tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((n, 8, 8, 3), "int8"))
    bb = relax.BlockBuilder()
    with bb.function("main", [x]):
        with bb.dataflow():
            value = x
            for layer in layers:
                kernel = make_kernel(layer, VECTOR)
                name = bb.add_func(kernel.func, "kernel")
                shape = relax.TensorType((n, *layer.output.shape), "int8")
                constants = [relax.const(array) for array in kernel.constants]
                value = bb.emit(relax.call_tir(name, [value, *constants], shape))
            value = bb.emit_output(value)
        bb.emit_func_output(value)
    vm = relax.VirtualMachine(tvm.compile(bb.get(), target=TARGET), tvm.cpu())
    for batch in (1, 5):
        want = codes(np.random.default_rng(6), batch, layers[0].input)
        got = vm["main"](tvm.runtime.tensor(want)).numpy()
        for layer in layers:
            want = conv_reference(layer, [want])
        np.testing.assert_array_equal(got, want)
