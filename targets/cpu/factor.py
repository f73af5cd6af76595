"""Products of two tensors: element by element, or as matrices.

Of elements, vectors are channels of a pixel: a layer's constants and most broadcasts are by
channel. Matrices are both centred and laid out anew, the right one's output channels in vectors,
before tiles of the left one's rows are multiplied by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import s_tir, te, tirx

from targets.cpu.cuts import Cut, CutSpace
from targets.cpu.elements import VECTOR, function, placeholder
from targets.cpu.geometry import CHAINS
from targets.cpu.host import CpuFeatures
from targets.cpu.kernel import Kernel
from targets.cpu.requantize import Epilogue, Expr
from targets.layers import Conv2d, Factor, Pairing


@dataclass(frozen=True)
class _Matrix:
    """How matrices are multiplied.

    Where the processor sums products of words of 16 bits, by that; else in words of 32 bits.

    Attributes:
        lanes: output channels of a vector.
        registers: vectors of sums that a tile may have.
        depth: input channels that one step multiplies.
        dtype: of centred codes.
        intrinsic: the tensor intrinsic, or None.
    """

    lanes: int
    registers: int
    depth: int
    dtype: str
    intrinsic: str | None

    @staticmethod
    def of(host: CpuFeatures) -> _Matrix:
        """The fastest on a processor; centred codes have nine bits."""
        found = host.instructions
        if (dot := found.words) is None:
            return _Matrix(found.lanes, found.registers, 1, "int32", None)
        return _Matrix(found.lanes, found.registers, dot.depth, dot.left, dot.shared)

    def blocks(self, layer: Conv2d) -> int:
        """Vectors of a group's output channels."""
        return -(-layer.output.shape[2] // layer.groups // self.lanes)

    def tiles(self, layer: Conv2d) -> list[tuple[int, int]]:
        """Pixels and vectors that registers hold."""
        pixels, vectors = layer.output.shape[1], self.blocks(layer)
        return [
            (p, v)
            for p in range(1, min(pixels, self.registers) + 1)
            for v in range(1, min(vectors, self.registers // p) + 1)
        ]

    def rule(self, layer: Conv2d) -> Cut:
        """The tile with the fewest cycles: of what overhangs, of loads, of waiting for sums."""
        sizes = layer.output.shape[1], self.blocks(layer)

        def cycles(tile: tuple[int, int]) -> float:
            whole = (-(-size // part) * part / size for size, part in zip(sizes, tile, strict=True))
            sums = math.prod(tile)
            return math.prod(whole) * max(1.0, sum(tile) / sums, CHAINS / sums)

        pixels, vectors = min(self.tiles(layer), key=cycles)
        return Cut(pixels=pixels, vectors=vectors)


def matrix_cuts(layer: Conv2d, host: CpuFeatures) -> CutSpace:
    """Of a product of matrices: tiles of pixels of a row and of vectors."""
    matrix = _Matrix.of(host)
    cuts = tuple(Cut(pixels=p, vectors=v) for p, v in matrix.tiles(layer))
    return CutSpace(matrix.rule(layer), cuts)


def build_factor(
    layer: Conv2d, factor: Factor, host: CpuFeatures, cut: Cut | None = None
) -> Kernel:
    """The kernel of a layer whose right operand is ``factor``."""
    n = tirx.Var("n", "int64")
    inputs = [placeholder(n, value, f"input{i}") for i, value in enumerate(layer.inputs)]
    epilogue = Epilogue.of(layer, layer.bias, lambda channels: channels)
    constants = [
        te.placeholder(array.shape, "int32", name=f"constant{i}")
        for i, array in enumerate(epilogue.constants)
    ]
    schedule: Callable[[tirx.PrimFunc], tirx.PrimFunc]
    if factor.pairing is Pairing.ELEMENTS:
        products, schedule = _elements(layer, factor, *inputs[:2]), _schedule_elements
    else:
        matrix = _Matrix.of(host)
        cut = cut or matrix.rule(layer)
        products = _matrices(layer, factor, matrix, cut, *inputs[:2])
        schedule = partial(_schedule_matrices, matrix=matrix, groups=layer.groups, cut=cut)

    def code(*at: Expr) -> Expr:
        residual = inputs[2][at] if len(inputs) > 2 else None
        return epilogue(products(*at), [constant[at[-1]] for constant in constants], residual)

    out = te.compute((n, *layer.output.shape), code, name="out")
    return Kernel(schedule(function([*inputs, *constants, out])), epilogue.constants)


def _elements(layer: Conv2d, factor: Factor, x: te.Tensor, r: te.Tensor) -> Callable[..., Expr]:
    """Products by element of the output; the right operand's axes of size 1 are broadcast."""

    def product(n: Expr, *at: Expr) -> Expr:
        sizes = factor.value.shape
        shared = [i if size > 1 else 0 for i, size in zip(at, sizes, strict=True)]
        left = _centred(x[(n, *at)], layer.input_zero_point)
        return left * _centred(r[(n, *shared)], factor.zero_point)

    return product


def _matrices(
    layer: Conv2d, factor: Factor, matrix: _Matrix, cut: Cut, x: te.Tensor, r: te.Tensor
) -> Callable[..., Expr]:
    """Sums by element of the output, in whole tiles; both sides are laid out for them."""
    n, (height, width, _), (K, _, _, C) = x.shape[0], layer.output.shape, layer.weight_shape
    each, groups = K // layer.groups, layer.groups
    pixels, blocks = (
        -(-size // part) * part
        for size, part in ((width, cut.pixels), (matrix.blocks(layer), cut.vectors))
    )
    steps, rows = -(-C // matrix.depth), factor.value.shape[0]

    def centred(code: Expr, zero_point: int, *inside: Expr) -> Expr:
        value = _centred(code, zero_point).astype(matrix.dtype)
        zero = tirx.const(0, matrix.dtype)
        return tirx.if_then_else(tirx.all(*inside), value, zero) if inside else value

    def on_left(b: Expr, y: Expr, p: Expr, g: Expr, c: Expr) -> Expr:
        inside = [p < width] if pixels != width else []
        inside += [c < C] if steps * matrix.depth != C else []
        return centred(x[b, y, p, g * C + c], layer.input_zero_point, *inside)

    def on_right(b: Expr, y: Expr, g: Expr, k: Expr, c: Expr, lane: Expr, d: Expr) -> Expr:
        k, c = k * matrix.lanes + lane, c * matrix.depth + d
        turned = factor.pairing is Pairing.ROWS
        code = r[(b, y, k, g * C + c) if turned else (b, y, c, g * each + k)]
        return centred(code, factor.zero_point, k < each, c < C)

    left = te.compute((n, height, pixels, groups, steps * matrix.depth), on_left, name="left")
    right_shape = (n, rows, groups, blocks, steps, matrix.lanes, matrix.depth)
    right = te.compute(right_shape, on_right, name="right")
    step, place = te.reduce_axis((0, steps), name="c"), te.reduce_axis((0, matrix.depth), name="d")

    def summed(b: Expr, y: Expr, p: Expr, g: Expr, block: Expr, lane: Expr) -> Expr:
        a = left[b, y, p, g, step * matrix.depth + place].astype("int32")
        other = right[b, y if rows > 1 else 0, g, block, step, lane, place].astype("int32")
        return te.sum(a * other, axis=[step, place])

    shape = (n, height, pixels, groups, blocks, matrix.lanes)
    sums = te.compute(shape, summed, name="sums")

    def of_channel(b: Expr, y: Expr, p: Expr, k: Expr) -> Expr:
        within = k % each
        return sums[b, y, p, k // each, within // matrix.lanes, within % matrix.lanes]

    return of_channel


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


def _schedule_matrices(
    func: tirx.PrimFunc, matrix: _Matrix, groups: int, cut: Cut
) -> tirx.PrimFunc:
    """Rows of the left matrix to all cores, output channels to vectors of accumulators."""
    sch = s_tir.Schedule(func)
    left, right, sums, out = (sch.get_sblock(name) for name in ("left", "right", "sums", "out"))
    *rows, channel = sch.get_loops(left)
    sch.parallel(sch.fuse(*rows))
    sch.vectorize(sch.split(channel, [None, math.gcd(int(sch.get(channel).extent), VECTOR)])[1])
    *rows, _, _, _ = sch.get_loops(right)
    sch.parallel(sch.fuse(*rows))

    *image, pixel, group, block, lane, depth, place = sch.get_loops(sums)
    tile, pixel = sch.split(pixel, [None, cut.pixels])
    block, vector = sch.split(block, [None, cut.vectors])
    if matrix.intrinsic:
        sch.reorder(*image, tile, group, block, depth, pixel, vector, lane, place)
    else:
        sch.reorder(*image, tile, group, block, depth, place, pixel, vector, lane)
        sch.vectorize(lane)
    sch.parallel(sch.fuse(*image, tile, group))
    init = sch.decompose_reduction(sums, depth)
    *_, first, other, begun = sch.get_loops(init)
    for loop in (pixel, vector, first, other):
        sch.unroll(loop)
    sch.vectorize(begun)
    if matrix.intrinsic:
        sch.tensorize(lane, matrix.intrinsic)

    *image, channel = sch.get_loops(out)
    group, _ = sch.split(channel, [groups, None])
    sch.parallel(sch.fuse(*image, group))
    return sch.mod["main"].without_attr("global_symbol")
