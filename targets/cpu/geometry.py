"""How a convolution is cut into tasks and register tiles, and its constants packed for that."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from targets.cpu.cuts import Cut, CutSpace
from targets.cpu.host import CpuFeatures
from targets.cpu.intrinsics import DotProduct
from targets.layers import Conv2d, Ints, Weights

CHAINS = 6  # accumulators that hide the latency of a dot product in one instruction
SPARE = 3  # registers that hold neither sums nor what is multiplied by them
ISSUED = 4  # instructions that begin in a cycle, where it takes several
NEAR_BYTES = 32 * 1024  # of the first-level cache
FETCHED_BYTES = 32  # of the second-level cache, in a cycle
STAGE_BYTES = 128 * 1024  # staged input of a task: a part of the second-level cache
TASK_MACS = 500_000  # an image is cut for threads only into parts larger than this

View: TypeAlias = Literal["image", "row", "batch"]


def stored_weight(weights: Weights) -> npt.NDArray[np.signedinteger[Any]]:
    """What the kernel multiplies by, factors of products included, in as few bytes as hold it."""
    scaled = weights.scaled
    low, high = scaled.min(), scaled.max()
    for dtype in (np.int8, np.int16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return scaled.astype(dtype, copy=False)
    return scaled


def product_of(layer: Conv2d, host: CpuFeatures) -> tuple[DotProduct | None, int]:
    """The instruction for a layer's weights, and what is added to codes where they are staged."""
    assert isinstance(layer.right, Weights)
    wide, found, code = stored_weight(layer.right).dtype, host.instructions, layer.input.dtype
    if wide == np.int16:
        return found.words, 0
    if wide != np.int8 or not found.bytes:
        return None, 0
    exact = [each for each in found.bytes if not each.in_words or layer.pairs_fit_int16]
    product = min(exact, key=lambda each: (each.left == "int16", each.left != code))
    return product, _raised(code, product)


def _raised(code: str, product: DotProduct) -> int:
    """What is added to a layer's codes for an instruction, by turning their sign bit."""
    return {("int8", "uint8"): 128, ("uint8", "int8"): -128}.get((code, product.left), 0)


@dataclass(frozen=True)
class Dot:
    """The step that sums products.

    Attributes:
        depth: input channels that one step multiplies.
        stage: type that it reads activations in.
        raised: what is added to a code where it is staged: 0, or ±128, by turning its sign bit,
            where the instruction takes the other type; the bias takes it back.
        intrinsic: the tensor intrinsic, or None for vector multiply and add.
    """

    depth: int
    stage: str
    raised: int
    intrinsic: str | None

    @staticmethod
    def of(layer: Conv2d, host: CpuFeatures) -> Dot:
        """The fastest step for ``layer`` on ``host``."""
        if layer.depthwise:
            return Dot(1, layer.input.dtype, 0, None)
        product, raised = product_of(layer, host)
        if product is None:
            return Dot(1, "int32", 0, None)
        return Dot(product.depth, product.left, raised, product.shared)

    def padding(self, layer: Conv2d) -> int:
        """What padding is where it is staged; products with zeros can be left out."""
        return layer.input_zero_point + self.raised


@dataclass(frozen=True)
class Geometry:
    """Sizes of a kernel.

    Attributes:
        view: what the kernel takes for its rows and pixels: those of the ``image``; a ``row`` of
            all pixels of the image (1 × 1 convolution); the images of the ``batch`` (dense).
        height: rows; one of a ``row``.
        width: pixels of a row; 0 where it is the batch.
        rows: rows of a task; divides ``height``.
        parts: tasks that the tiles of a ``row`` are divided among, else 1.
        pixels: pixels of a tile.
        vectors: channel blocks of a tile; divides ``chunk`` and ``group_blocks``.
        chunk: channel blocks of a task; divides ``blocks``.
        lanes: output channels of a block, the sums of a vector.
        blocks: blocks of output channels in all.
        groups: groups of channels, padded to blocks one by one; 1 for a depthwise convolution.
        depth: staged channels of a group.
        full: no channel of a block is padding.
        ragged: tiles overhang pixels or channels of the output.
    """

    view: View
    height: int
    width: int
    rows: int
    parts: int
    pixels: int
    vectors: int
    chunk: int
    lanes: int
    blocks: int
    groups: int
    depth: int
    full: bool
    ragged: bool

    @property
    def group_blocks(self) -> int:
        """Blocks of one group."""
        return self.blocks // self.groups

    @staticmethod
    def of(layer: Conv2d, host: CpuFeatures, dot: Dot, cut: Cut) -> Geometry:
        """The sizes of ``layer``'s kernel, cut like that."""
        blocks = _Blocks.of(layer, host)
        height, width, _ = layer.output.shape
        view: View = "image"
        rows, parts = cut.rows, 1
        if _of_batch(layer):
            view, width = "batch", 0
        elif cut.flat:
            view, height, width, rows, parts = "row", 1, height * width, 1, height // rows
        if layer.depthwise:
            depth = blocks.count * blocks.lanes
        else:
            depth = _round_up(layer.weight_shape[3], dot.depth)
        ragged = not blocks.full or width == 0 or width % cut.pixels != 0
        return Geometry(
            view, height, width, rows, parts, cut.pixels, cut.vectors, cut.chunk, blocks.lanes,
            blocks.count, blocks.groups, depth, blocks.full, ragged,
        )  # fmt: skip

    def pack_channels(self, values: Ints) -> Ints:
        """Per-channel constants, int32[K], by blocks: int32[blocks, lanes], padding zero."""
        each = len(values) // self.groups
        padding = self.group_blocks * self.lanes - each
        padded = np.pad(values.astype(np.int32).reshape(self.groups, each), ((0, 0), (0, padding)))
        return np.ascontiguousarray(padded.reshape(self.blocks, self.lanes))

    def pack_weight(
        self, weight: npt.NDArray[np.signedinteger[Any]], dot: Dot
    ) -> npt.NDArray[np.signedinteger[Any]]:
        """Weights in the order they are read: [blocks, R, S, ceil(C / depth), lanes, depth]."""
        k, r, s, c = weight.shape
        each, deep = k // self.groups, -(-c // dot.depth)
        w = weight.reshape(self.groups, each, r, s, c)
        padding = ((0, 0), (0, self.group_blocks * self.lanes - each), (0, 0), (0, 0))
        w = np.pad(w, (*padding, (0, deep * dot.depth - c)))
        w = w.reshape(self.blocks, self.lanes, r, s, deep, dot.depth).transpose(0, 2, 3, 4, 1, 5)
        return np.ascontiguousarray(w)


@dataclass(frozen=True)
class _Blocks:
    """Output channels in vectors, which no cut changes.

    Attributes:
        lanes: channels of a block.
        groups: padded to blocks one by one; 1 for a depthwise convolution.
        count: blocks in all.
        full: no channel of a block is padding.
        per_tile: blocks that the vectors of a tile divide.
        registers: vectors of sums at most.
        dot: the instruction that sums products, or None.
        weight_bytes: of a block.
        inside: share of products that aren't left out where a tile has all pixels of a row.
    """

    lanes: int
    groups: int
    count: int
    full: bool
    per_tile: int
    registers: int
    dot: DotProduct | None
    weight_bytes: int
    inside: float

    @staticmethod
    def of(layer: Conv2d, host: CpuFeatures) -> _Blocks:
        assert isinstance(layer.right, Weights)
        channels = layer.output.shape[2]
        groups = 1 if layer.depthwise else layer.groups
        lanes = host.instructions.lanes
        dot, _ = product_of(layer, host)
        zeros = Dot.of(layer, host).padding(layer) == 0
        of_group = -(-(channels // groups) // lanes)
        return _Blocks(
            lanes, groups, groups * of_group, groups * of_group * lanes == channels,
            1 if layer.depthwise else of_group, host.instructions.registers, dot,
            lanes * math.prod(layer.weight_shape[1:]) * stored_weight(layer.right).itemsize,
            share_inside(layer, axis=1) if zeros else 1.0,
        )  # fmt: skip

    @property
    def divided(self) -> bool:
        """Whether tasks may have a part of the output channels."""
        return self.full and self.groups == 1

    def joins(self, layer: Conv2d, rows: int, pixels: int) -> bool:
        """Whether tiles of so many pixels may take so many rows of the image for one."""
        _, width, _ = layer.output.shape
        return self.full and _is_pointwise(layer) and _flattens(rows, width, pixels)

    def tile(self, width: int) -> tuple[int, int]:
        """Pixels and vectors of the rule's tile for rows of a width."""
        return _tile(width, self)


def cut_space(layer: Conv2d, host: CpuFeatures) -> CutSpace:
    """What a convolution's kernel may be cut like: tiles fit registers, sizes divide."""
    blocks = _Blocks.of(layer, host)
    height, width, _ = layer.output.shape
    widest = blocks.registers if _of_batch(layer) else width
    tiles = [
        (pixels, vectors)
        for vectors in divisors(blocks.per_tile)
        for pixels in range(1, blocks.registers // vectors + 1)
    ]
    cuts = []
    for rows, (pixels, vectors) in itertools.product(divisors(height), tiles):
        flat = [False] if pixels <= widest else []
        flat += [True] if not _of_batch(layer) and blocks.joins(layer, rows, pixels) else []
        parts = divisors(blocks.count // vectors) if blocks.divided else [1]
        chunks = [blocks.count // part for part in parts]
        cuts += [Cut(rows, pixels, vectors, *each) for each in itertools.product(chunks, flat)]
    return CutSpace(cut_by_rule(layer, host), tuple(cuts))


def cut_by_rule(layer: Conv2d, host: CpuFeatures) -> Cut:
    """Cut ``layer``: tiles fit registers, tasks fit the cache, one image feeds all cores."""
    blocks = _Blocks.of(layer, host)
    height, width, _ = layer.output.shape
    batch = _of_batch(layer)
    flat = not batch and blocks.joins(layer, height, blocks.tile(height * width)[0])
    # One image alone should keep all cores busy, if there is enough of it. A dense layer is
    # bound by reading its weights: parts of it gain nothing.
    tasks = 1 if batch else max(1, min(2 * host.cores, layer.macs // TASK_MACS))
    pixels, vectors = blocks.tile(height * width if flat else 4 if batch else width)
    rows = height if flat or batch else _rows(layer, height, tasks)
    if flat:
        # By rows first: channels of a pixel that two cores write may share a line of their caches.
        rows = height // max(
            parts
            for parts in divisors(height)
            if parts <= tasks
            and 0 in (parts % host.cores, host.cores % parts)
            and blocks.joins(layer, height // parts, pixels)
        )
    wanted = -(-tasks // (height // rows))
    chunk = blocks.count
    if blocks.divided:
        tiles = blocks.count // vectors
        chunk = vectors * max(d for d in divisors(tiles) if d == 1 or tiles // d >= wanted)
    return Cut(rows, pixels, vectors, chunk, flat)


def _is_pointwise(layer: Conv2d) -> bool:
    return layer.weight_shape[1:3] == (1, 1) and layer.strides == (1, 1) and not any(layer.padding)


def _of_batch(layer: Conv2d) -> bool:
    """Whether images are a kernel's pixels: each is only one."""
    return _is_pointwise(layer) and layer.output.shape[:2] == (1, 1)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def divisors(n: int) -> list[int]:
    """All of them, ascending."""
    return [d for d in range(1, n + 1) if n % d == 0]


def _tile(width: int, blocks: _Blocks) -> tuple[int, int]:
    """Pixels and vectors of a tile: fewest cycles per useful dot product that ports allow.

    Where the weights of a tile exceed the first-level cache, they come from the second for each.

    Args:
        width: pixels of a row.
        blocks: of output channels, which vectors of a tile divide.
    """

    def cycles(tile: tuple[int, int]) -> float:
        pixels, vectors = tile
        waste = _round_up(width, pixels) / width
        copying = 1.1 if width % pixels else 1.0
        inside = blocks.inside if pixels == width else 1.0
        near = vectors * blocks.weight_bytes <= NEAR_BYTES
        fetching = 0.0 if near else 4 * blocks.lanes / FETCHED_BYTES / pixels
        return inside * waste * copying * max(dot_cycles(blocks.dot, pixels, vectors), fetching)

    tiles = [
        (pixels, vectors)
        for vectors in divisors(blocks.per_tile)
        for pixels in range(1, min(width, blocks.registers) + 1)
        if pixels * vectors <= blocks.registers
        and keeps_weights(blocks.dot, pixels, vectors, blocks.registers)
    ]
    return min(tiles, key=cycles)


def dot_cycles(dot: DotProduct | None, pixels: int, vectors: int) -> float:
    """Cycles of a dot product, in a tile that loads once what it multiplies.

    An instruction that does all is bound by its port, by loads, or by its latency; several are by
    how many begin in a cycle. Bytes are widened to words once for all pixels.
    """
    dots, loads = pixels * vectors, pixels + vectors
    if dot is None or dot.operations == 1:
        return max(1.0, loads / dots, CHAINS / dots)
    widened = 1 / pixels if (dot.left, dot.right) == ("int16", "int8") else 0.0
    return (dot.operations + loads / dots + widened) / ISSUED


def keeps_weights(dot: DotProduct | None, pixels: int, vectors: int, registers: int) -> bool:
    """Whether a tile's weights stay in registers beside its sums, as several instructions want."""
    return dot is None or dot.operations == 1 or (pixels + 1) * vectors <= registers + SPARE


def share_inside(layer: Conv2d, axis: int) -> float:
    """Share of products, over the rows (0) or columns (1) of the window, not with padding."""
    size, window = layer.input.shape[axis], layer.weight_shape[1 + axis]
    first = np.arange(layer.output.shape[axis]) * layer.strides[axis] - layer.padding[axis]
    at = first[:, None] + np.arange(window) * layer.dilation[axis]
    return float(((at >= 0) & (at < size)).mean())


def _flattens(height: int, width: int, pixels: int) -> bool:
    """Whether an image can be one row: its tiles fill it, and hold whole rows or parts of one.

    Overhanging codes are copied out by pixel. A tile that begins in one row and ends in the next
    reads no box of the input that TVM could describe.
    """
    return height * width % pixels == 0 and (pixels % width == 0 or width % pixels == 0)


def _rows(layer: Conv2d, height: int, tasks: int) -> int:
    """The most rows that fit the cache and leave ``tasks`` parts, but not fewer than a window's."""
    _, width, channels = layer.input.shape
    fitting = [
        rows
        for rows in divisors(height)
        if rows * layer.strides[0] * width * channels <= STAGE_BYTES
    ] or [1]
    tall = [rows for rows in fitting if rows >= layer.weight_shape[1]] or fitting[-1:]
    return max([rows for rows in tall if height // rows >= tasks] or tall[:1])
