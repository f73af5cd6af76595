"""Products scaled by group of input channels: which GEMMs a column tile needs, and their factors.

A GEMM has one factor, so its reduction tiles lie within a group of input channels. Where columns of
a tile have different factors in a group, the array passes over the group once for each of them,
with weights of the other columns 0. A group whose weights would not fit is cut into pieces, each
with the factors of the group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from targets.npu.kinds.cost import ceil_div
from targets.product_factors import ProductFactors, Shifts, shifts_of

NOTHING = -1
"""In a table of shifts: the pass is for other tiles only."""


@dataclass(frozen=True, eq=False)
class ProductPasses:
    """The passes over one layer's input, the same number for all column tiles.

    Attributes:
        piece: elements of the reduction axis that a pass covers; the last piece may have fewer.
        pieces: how many there are.
        each: passes over a piece.
        last: elements of the last piece.
        lanes: of a reduction tile.
        shifts: the distinct factors.
        table: int[column tiles, pieces * each], indices into ``shifts``, or NOTHING.
        columns: bool[column tiles, pieces * each, columns], those that a pass is for.
    """

    piece: int
    pieces: int
    each: int
    last: int
    lanes: int
    shifts: tuple[Shifts, ...]
    table: npt.NDArray[np.int64]
    columns: npt.NDArray[np.bool_]

    @property
    def count(self) -> int:
        """Passes of a column tile."""
        return self.pieces * self.each

    @property
    def tiles(self) -> int:
        """Reduction tiles of a whole piece, for one kernel tap."""
        return ceil_div(self.piece, self.lanes)

    def lengths(self) -> Iterator[tuple[int, bool | None]]:
        """Elements of pieces, and whether so many are in the last one; None if all are alike."""
        if self.last == self.piece:
            yield self.piece, None
        else:
            if self.pieces > 1:
                yield self.piece, False
            yield self.last, True

    def where(self, shift: int) -> list[tuple[int, int]]:
        """Runs [first, last] of ``tile * count + pass`` that have one of ``shifts``."""
        places = np.flatnonzero(self.table.reshape(-1) == shift)
        cuts = np.flatnonzero(np.diff(places) > 1) + 1
        return [(int(run[0]), int(run[-1])) for run in np.split(places, cuts) if run.size]


def product_passes(
    factors: ProductFactors,
    rows: npt.NDArray[np.int64],
    length: int,
    lanes: int,
    most: int,
    unit: int,
) -> ProductPasses:
    """The passes of a layer.

    Args:
        factors: of the layer.
        rows: int[column tiles, columns], the output channel of each column, -1 where there is none.
        length: of the reduction axis, of one kernel tap.
        lanes: of a reduction tile.
        most: reduction tiles that a pass may have.
        unit: elements of which a piece is made, so that it begins with a whole byte.
    """
    whole = length if factors.groups == 1 else factors.channels
    piece = _piece(whole, lanes * most, unit, even=factors.groups > 1)
    pieces = ceil_div(length, piece)
    group = np.minimum(np.arange(pieces) * piece // whole, factors.groups - 1)
    # [tiles, columns, pieces], 0 where a tile has no channel
    of_column = np.where(rows[..., None] >= 0, factors.factors[rows][..., group], 0)
    fraction = factors.fraction
    distinct = [int(f) for f in np.unique(of_column) if f]
    shifts = tuple(found for f in distinct if (found := shifts_of(f, fraction)) is not None)
    used = [[np.unique(part[part > 0]) for part in tile.T] for tile in of_column]
    each = max(len(present) for tile in used for present in tile)
    table = np.full((len(rows), pieces * each), NOTHING, np.int64)
    columns = np.zeros((len(rows), pieces * each, rows.shape[1]), bool)
    for t, tile in enumerate(used):
        for p, present in enumerate(tile):
            for n, factor in enumerate(present):
                table[t, p * each + n] = distinct.index(factor)
                columns[t, p * each + n] = of_column[t, :, p] == factor
    last = length - (pieces - 1) * piece
    return ProductPasses(piece, pieces, each, last, lanes, shifts, table, columns)


def _piece(whole: int, most: int, unit: int, *, even: bool) -> int:
    """The largest part of a group that fits; with ``even`` one that divides it."""
    if whole <= most:
        return whole
    if not even:
        return most
    fitting = (whole // n for n in range(2, whole + 1) if whole % n == 0)
    return next(part for part in fitting if part <= most and part % unit == 0)
