"""How a convolution is cut to fit the scratchpads: row stripes, weight blocks, accumulator chunks.

stripe   ``rows`` output rows: their input rows and their output live in ACT, twice where there is
         a next stripe
block    ``tiles`` column tiles whose weights live in WGT, twice where there is a next block
k block  ``k0`` reduction tiles, where a block's weights are too many for half of WGT; the sums of
         all tiles of the block wait in ACC while its k blocks go by
piece    what a k block, or a block of channels, multiplies of a stripe, where ACT does not hold
         more; a k block may then be of ``kernel_rows``, too
chunk    ``chunk_rows`` x ``chunk_columns`` output pixels whose sums live in one half of ACC

Of all that fit, the one with the fewest estimated cycles is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from targets.errors import CapacityError
from targets.npu.convolution.geometry import MAX_K0, MAX_VALID, ConvGeometry
from targets.npu.convolution.tile_cost import (
    ConvTiling,
    block_channels,
    k_blocks,
    piece_bytes,
    weight_bytes,
)
from targets.npu.kinds.cost import ceil_div

MAX_ACC_SLOTS = 8
"""Chunks whose sums may wait for the vector unit, or for their store, at the same time."""


def tilings(g: ConvGeometry) -> Iterator[ConvTiling]:
    """All tilings of few sizes that fit; those in pieces only where there are no others.

    Pieces are loaded again for each block of weights, but for those of a depthwise layer: taller
    stripes of fewer channels load fewer rows twice, so these are always among them.
    """
    if g.most_valid > MAX_VALID:
        return
    heights = stripe_rows(g)
    fitting = False
    for tiles, k0 in dict.fromkeys(_weight_blocks(g)):  # several counts cut into the same parts
        for rows in heights:
            for tiling in _fit(g, tiles, k0, rows):
                if row_by_row(g, tiling):
                    fitting = True
                    yield tiling
    if g.stripe is not None or not may_be_in_pieces(g):
        return
    if fitting and (not g.depthwise or g.input.near):
        return
    for tiles, kernel_rows, k0 in dict.fromkeys(_pieces(g)):
        of_channels = kernel_rows == g.kernel[0] and tiles < g.tiles
        if fitting and not of_channels:
            continue
        for rows in heights:
            yield from _fit_pieces(g, tiles, kernel_rows, k0, rows)


def row_by_row(g: ConvGeometry, t: ConvTiling) -> bool:
    """Whether a stripe has all channels before the next one, where that matters."""
    return g.stripe is None or t.rows_outer or t.tiles >= g.tiles


def no_tiling_fits(g: ConvGeometry) -> str:
    """Why there is none: which memory is too small by how much, or that a tile is too deep."""
    if g.most_valid > MAX_VALID:
        return (
            f"{g.layer.name}: {g.most_valid} lanes of the array have work, GEMM counts {MAX_VALID}"
        )
    if may_be_in_pieces(g):
        pieces = list(_pieces(g))
        return _why_no_stripe(g, pieces[-1], in_pieces=True) if pieces else _why_no_block(g)
    blocks = list(_weight_blocks(g))
    if not blocks:
        return _why_no_block(g)
    tiles, k0 = blocks[-1]
    return _why_no_stripe(g, (tiles, g.kernel[0], k0), in_pieces=False)


def acc_rows(g: ConvGeometry) -> int:
    """Rows of C int32 sums that ACC holds."""
    return g.spec.sram.acc.bytes // (4 * g.columns)


def acc_slots(g: ConvGeometry, t: ConvTiling) -> int:
    """Chunks whose sums are in ACC at the same time.

    Raises:
        CapacityError: those that wait for the next block of weights have to be, and are more.
    """
    slots = min(MAX_ACC_SLOTS, acc_rows(g) // (t.chunk_rows * t.chunk_columns))
    if math.prod(k_blocks(g, t)) > 1 and t.tiles > slots:
        raise CapacityError(
            f"{g.layer.name}: the sums of {t.tiles} column tiles wait in ACC for the next block of "
            f"weights, which has room for {slots}. Cut it into blocks of fewer tiles."
        )
    return slots


def input_slot_bytes(g: ConvGeometry, t: ConvTiling) -> int:
    """Bytes of one stripe's input, or of a piece of it, and what the array reads behind it."""
    if g.input.near:
        return 0
    pixels = g.rows_in(t.rows, t.kernel_rows) * g.width_in
    return pixels * piece_bytes(g, t) + g.spec.array.overrun


def act_bytes(g: ConvGeometry, t: ConvTiling) -> int:
    """Bytes of ACT that a tiling takes, both halves of the double buffers included."""
    oh, ow, k = g.out
    stripes, blocks = ceil_div(oh, t.rows), ceil_div(g.tiles, t.tiles)
    loads = stripes * blocks * math.prod(k_blocks(g, t)) if t.in_pieces else stripes
    inputs = input_slot_bytes(g, t) * min(2, loads)
    if g.layer.requantize is None:
        return inputs
    beside = int(not g.output.near) + int(g.residual is not None and not g.residual.near)
    output = t.rows * ow * min(block_channels(g, t.tiles), k) * g.output.bits // 8
    return inputs + output * beside * min(2, stripes * blocks)


def _weight_blocks(g: ConvGeometry) -> Iterator[tuple[int, int]]:
    """(column tiles, k0 tiles) of weight blocks that fit, largest first."""
    unit = g.block_unit
    wgt, par = g.spec.sram.wgt.bytes, g.spec.sram.par.bytes
    kh, _, k0 = g.reduction
    if k0 <= MAX_K0 or g.passes is not None:
        for count in _few(g.tiles // unit):
            tiles = ceil_div(g.tiles // unit, count) * unit
            slots = 2 if g.windowed else min(2, ceil_div(g.tiles, tiles))
            fits = slots * weight_bytes(g, tiles, k0, kh) <= wgt
            if fits and slots * record_bytes(g, tiles) <= par:
                yield tiles, k0
    if g.groups > 1 or par // 2 < record_bytes(g, 1):
        return
    for count in _few(k0):
        part = ceil_div(k0, count)
        if g.passes is not None:
            part = ceil_div(part, g.passes.tiles) * g.passes.tiles
        if count == 1 or part == k0 or (part > MAX_K0 and g.passes is None):
            continue
        for tiles in range(min(MAX_ACC_SLOTS, g.tiles), 0, -1):
            fits = 2 * weight_bytes(g, tiles, part, kh) <= wgt
            if fits and 2 * record_bytes(g, tiles) <= par:
                yield tiles, part


def may_be_in_pieces(g: ConvGeometry) -> bool:
    """Whether there is code for it: the weights are constants whose products are not scaled.

    A row of few channels is multiplied as a whole.
    """
    return g.factor is None and g.passes is None and not g.folded


def _pieces(g: ConvGeometry) -> Iterator[tuple[int, int, int]]:
    """(column tiles, kernel rows, k0 tiles) of weight blocks that fit, largest first.

    All channels by some kernel rows are among them, and so are some channels by all kernel rows.
    """
    unit = g.block_unit
    wgt, par = g.spec.sram.wgt.bytes, g.spec.sram.par.bytes
    kh, _, k0 = g.reduction
    for rows in dict.fromkeys(ceil_div(kh, count) for count in _few(kh)):
        for deep in dict.fromkeys(ceil_div(k0, count) for count in _few(1 if g.by_channel else k0)):
            if deep > MAX_K0:
                continue
            for count in _few(g.tiles // unit):
                tiles = ceil_div(g.tiles // unit, count) * unit
                slots = 2 if tiles < g.tiles or rows < kh or deep < k0 else 1
                records = record_bytes(g, tiles) * min(2, ceil_div(g.tiles, tiles))
                if slots * weight_bytes(g, tiles, deep, rows) <= wgt and records <= par:
                    yield tiles, rows, deep


def record_bytes(g: ConvGeometry, tiles: int) -> int:
    """Of the parameters of a block, room for those of whole tiles."""
    return 4 * int(g.parameter_words(tiles * g.columns, tiles))


def _few(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to ``most``: into how many parts to cut.

    Costs change slowly with the number of parts, so steps of a half or a third are tried for far
    fewer estimates than all numbers.
    """
    counts = {most}
    step = 1
    while step <= most:
        counts |= {n for n in (step, step * 3 // 2) if n <= most}
        step *= 2
    return sorted(counts)


def stripe_rows(g: ConvGeometry) -> list[int]:
    """Heights of stripes, tallest first; each divides the image as evenly as it goes."""
    oh = g.out[0]
    if g.windowed:  # no stripe is of two windows
        whole = g.window_rows
        return [rows for rows in range(whole, 0, -1) if whole % rows == 0]
    if g.stripe is not None:
        fewest, most = g.stripe
        return list(range(most, fewest - 1, -1))
    return sorted({ceil_div(oh, stripes) for stripes in range(1, oh + 1)}, reverse=True)


def _fit(g: ConvGeometry, tiles: int, k0: int, rows: int) -> Iterator[ConvTiling]:
    """Tilings of these sizes, if ACT and ACC hold them."""
    # Half of ACC, so that sums of one chunk are requantized while those of the next are made.
    (kh, _, all_k0), ow = g.reduction, g.out[1]
    whole = ConvTiling(rows, tiles, k0, rows, ow, rows_outer=False, kernel_rows=kh)
    if act_bytes(g, whole) > g.act_bytes:
        return
    if k0 < all_k0:
        if max(tiles, 2) * rows * ow <= acc_rows(g):
            yield whole
        return
    chunk_rows, chunk_columns = _chunk(g, rows)
    for rows_outer in (True,) if g.windowed else (False, True):
        yield ConvTiling(rows, tiles, k0, chunk_rows, chunk_columns, rows_outer, kh)


def _chunk(g: ConvGeometry, rows: int) -> tuple[int, int]:
    """Rows and columns of the chunks of a stripe.

    They are as equal as possible: a narrow last one would not cover the loading of its weights.
    """
    ow, half = g.out[1], acc_rows(g) // 2
    columns = ceil_div(ow, ceil_div(ow, half))
    most = min(rows, max(1, half // ow))
    return ceil_div(rows, ceil_div(rows, most)), columns


def _fit_pieces(
    g: ConvGeometry, tiles: int, kernel_rows: int, k0: int, rows: int
) -> Iterator[ConvTiling]:
    """The same in pieces: blocks of weights are the outer loop, so that they are loaded once."""
    (kh, _, all_k0), ow, half = g.reduction, g.out[1], acc_rows(g) // 2
    whole = kernel_rows == kh and k0 == all_k0
    chunk = _chunk(g, rows) if whole else (rows, ow)
    # The sums of all tiles of a block wait for the next k block.
    waiting = 0 if whole else tiles
    if rows * ow * waiting > half or waiting > MAX_ACC_SLOTS // 2:
        return
    tiling = ConvTiling(rows, tiles, k0, *chunk, False, kernel_rows, in_pieces=True)
    if act_bytes(g, tiling) <= g.act_bytes:
        yield tiling


def _why_no_block(g: ConvGeometry) -> str:
    wgt, par = g.spec.sram.wgt.bytes, g.spec.sram.par.bytes
    record = record_bytes(g, 1)
    if par // 2 < record:
        half = par // 2
        return f"{g.layer.name}: a tile's records need {record} bytes, half of PAR has {half}"
    if g.groups > 1 and par // 2 < (records := record_bytes(g, g.tiles_per_group)):
        return (
            f"{g.layer.name}: the records of one group ({records} bytes) exceed half of PAR "
            f"({par // 2})"
        )
    rows = 1 if may_be_in_pieces(g) else g.kernel[0]
    if g.groups > 1:
        needed = weight_bytes(g, g.tiles_per_group, g.reduction[2], rows)
        return (
            f"{g.layer.name}: the weights of one group ({needed} bytes) exceed half of WGT "
            f"({wgt // 2})"
        )
    kernel = f"a {g.kernel[0]}x{g.kernel[1]} kernel"
    return (
        f"{g.layer.name}: {kernel if rows > 1 else f'a row of {kernel}'} needs "
        f"{weight_bytes(g, 1, 1, rows)} bytes of weights per tile, half of WGT has {wgt // 2}"
    )


def _why_no_stripe(g: ConvGeometry, block: tuple[int, int, int], *, in_pieces: bool) -> str:
    tiles, kernel_rows, k0 = block
    row = ConvTiling(1, tiles, k0, 1, g.out[1], False, kernel_rows, in_pieces)
    needed, capacity = act_bytes(g, row), g.act_bytes
    if needed > capacity:
        return (
            f"{g.layer.name}: one output row with its input rows needs {needed} bytes of ACT, "
            f"the machine has {capacity}"
        )
    half = acc_rows(g) // 2
    return (
        f"{g.layer.name}: one output row needs {g.out[1]} accumulator rows, half of ACC has {half}"
    )
