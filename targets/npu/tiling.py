"""How a convolution is cut to fit the scratchpads: row stripes, weight blocks, accumulator chunks.

stripe   ``rows`` output rows: their input rows and their output live in ACT, twice where there is
a next stripe
block    ``tiles`` column tiles whose weights live in WGT, twice where there is a next block
k block  ``k0`` reduction tiles, where not even one column tile's weights fit half of WGT
chunk    ``chunk_rows`` x ``chunk_columns`` output pixels whose sums live in one half of ACC
"""

from __future__ import annotations

from dataclasses import dataclass

from targets.errors import CapacityError
from targets.npu.conv_geometry import ConvGeometry, ceil_div
from targets.npu.intrinsics import RECORD_WORDS

MIN_STRIPES = 4
"""With fewer stripes the DMA of one has no compute of another to hide under."""

MAX_K0 = 255
"""Reduction tiles along k0 that one GEMM counts."""


@dataclass(frozen=True)
class ConvTiling:
    """Sizes of the tiles; see the head of this file.

    Attributes:
        rows: output rows of a stripe.
        tiles: column tiles of a weight block.
        k0: reduction tiles (along k0) of a weight block.
        chunk_rows: output rows whose sums one GEMM makes.
        chunk_columns: output columns of the same.
        rows_outer: whether stripes are the outer loop and weight blocks the inner one.
    """

    rows: int
    tiles: int
    k0: int
    chunk_rows: int
    chunk_columns: int
    rows_outer: bool


def tile_conv(g: ConvGeometry) -> ConvTiling:
    """Choose a tiling that fits, with little traffic and enough stripes to overlap.

    Raises:
        CapacityError: nothing fits; says which memory is too small by how much.
    """
    tiles, k0 = _weight_block(g)
    k_blocks = ceil_div(g.reduction[2], k0)
    half = acc_rows(g) // 2
    oh, ow, _ = g.out
    if k_blocks > 1 and ow > half:
        msg = f"{g.layer.name}: one output row needs {ow} accumulator rows, half of ACC has {half}"
        raise CapacityError(msg)
    most = min(oh, half // ow) if k_blocks > 1 else oh
    rows = _rows(g, tiles, most)
    stripes, blocks = ceil_div(oh, rows), ceil_div(g.tiles, tiles)
    weight_bytes = g.tiles * _tile_weight_bytes(g, g.reduction[2])
    input_bytes = g.rows_in(rows) * stripes * g.pitch
    rows_outer = stripes * weight_bytes + input_bytes < weight_bytes + blocks * input_bytes
    chunk_columns = ceil_div(ow, ceil_div(ow, half))
    chunk_rows = rows if k_blocks > 1 else min(rows, max(1, half // ow))
    chunk_rows = ceil_div(rows, ceil_div(rows, chunk_rows))
    return ConvTiling(rows, tiles, k0, chunk_rows, chunk_columns, rows_outer)


def acc_rows(g: ConvGeometry) -> int:
    """Rows of C int32 sums that ACC holds."""
    return g.spec.sram.acc.bytes // (4 * g.columns)


def _tile_weight_bytes(g: ConvGeometry, k0: int) -> int:
    return g.reduction[0] * g.reduction[1] * k0 * g.tile_bytes


def _weight_block(g: ConvGeometry) -> tuple[int, int]:
    """Column tiles and k0 tiles of a weight block."""
    k0 = g.reduction[2]
    long = k0 > MAX_K0
    unit = g.tiles_per_group if g.groups > 1 else 1  # a block of a grouped layer holds whole groups
    record = g.columns * RECORD_WORDS * 4
    wgt, par = g.spec.sram.wgt.bytes, g.spec.sram.par.bytes
    per_tile = _tile_weight_bytes(g, k0)
    if not long and g.tiles * per_tile <= wgt and g.tiles * record <= par:
        return g.tiles, k0
    tiles = min(wgt // 2 // per_tile, par // 2 // record) // unit * unit
    if tiles and not long:
        return tiles, k0
    if g.groups > 1 or par // 2 < record:
        msg = (
            f"{g.layer.name}: the weights of one group ({unit * per_tile} bytes) exceed half of WGT"
        )
        raise CapacityError(msg)
    k0 = min(wgt // 2 // _tile_weight_bytes(g, 1), MAX_K0)
    if k0 == 0:
        msg = (
            f"{g.layer.name}: a {g.kernel[0]}x{g.kernel[1]} kernel needs "
            f"{_tile_weight_bytes(g, 1)} bytes of weights per tile, half of WGT has {wgt // 2}"
        )
        raise CapacityError(msg)
    return 1, k0


def act_bytes(g: ConvGeometry, rows: int, tiles: int) -> int:
    """Bytes of ACT that stripes of ``rows`` take, both halves of the double buffers included."""
    oh, ow, k = g.out
    stripes, blocks = ceil_div(oh, rows), ceil_div(g.tiles, tiles)
    inputs = input_slot_bytes(g, rows) * min(2, stripes)
    if g.layer.requantize is None:
        return inputs
    kinds = 2 if g.layer.requantize.residual is not None else 1
    return inputs + rows * ow * min(block_channels(g, tiles), k) * kinds * min(2, stripes * blocks)


def input_slot_bytes(g: ConvGeometry, rows: int) -> int:
    """Bytes of one stripe's input; the array reads R bytes even where the last have no weight."""
    return g.rows_in(rows) * g.pitch + max(g.lanes, g.columns)


def block_channels(g: ConvGeometry, tiles: int) -> int:
    """Most output channels of a block of ``tiles`` column tiles."""
    if g.groups > 1:
        return tiles // g.tiles_per_group * g.group_channels_out
    return min(tiles * g.columns, g.out[2])


def _rows(g: ConvGeometry, tiles: int, most: int) -> int:
    """Rows of the tallest even stripe that fits; at least MIN_STRIPES of them if rows allow."""
    oh = g.out[0]
    capacity = g.spec.sram.act.bytes
    for stripes in range(min(oh, max(MIN_STRIPES, ceil_div(oh, most))), oh + 1):
        rows = ceil_div(oh, stripes)
        if rows <= most and act_bytes(g, rows, tiles) <= capacity:
            return rows
    msg = (
        f"{g.layer.name}: one output row with its input rows needs {act_bytes(g, 1, tiles)} bytes "
        f"of ACT, the machine has {capacity}"
    )
    raise CapacityError(msg)
