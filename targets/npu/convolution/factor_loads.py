"""How a tensor becomes weights: the copies of one block of a product's right operand into WGT.

Weights are tiles of [lane][column] bytes. A tensor is [pixel][channel], its channels head by head,
and a head is a group of the product.

    COLUMNS   lane = pixel, column = channel of the head    runs of a pixel's channels are copied
    ROWS      lane = channel of the head, column = pixel    turned on the way: LD ``transpose``

Each copy is a nest of loops over groups, column tiles, lanes and columns, in an order in which runs
that touch in DRAM are inner loops, so that they become one transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from targets.layers import Pairing
from targets.npu.convolution.geometry import ConvGeometry
from targets.npu.convolution.tile_cost import ConvTiling
from targets.npu.kinds.cost import ceil_div
from targets.npu.schedule.loops import Expr, smaller

_GROUP, _TILE, _LANE, _COLUMN = range(4)


@dataclass(frozen=True)
class FactorLoad:
    """One copy of a block.

    Attributes:
        loops: (extent, its largest value), outermost first.
        axes: which axis each loop is: 0 group, 1 column tile, 2 lane, 3 column.
        first: tile of each group with which it begins.
        source: byte of the tensor by (group, tile, lane, column).
        when: in which blocks it takes place; None for all.
    """

    loops: list[tuple[Expr, int]]
    axes: tuple[int, int, int, int]
    first: int | Expr
    source: Callable[[Expr, Expr, Expr, Expr], Expr]
    when: Expr | None

    def order(self, loops: list[Any]) -> list[Any]:
        """The loops' variables as (group, tile, lane, column)."""
        return [loops[self.axes.index(axis)] for axis in range(4)]


def factor_loads(
    g: ConvGeometry, t: ConvTiling, window: Expr, block: Expr, k_block: Expr
) -> Iterator[FactorLoad]:
    """The copies of a block: of whole tiles, and of those at the ends of groups.

    Args:
        g: the layer.
        t: its tiling.
        window: row of the tensor.
        block: of weights.
        k_block: of lanes.
    """
    assert g.factor is not None
    pixel, per_group = g.factor.pixel_bytes, g.tiles_per_group
    row = window * (g.factor.shape[1] * pixel)
    first_lane, most = k_block * (t.k0 * g.lanes), min(t.k0 * g.lanes, g.group_channels_in)
    whole = g.group_channels_in % most == 0
    lanes = most if whole else smaller(most, g.group_channels_in - first_lane)
    groups: tuple[Expr, int] = (1, 1)
    first_group, first_tile = 0, block * t.tiles
    if g.groups > 1:  # a block holds whole groups
        at_most = t.tiles // per_group
        left = g.groups if at_most == g.groups else smaller(at_most, g.groups - block * at_most)
        groups, first_group, first_tile = (left, at_most), block * at_most, 0

    def source(first: Expr) -> Callable[[Expr, Expr, Expr, Expr], Expr]:
        def byte(group: Expr, tile: Expr, lane: Expr, column: Expr) -> Expr:
            channel = (first_tile + first + tile) * g.columns + column
            head, deep = first_group + group, first_lane + lane
            if g.pairing is Pairing.ROWS:
                return row + channel * pixel + head * g.group_channels_in + deep
            return row + deep * pixel + head * g.group_channels_out + channel

        return byte

    for tiles, first, columns, when in _parts(g, t, block):
        extents = (groups, tiles, (lanes, most), (columns, columns))
        together = g.tail == g.columns or per_group == 1
        axes = (_LANE, _GROUP, _TILE, _COLUMN) if together else (_GROUP, _LANE, _TILE, _COLUMN)
        if g.pairing is Pairing.ROWS:
            axes = (_TILE, _COLUMN, _GROUP, _LANE)
        yield FactorLoad([extents[axis] for axis in axes], axes, first, source(first), when)


def _parts(
    g: ConvGeometry, t: ConvTiling, block: Expr
) -> Iterator[tuple[tuple[Expr, int], Expr, int, Expr | None]]:
    """Tiles of equal width: (how many of each group, the first, columns, in which blocks)."""
    per_group = g.tiles_per_group
    if g.groups > 1:
        full = per_group - (g.tail != g.columns)
        if full:
            yield (full, full), 0, g.columns, None
        if full < per_group:
            yield (1, 1), full, g.tail, None
        return
    blocks = ceil_div(g.tiles, t.tiles)
    full = g.tiles - (g.tail != g.columns)
    if full:
        even = full == blocks * t.tiles
        now = t.tiles if even else smaller(t.tiles, full - block * t.tiles)
        yield (now, t.tiles), 0, g.columns, None
    if full < g.tiles:
        yield (1, 1), full - block * t.tiles, g.tail, block == blocks - 1
