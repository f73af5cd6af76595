"""How a number between two codes becomes one of them: a value that travels with what is rounded.

A plan gives every value its rounding, and each stage hands it on: annotated graph, quantize,
integer forms, layers, instructions. Who can't execute one refuses it in words; nobody assumes one.

Integers are rounded by their right shift (``targets/arithmetic.py``). Real numbers, in float64, are
raised by an addend, and their floor is the code: that is what torch, Relax and tables compute. With
borders the addend is that of the number's level, which is its own floor.

**Why the addends are 2**-34 too large.** The real numbers in front of the rounding lie on the grid
``t / 2**s`` (t an integer, s the shift). The code k begins at ``k - a``, where a is 1/2 half up, 0
for the floor and ``1 - B/256`` behind a border B, and a number that stands there exactly must get
k. But free steps such as 0.0123 are not exact in binary, so the floating-point sum misses the grid
by some error e, and a number that comes out too small would go down. With the addend ``a +
2**-34`` and ``|e| <= 2**-35``:

* where the code begins or above, ``t / 2**s >= k - a``, the value floored is at least ``k - 2**-35
  + 2**-34 > k``;
* below, ``t / 2**s <= k - a - 2**-s``; for ``s <= 33`` the value floored is at most ``k - 2**-33 +
  2**-34 + 2**-35 < k``.

So floor gives the integer answer exactly. A sum of n products, made of codes and steps that were
rounded once each, has ``|e| <= (n + 5) * 2**-53 * A`` where A is the sum of the absolute products
in units of the output's step: the condition is ``(n + 5) * A <= 2**18`` (n = 576, A = 400:
satisfied; blocked summation, which BLAS uses, divides n by the number of partial sums). Codes that
are clamped are above suspicion: the clamp absorbs any error. With power-of-two steps nothing is
rounded (e = 0).

Without multipliers ``s <= 31``, for half of ``2**s`` is held in 32 bits. With them s exceeds 33
where the step of the output is some 2**18 times that of the sums: there a number that is less than
2**-34 short of a code gets it. Plans that round such sums to the floor are refused
(``MAX_FLOOR_SHIFT``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from targets.errors import UnsupportedError


class RoundingMode(IntEnum):
    """The rule; the values are the codes of REQ's flags."""

    FLOOR = 0
    HALF_UP = 1
    HALF_AWAY = 2
    HALF_EVEN = 3
    BORDER = 4


@dataclass(frozen=True)
class Rounding:
    """How what lies between two codes becomes one of them.

    Attributes:
        mode: the rule.
        borders: with BORDER, and only then: a row for all channels, or one per channel. Byte i is
            the fraction, in 1/256 of a step, from which on the code ``first + i`` is rounded up.
        first: the code that the rows begin at; 0 without any. Clamping to fewer codes leaves the
            rows as they are; ``table`` cuts them.

    Raises:
        ValueError: borders without BORDER or the other way round, or rows of several lengths.
    """

    mode: RoundingMode
    borders: tuple[bytes, ...] = ()
    first: int = 0

    def __post_init__(self) -> None:
        if (self.mode is RoundingMode.BORDER) != bool(self.borders):
            rows = f"{len(self.borders)} rows of borders"
            raise ValueError(f"{self.mode.name} with {rows}; give borders with BORDER only")
        if self.first and not self.borders:
            raise ValueError(f"borders begin at code {self.first}, but there are none")
        if len({len(row) for row in self.borders}) > 1:
            raise ValueError("the rows of borders differ in length; give one per level to each")

    @property
    def rows(self) -> npt.NDArray[np.uint8]:
        """uint8[1 or K, levels]: all borders."""
        return np.array([np.frombuffer(row, np.uint8) for row in self.borders])

    def table(self, low: int, high: int) -> npt.NDArray[np.uint8]:
        """uint8[1 or K, high - low]: the borders between the codes ``low`` and ``high``.

        Raises:
            ValueError: codes beyond the rows.
        """
        rows = self.rows
        if low < self.first or high - self.first > rows.shape[1]:
            last = self.first + rows.shape[1]
            raise ValueError(f"codes [{low}, {high}]; borders reach from {self.first} to {last}")
        return rows[:, low - self.first : high - self.first]


FLOOR = Rounding(RoundingMode.FLOOR)
HALF_UP = Rounding(RoundingMode.HALF_UP)
HALF_BORDER = 128
"""The border that rounds half up."""
MAX_BORDER_BITS = 4
"""Of codes that are rounded by borders, a byte for each but one of them."""

SLACK = 2.0**-34
"""Makes up for the errors of float64; see above."""
HALF = 0.5 + SLACK
ADDENDS = {FLOOR: SLACK, HALF_UP: HALF}
"""What float64 adds to real numbers before the floor, for roundings that add the same to all."""
MAX_FLOOR_SHIFT = 33
"""Widest right shift at which the floor of float64 is that of the integers."""


def real_addends(borders: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """What float64 adds to a real number of each level before the floor, of the same shape."""
    addends: npt.NDArray[np.float64] = 1.0 - borders / 256 + SLACK
    return addends


def round_reals(
    x: npt.ArrayLike, rounding: Rounding, where: str, zero_point: int = 0
) -> npt.NDArray[np.float64]:
    """Real numbers, in units of the step and without zero point, to whole ones.

    Args:
        x: float64[...]; with a row of borders per channel [..., K], or [..., 1] for all of them.
        rounding: any that integers are rounded by here.
        where: they are rounded, for the error.
        zero_point: what is added to them later, by which borders are found.

    Raises:
        UnsupportedError: real numbers can't be rounded so.
    """
    check_executed(rounding, where, "real numbers")
    x = np.asarray(x, np.float64)
    if rounding.mode is RoundingMode.BORDER:
        rows = rounding.rows
        level = np.floor(x + SLACK) + (zero_point - rounding.first)
        level = np.clip(level, 0, rows.shape[1] - 1).astype(np.int64)
        row = np.arange(len(rows)) if len(rows) > 1 else 0
        addends = real_addends(rows)[row, level]
    else:
        addends = np.float64(ADDENDS[rounding])
    whole: npt.NDArray[np.float64] = np.floor(x + addends)
    return whole


def check_executed(rounding: Rounding, where: str, what: str, *, borders: bool = True) -> None:
    """Refuse a rounding, for who rounds ``what`` by others only.

    Args:
        rounding: that is wanted.
        where: for the error.
        what: is rounded, or who rounds.
        borders: whether it can be done by borders.

    Raises:
        UnsupportedError: it is neither half up nor the floor, nor by borders where these can be.
    """
    executed = rounding in ADDENDS or (borders and rounding.mode is RoundingMode.BORDER)
    if not executed:
        known = "HALF_UP, FLOOR or BORDER" if borders else "HALF_UP or FLOOR"
        raise UnsupportedError(
            f"{where}: rounds by {rounding.mode.name}, but {what} only by {known}. "
            "Use one of these."
        )
