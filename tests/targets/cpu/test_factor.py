"""Products of two tensors on the host against plain NumPy int64, integer for integer."""

import itertools

import numpy as np
import pytest
from cpu_kernels import EXECUTED, RANGE, TARGET, call, codes, compiled, features, rounded

from targets.cpu.cuts import Cut
from targets.cpu.host import CpuFeatures
from targets.cpu.kernels import make_kernel
from targets.layers import Conv2d, Factor, Pairing, Requantize, Residual, Value
from targets.rounding import FLOOR, HALF_UP
from targets.sum_bounds import CodeRange, bound_products

VECTOR = CpuFeatures.of(TARGET)
ROWS, COLUMNS, ELEMENTS = Pairing
ZEROS = {"int8": -3, "uint8": 130}


def factor_layer(
    pairing,
    shape,
    right,
    groups,
    dtypes=("uint8", "int8"),
    *,
    raw=False,
    skip=False,
    rounding=HALF_UP,
):
    """A layer of two tensors whose codes spread over the whole output range."""
    h, w, c = shape
    channels = {ROWS: groups * right[1], COLUMNS: right[2], ELEMENTS: c}[pairing]
    rng = np.random.default_rng(channels)
    left, factor = (CodeRange(*RANGE[dtype], ZEROS[dtype]) for dtype in dtypes)
    bias = rng.integers(-5000, 5000, channels).astype(np.int32)
    output = Value("y", (h, w, channels), "int32" if raw else "int8")
    requantize = None
    if not raw:
        shift = rng.integers(23, 26, channels).astype(np.int32) + int(np.log2(c // groups) / 2)
        multiplier = rng.integers(1, 65536, channels).astype(np.int32)
        added = Residual(Value("s", output.shape, "uint8"), 9, 77, shift - 14) if skip else None
        requantize = Requantize(1, multiplier, shift, 4, -100, 127, rounding, added)
    return Conv2d(
        name="mul",
        source="",
        kind="multiply" if pairing is ELEMENTS else "matmul",
        input=Value("x", shape, dtypes[0]),
        output=output,
        right=Factor(Value("r", right, dtypes[1]), ZEROS[dtypes[1]], pairing),
        bias=bias,
        strides=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=groups,
        input_zero_point=ZEROS[dtypes[0]],
        requantize=requantize,
        max_sum=bound_products(left, factor, c // groups, bias).reach,
    )


def _meaning(layer, x, r, *residual):
    x, r = x.astype(np.int64) - layer.input_zero_point, r.astype(np.int64) - layer.right.zero_point
    if layer.right.pairing is ELEMENTS:
        sums = x * r
    else:
        heads = "nhwgc,nikgc->nhwgk" if layer.right.pairing is ROWS else "nhwgc,nicgk->nhwgk"
        split = (z.reshape(*z.shape[:3], layer.groups, -1) for z in (x, r))
        sums = np.einsum(heads, *split).reshape(len(x), *layer.output.shape)
    sums, q = sums + layer.bias, layer.requantize
    if q is None:
        return sums.astype(np.int32)
    total = (sums << q.fraction) * q.multiplier
    for added in residual:
        term = (added.astype(np.int64) - q.residual.zero_point) * q.residual.multiplier
        total += term << q.residual.shift.astype(np.int64)
    code = rounded(total, q.shift, q.rounding) + q.zero_point
    return np.clip(code, q.low, q.high).astype(np.int8)


SWAPPED = {"dtypes": ("int8", "uint8"), "skip": True, "rounding": FLOOR}
LAYERS = {
    "scores": (ROWS, (1, 5, 18), (1, 7, 18), 3, {}),
    "scores, more than a block": (ROWS, (1, 3, 8), (1, 70, 8), 1, SWAPPED),
    "sums of scores": (ROWS, (1, 5, 18), (1, 7, 18), 3, {"raw": True}),
    "context": (COLUMNS, (1, 5, 21), (1, 7, 30), 3, SWAPPED),
    "matrix by an image": (COLUMNS, (3, 4, 6), (1, 6, 16), 1, {}),
    "gate": (ELEMENTS, (3, 4, 24), (1, 1, 24), 24, SWAPPED),
    "mask": (ELEMENTS, (3, 4, 24), (3, 4, 1), 24, {}),
    "row": (ELEMENTS, (3, 4, 5), (1, 4, 5), 5, {}),
    "elements": (ELEMENTS, (3, 4, 5), (3, 4, 5), 5, SWAPPED),
    "vector": (ELEMENTS, (1, 1, 17), (1, 1, 17), 17, {"raw": True}),
}


MATRICES = ("scores, more than a block", "context")
SETS = {each.name: each for each in EXECUTED}
CASES = [(name, VECTOR.instructions.name, None) for name in LAYERS]
CASES += [
    (name, each, None)
    for name in MATRICES
    for each in SETS
    if SETS[each] is not VECTOR.instructions
]
CASES += [(name, "plain", Cut(pixels=2)) for name in MATRICES]
CASES += [("context", VECTOR.instructions.name, Cut(pixels=3))]


@pytest.mark.parametrize(("name", "instructions", "cut"), CASES)
def test_products_of_two_tensors(name, instructions, cut):
    *sizes, options = LAYERS[name]
    layer = factor_layer(*sizes, **options)
    kernel = make_kernel(layer, features(SETS[instructions]), cut)
    built = compiled(kernel, EXECUTED[SETS[instructions]])
    rng = np.random.default_rng(1)
    for n in (1, 3):
        inputs = [codes(rng, n, value) for value in layer.inputs]
        np.testing.assert_array_equal(call(built, kernel, layer, inputs), _meaning(layer, *inputs))


@pytest.mark.parametrize("dtypes", [("uint8", "int8"), ("int8", "uint8")])
def test_the_largest_codes_fit_words(dtypes):
    """Codes less their zero points have nine bits; two products of them, seventeen."""
    layer = factor_layer(ROWS, (1, 5, 18), (1, 7, 18), 3, dtypes, raw=True)
    kernel = make_kernel(layer, VECTOR)
    built = compiled(kernel)
    for ends in itertools.product(*(RANGE[dtype] for dtype in dtypes)):
        inputs = [
            np.full((1, *value.shape), end, value.dtype)
            for value, end in zip(layer.inputs, ends, strict=True)
        ]
        np.testing.assert_array_equal(call(built, kernel, layer, inputs), _meaning(layer, *inputs))
