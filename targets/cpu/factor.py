"""Products of two tensors: element by element, or as matrices.

Of elements, vectors are channels of a pixel: a layer's constants and most broadcasts are by
channel. Of matrices, the right one is laid out anew, centred and its output channels in vectors,
before the left one's rows are multiplied by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import s_tir, te, tirx

from targets.cpu.cuts import Cut, CutSpace
from targets.cpu.elements import VECTOR, function, placeholder
from targets.cpu.geometry import divisors
from targets.cpu.kernel import Kernel
from targets.cpu.requantize import Epilogue, Expr
from targets.layers import Conv2d, Factor, Pairing

LANES, VECTORS = 16, 4  # of accumulators, which hide the latency of a product
ACCUMULATORS = 15  # vectors that a tile may have


def matrix_cuts(layer: Conv2d) -> CutSpace:
    """Of a product of matrices: tiles of pixels of a row and of vectors."""
    pixels = [d for d in divisors(layer.output.shape[1]) if d <= ACCUMULATORS]
    tiles = [(p, v) for p in pixels for v in range(1, ACCUMULATORS // p + 1)]
    return CutSpace(Cut(vectors=VECTORS), tuple(Cut(pixels=p, vectors=v) for p, v in tiles))


def build_factor(layer: Conv2d, factor: Factor, cut: Cut | None = None) -> Kernel:
    """The kernel of a layer whose right operand is ``factor``."""
    n = tirx.Var("n", "int64")
    inputs = [placeholder(n, value, f"input{i}") for i, value in enumerate(layer.inputs)]
    epilogue = Epilogue.of(layer, layer.bias, lambda channels: channels)
    constants = [
        te.placeholder(array.shape, "int32", name=f"constant{i}")
        for i, array in enumerate(epilogue.constants)
    ]
    elements = factor.pairing is Pairing.ELEMENTS
    cut = cut or Cut(vectors=VECTORS)
    if elements:
        products = _elements(layer, factor, *inputs[:2])
    else:
        products = _matrices(layer, factor, inputs[0], inputs[1], cut.vectors)

    def code(*at: Expr) -> Expr:
        residual = inputs[2][at] if len(inputs) > 2 else None
        return epilogue(products(*at), [constant[at[-1]] for constant in constants], residual)

    out = te.compute((n, *layer.output.shape), code, name="out")
    func = function([*inputs, *constants, out])
    scheduled = _schedule_elements(func) if elements else _schedule_matrices(func, cut)
    return Kernel(scheduled, epilogue.constants)


def _elements(layer: Conv2d, factor: Factor, x: te.Tensor, r: te.Tensor) -> Callable[..., Expr]:
    """Products by element of the output; the right operand's axes of size 1 are broadcast."""

    def product(n: Expr, *at: Expr) -> Expr:
        sizes = factor.value.shape
        shared = [i if size > 1 else 0 for i, size in zip(at, sizes, strict=True)]
        left = _centred(x[(n, *at)], layer.input_zero_point)
        return left * _centred(r[(n, *shared)], factor.zero_point)

    return product


def _matrices(
    layer: Conv2d, factor: Factor, x: te.Tensor, r: te.Tensor, vectors: int
) -> Callable[..., Expr]:
    """Sums by element of the output, from a tensor of whole vectors per group."""
    n, (height, width, _), (K, _, _, C) = x.shape[0], layer.output.shape, layer.weight_shape
    each = K // layer.groups
    block = LANES * vectors
    padded = -(-each // block) * block

    rows = factor.value.shape[0]

    def laid_out(b: Expr, y: Expr, g: Expr, c: Expr, k: Expr) -> Expr:
        turned = factor.pairing is Pairing.ROWS
        code = r[(b, y, k, g * C + c) if turned else (b, y, c, g * each + k)]
        zero = tirx.const(0, "int32")
        return tirx.if_then_else(k < each, _centred(code, factor.zero_point), zero)

    right = te.compute((n, rows, layer.groups, C, padded), laid_out, name="right")
    channel = te.reduce_axis((0, C), name="c")

    def summed(b: Expr, y: Expr, p: Expr, g: Expr, k: Expr) -> Expr:
        left = _centred(x[b, y, p, g * C + channel], layer.input_zero_point)
        return te.sum(left * right[b, y if rows > 1 else 0, g, channel, k], axis=channel)

    sums = te.compute((n, height, width, layer.groups, padded), summed, name="sums")
    return lambda b, y, p, k: sums[b, y, p, k // each, k % each]


def _centred(code: Expr, zero_point: int) -> Expr:
    return code.astype("int32") - tirx.const(zero_point, "int32")


def _schedule_elements(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Rows of images to all cores, channels to vectors."""
    sch = s_tir.Schedule(func)
    image, row, _, channel = sch.get_loops(sch.get_sblock("out"))
    lanes = math.gcd(int(sch.get(channel).extent), VECTOR)
    sch.vectorize(sch.split(channel, [None, lanes])[1])
    sch.parallel(sch.fuse(image, row))
    return sch.mod["main"].without_attr("global_symbol")


def _schedule_matrices(func: tirx.PrimFunc, cut: Cut) -> tirx.PrimFunc:
    """Rows of the left matrix to all cores, output channels to vectors of accumulators."""
    sch = s_tir.Schedule(func)
    right, sums, out = (sch.get_sblock(name) for name in ("right", "sums", "out"))
    *rows, lane = sch.get_loops(right)
    sch.parallel(sch.fuse(*rows))
    sch.vectorize(sch.split(lane, [None, LANES])[1])

    *image, pixel, group, channel, depth = sch.get_loops(sums)
    tile, pixel = sch.split(pixel, [None, cut.pixels])
    block, vector, lane = sch.split(channel, [None, cut.vectors, LANES])
    sch.reorder(*image, tile, group, block, depth, pixel, vector, lane)
    sch.parallel(sch.fuse(*image, tile, group))
    sch.vectorize(lane)
    init = sch.decompose_reduction(sums, depth)
    *_, first, other, begun = sch.get_loops(init)
    for loop in (pixel, vector, first, other):
        sch.unroll(loop)
    sch.vectorize(begun)

    sch.parallel(sch.fuse(*sch.get_loops(out)[:-1]))
    return sch.mod["main"].without_attr("global_symbol")
