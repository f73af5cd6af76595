"""Convolutions with windows of 3 x 3, by Winograd's algorithm in whole numbers.

A tile of 2 x 2 outputs reads 4 x 4 inputs. Both are transformed, so that the tile takes 16 products
of two channels instead of 36 (Lavin and Gray, arXiv 1509.09308, section 4.1):

    stage       rows read by the task, padded with the zero point, in 16 bits
    inputs      of each tile: B^T d B
    sums        16 products of matrices, over the input channels, in tiles of registers
    codes       of each tile A^T m A, a quarter of it, requantized, and written

With 2 G for the G of the paper the transformed weights are whole, and what comes out is four times
the sum, exactly. Words of 16 bits hold what is multiplied, so this is for processors that multiply
words not much slower than bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import s_tir, te, tirx

from targets.arithmetic import INT32_MAX
from targets.cpu.cuts import Cut, CutSpace
from targets.cpu.elements import function, placeholder
from targets.cpu.geometry import (
    FETCHED_BYTES,
    ISSUED,
    Dot,
    divisors,
    dot_cycles,
    keeps_weights,
    product_of,
    share_inside,
    stored_weight,
)
from targets.cpu.host import CpuFeatures
from targets.cpu.intrinsics import DotProduct
from targets.cpu.kernel import Kernel
from targets.cpu.padding import inside
from targets.cpu.requantize import Epilogue, Expr
from targets.layers import Conv2d, Weights

WINDOW, TILE, POINTS = 3, 2, 4
"""Rows, and columns, of weights, of a tile's outputs, and of what is multiplied for them."""
WEIGHTS = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]])
"""2 G: what is multiplied, by what it is made of."""
SUMMED = ((0, 1, 2), (1, 2, 3))
"""A: which of what was multiplied each output is summed from; the last is subtracted in both."""

INPUT_STEPS, OUTPUT_STEPS = 32, 40
"""Vector instructions that transform a tile's inputs, and its sums, of a vector of channels."""
MARGIN = 1.15
"""By how much fewer instructions must be, since those of the transforms are estimated."""
NEAR_BYTES = 512 * 1024
"""Of the second-level cache, for a task."""
FAR_BYTES = 16 * 1024 * 1024
"""That no task should take: of large images, those of all rows would be gigabytes."""


@dataclass(frozen=True)
class _Tiles:
    """A layer as tiles.

    Attributes:
        dot: the step that sums products.
        height: tiles, of which the last may overhang.
        width: likewise.
        channels: of the input.
        blocks: vectors of output channels.
    """

    dot: DotProduct
    height: int
    width: int
    channels: int
    blocks: int

    @staticmethod
    def of(layer: Conv2d, dot: DotProduct) -> _Tiles:
        """Those of a layer, with an instruction for words."""
        height, width, channels = layer.output.shape
        return _Tiles(
            dot, -(-height // TILE), -(-width // TILE), layer.input.shape[2], channels // dot.lanes
        )

    @property
    def steps(self) -> float:
        """Vector instructions of an image."""
        products = POINTS**2 * self.channels * self.blocks / self.dot.depth * self.dot.operations
        transforms = INPUT_STEPS * self.channels / self.dot.lanes + OUTPUT_STEPS * self.blocks
        return self.height * self.width * (products + transforms)

    def cuts(self, registers: int) -> list[Cut]:
        """All that registers hold, that divide what must be whole, and whose tasks aren't vast."""
        cuts = [
            Cut(rows, pixels, vectors, self.blocks // parts, winograd=True)
            for rows in divisors(self.height)
            for vectors in divisors(self.blocks)
            for pixels in range(1, min(rows * self.width, registers // vectors) + 1)
            for parts in divisors(self.blocks // vectors)
        ]
        most = max(FAR_BYTES, min(map(self._bytes, cuts)))
        return [cut for cut in cuts if self._bytes(cut) <= most]

    def rule(self, cuts: list[Cut], host: CpuFeatures) -> Cut:
        """The fastest of those that work near the core."""
        registers, cores, least = (
            host.instructions.registers,
            host.cores,
            min(map(self._bytes, cuts)),
        )
        near = [
            cut
            for cut in cuts
            if self._bytes(cut) <= max(NEAR_BYTES, least)
            and keeps_weights(self.dot, cut.pixels, cut.vectors, registers)
        ]
        return min(near, key=lambda cut: (self._cycles(cut, cores), cut.vectors, -cut.pixels, cut))

    def _bytes(self, cut: Cut) -> int:
        """Of what a task transforms, and of the sums that it keeps."""
        sums = cut.vectors * self.dot.lanes
        return POINTS**2 * cut.rows * self.width * (2 * self.channels + 4 * sums)

    def _cycles(self, cut: Cut, cores: int) -> float:
        """How long one image takes, about, with weights from the second-level cache."""
        tiles = cut.rows * self.width
        products = POINTS**2 * _round_up(tiles, cut.pixels) * self.channels / self.dot.depth
        products *= cut.chunk * dot_cycles(self.dot, cut.pixels, cut.vectors)
        of_tile = INPUT_STEPS * self.channels / self.dot.lanes + OUTPUT_STEPS * cut.chunk
        weights = POINTS**2 * self.channels * cut.chunk * self.dot.lanes * 2 / FETCHED_BYTES
        tasks = self.height // cut.rows * (self.blocks // cut.chunk)
        return -(-tasks // cores) * (products + tiles * of_tile / ISSUED + weights)


def winograd_cuts(layer: Conv2d, host: CpuFeatures) -> CutSpace | None:
    """Of a layer that takes less time by tiles; None where it doesn't, or can't be made so."""
    dot = host.instructions.words
    if (
        dot is None
        or layer.weight_shape[1:3] != (WINDOW, WINDOW)
        or (layer.strides, layer.dilation, layer.groups) != ((1, 1), (1, 1), 1)
        or layer.output.shape[2] % dot.lanes
        or layer.input.shape[2] % dot.depth
    ):
        return None
    tiles = _Tiles.of(layer, dot)
    if MARGIN * tiles.steps > _direct_steps(layer, host) or not sums_fit_int32(layer):
        return None
    cuts = tiles.cuts(host.instructions.registers)
    return CutSpace(tiles.rule(cuts, host), tuple(cuts))


def _direct_steps(layer: Conv2d, host: CpuFeatures) -> float:
    """Vector instructions of an image where products are those of the window."""
    dot, _ = product_of(layer, host)
    if dot is None:
        return math.inf
    zeros = Dot.of(layer, host).padding(layer) == 0
    share = share_inside(layer, axis=0) * share_inside(layer, axis=1) if zeros else 1.0
    return share * layer.macs / dot.lanes / dot.depth * dot.operations


def sums_fit_int32(layer: Conv2d) -> bool:
    """Whether what a layer's outputs are summed from, and each part of it, provably fits 32 bits.

    Transformed weights are bounded by the magnitudes of weights, transformed codes by the range of
    codes: they are sums of two sums or differences.
    """
    assert isinstance(layer.right, Weights)
    magnitudes, transform = np.abs(layer.right.scaled.astype(np.int32)), np.abs(WEIGHTS)
    if magnitudes.max() * transform.sum(axis=1).max() ** 2 > np.iinfo(np.int16).max:
        return False
    low, high = layer.codes_read
    codes = np.full((POINTS, POINTS), 2 * (high - low))
    codes[1, 1] = 4 * max(abs(low), abs(high))  # the one sum of sums
    weights = transform @ magnitudes.sum(axis=3, dtype=np.int64) @ transform.T
    products = weights * codes
    sums = [
        products[:, rows][:, :, columns].sum(axis=(1, 2)).max()
        for rows, columns in itertools.product(SUMMED, repeat=2)
    ]
    return max(sums) <= INT32_MAX


def build_winograd(layer: Conv2d, host: CpuFeatures, cut: Cut) -> Kernel:
    """The scheduled kernel and its packed constants."""
    dot = host.instructions.words
    assert dot is not None
    assert isinstance(layer.right, Weights)
    tiles = _Tiles.of(layer, dot)
    weight = _packed(stored_weight(layer.right), tiles)
    epilogue = Epilogue.of(layer, layer.bias, lambda c: c.reshape(tiles.blocks, dot.lanes))
    tensors = _Definition(layer, tiles, cut, epilogue, weight.shape).tensors()
    return Kernel(_schedule(function(tensors), tiles, cut), (weight, *epilogue.constants))


def _packed(stored: npt.NDArray[np.signedinteger], tiles: _Tiles) -> npt.NDArray[np.signedinteger]:
    """Transformed weights in the order they are read: int16[blocks, points, C / 2, lanes, 2]."""
    dot = tiles.dot
    words, transform = stored.astype(np.int16), WEIGHTS.astype(np.int16)
    points = np.einsum("js,kisc->kijc", transform, np.einsum("ir,krsc->kisc", transform, words))
    shape = (tiles.blocks, dot.lanes, POINTS**2, tiles.channels // dot.depth, dot.depth)
    return np.ascontiguousarray(points.reshape(shape).transpose(0, 2, 3, 1, 4))


@dataclass(frozen=True)
class _Definition:
    """The kernel as tensor expressions over image, task, and tile of the task."""

    layer: Conv2d
    tiles: _Tiles
    cut: Cut
    epilogue: Epilogue
    packed: tuple[int, ...]

    def tensors(self) -> list[te.Tensor]:
        """The kernel's parameters, the output last."""
        layer, lanes = self.layer, self.tiles.dot.lanes
        n = tirx.Var("n", "int64")
        inputs = [placeholder(n, value, f"input{i}") for i, value in enumerate(layer.inputs)]
        weight = te.placeholder(self.packed, "int16", name="weight")
        constants = [
            te.placeholder(array.shape, "int32", name=f"constant{i}")
            for i, array in enumerate(self.epilogue.constants)
        ]
        sums = self._sums(self._inputs(self._stage(inputs[0])), weight)

        def code(b: Expr, y: Expr, p: Expr, channel: Expr) -> Expr:
            task, row = y // (TILE * self.cut.rows), y % (TILE * self.cut.rows)
            tile = row // TILE * self.tiles.width + p // TILE
            block = (channel // lanes, channel % lanes)

            def point(i: int, j: int) -> Expr:
                return sums[b, task, block[0], i * POINTS + j, tile, block[1]]

            total = _output(y % TILE, [_output(p % TILE, row) for row in _square(point)])
            residual = inputs[1][b, y, p, channel] if len(inputs) > 1 else None
            of_channel = [constant[block] for constant in constants]
            return self.epilogue(total >> tirx.const(2, "int32"), of_channel, residual)

        out = te.compute((n, *layer.output.shape), code, name="out")
        return [*inputs, weight, *constants, out]

    def _stage(self, x: te.Tensor) -> te.Tensor:
        """Rows of a task: int16[images, tasks, rows, pixels, C]."""
        layer, tiles, (top, left, _, _) = self.layer, self.tiles, self.layer.padding
        h, w, channels = layer.input.shape
        around = WINDOW - 1
        rows, pixels = TILE * self.cut.rows + around, TILE * tiles.width + around
        last = TILE * tiles.height + around - 1

        def staged(b: Expr, task: Expr, y: Expr, p: Expr, channel: Expr) -> Expr:
            row = task * (TILE * self.cut.rows) + y
            holds = inside(row, (0, last), top, h) + inside(p, (0, pixels - 1), left, w)
            value = x[b, row - top, p - left, channel].astype("int16")
            zero = tirx.const(layer.input_zero_point, "int16")
            return tirx.if_then_else(tirx.all(*holds), value, zero) if holds else value

        shape = (x.shape[0], tiles.height // self.cut.rows, rows, pixels, channels)
        return te.compute(shape, staged, name="stage")

    def _inputs(self, stage: te.Tensor) -> te.Tensor:
        """Transformed: int16[images, tasks, points, tiles, C]; what overhangs repeats the last."""
        last = self.cut.rows * self.tiles.width - 1
        whole = _round_up(last + 1, self.cut.pixels)

        def transformed(b: Expr, task: Expr, at: Expr, tile: Expr, channel: Expr) -> Expr:
            if whole > last + 1:
                tile = tirx.min(tile, last)
            y, p = tile // self.tiles.width * TILE, tile % self.tiles.width * TILE

            def of_column(column: Expr) -> Expr:
                return _input(
                    at // POINTS, lambda row: stage[b, task, y + row, p + column, channel]
                )

            return _input(at % POINTS, of_column)

        images, tasks, *_, channels = stage.shape
        return te.compute((images, tasks, POINTS**2, whole, channels), transformed, name="inputs")

    def _sums(self, inputs: te.Tensor, weight: te.Tensor) -> te.Tensor:
        """Of products: int32[images, tasks, blocks, points, tiles, lanes]."""
        dot = self.tiles.dot
        step = te.reduce_axis((0, self.packed[2]), name="c")
        place = te.reduce_axis((0, dot.depth), name="d")

        def product(b: Expr, task: Expr, block: Expr, at: Expr, tile: Expr, lane: Expr) -> Expr:
            left = inputs[b, task, at, tile, step * dot.depth + place].astype("int32")
            right = weight[block, at, step, lane, place].astype("int32")
            return te.sum(left * right, axis=[step, place])

        images, tasks, points, tiles, _ = inputs.shape
        shape = (images, tasks, self.tiles.blocks, points, tiles, dot.lanes)
        summed = te.compute(shape, product, name="products")
        # Apart, so that products are summed in registers.
        return te.compute(shape, lambda *at: summed[at], name="sums")


def _square(point: Callable[[int, int], Expr]) -> list[list[Expr]]:
    """All points, row by row."""
    return [[point(i, j) for j in range(POINTS)] for i in range(POINTS)]


def _input(at: Expr, code: Callable[[Expr], Expr]) -> Expr:
    """A row of B^T: of four codes 0 - 2, 1 + 2, 2 - 1 or 1 - 3."""
    first = tirx.Select(at == 0, 0, tirx.Select(at == 2, 2, 1))
    second = tirx.Select(at == 3, 3, tirx.Select(at == 2, 1, 2))
    return tirx.Select(at == 1, code(first) + code(second), code(first) - code(second))


def _output(at: Expr, points: Sequence[Expr]) -> Expr:
    """A row of A^T: of four points 0 + 1 + 2 or 1 - 2 - 3."""
    zero, one, two, three = points
    return tirx.Select(at == 0, one + (zero + two), one - (two + three))


def _schedule(func: tirx.PrimFunc, tiles: _Tiles, cut: Cut) -> tirx.PrimFunc:
    """Rows of tiles to all cores; vectors of channels one after the other, all points of each."""
    lanes, vector = tiles.dot.lanes, math.gcd(tiles.channels, 2 * tiles.dot.lanes)
    sch = s_tir.Schedule(func)
    out, sums, products, inputs, stage = (
        sch.get_sblock(name) for name in ("out", "sums", "products", "inputs", "stage")
    )
    b, y, p, channel = sch.get_loops(out)
    task, y, row = sch.split(y, [tiles.height // cut.rows, cut.rows, TILE])
    p, column = sch.split(p, [None, TILE])
    block, lane = sch.split(channel, [None, lanes])
    task_block, group, block = sch.split(block, [None, cut.chunk // cut.vectors, cut.vectors])
    sch.reorder(b, task, task_block, group, y, p, block, row, column, lane)
    task = sch.fuse(b, task, task_block)
    sch.parallel(task)

    sch.compute_at(sums, group, preserve_unit_loops=True)
    *_, of_block, point, tile, of_lane = sch.get_loops(sums)
    tile, of_tile = sch.split(tile, [None, cut.pixels])
    sch.reorder(point, tile, of_tile, of_block, of_lane)
    sch.compute_at(products, tile, preserve_unit_loops=True)
    sch.compute_at(inputs, task, preserve_unit_loops=True)
    sch.compute_at(stage, task, preserve_unit_loops=True)

    *_, staged = sch.get_loops(stage)
    *_, at, transformed, channel = sch.get_loops(inputs)
    channel, of_channel = sch.split(channel, [None, vector])
    sch.reorder(transformed, channel, at, of_channel)
    *_, block_, _, tile_, lane_, step, place = sch.get_loops(products)
    sch.reorder(step, tile_, block_, lane_, place)
    init = sch.get_loops(sch.decompose_reduction(products, step))
    sch.tensorize(lane_, tiles.dot.shared)
    for loop in (lane, of_lane, sch.split(staged, [None, vector])[1], of_channel, init[-1]):
        sch.vectorize(loop)
    for loop in (row, column, of_tile, of_block, at, tile_, block_, *init[-4:-1]):
        sch.unroll(loop)
    return sch.mod["main"].without_attr("global_symbol")


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
