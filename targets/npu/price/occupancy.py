"""How many of the array's multipliers have data while it works for a layer, and what leaves others.

    utilization = filled * busy

*filled* is decided by the layer's shape and the array's: columns without an output channel, rows
without an input, cycles in which a tile has no pixel. *Busy* is the share of the layer's time in
which the array works for it at all; what it waits for otherwise, ``stalls`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.accesses import accesses, lanes
from targets.npu.price.durations import duration

_FULL = Fraction(19, 20)
"""From here on, no reason is given."""


@dataclass(frozen=True)
class Occupancy:
    """Of the instructions of one layer on the MAC array.

    Attributes:
        work: cycles in which the array works.
        filled: share of its multipliers that have data then, in [0, 1]; 0 without work.
        why: what leaves the others without, such as "16 output channels meet 32 columns"; "" where
            nearly all have data.
    """

    work: int
    filled: float
    why: str


def occupancy(instructions: Sequence[isa.Instruction], macs: int, spec: NpuSpec) -> Occupancy:
    """Account for the multipliers.

    Args:
        instructions: of a layer.
        macs: that it needs.
        spec: the machine.
    """
    array = [i for i in instructions if isinstance(i, isa.Gemm | isa.Depthwise)]
    work = sum(duration(i, spec).work for i in array)
    if not work:
        return Occupancy(0, 0.0, "")
    filled = min(Fraction(1), Fraction(macs, lanes(array[0], spec) * spec.array.cols * work))
    why = "" if filled >= _FULL else _why(array, work, spec)
    return Occupancy(work, round(float(filled), 4), why)


def _why(array: Sequence[isa.Gemm | isa.Depthwise], work: int, spec: NpuSpec) -> str:
    """The one of columns, rows and pixels that is filled least."""
    passes = sum(_passes(i) for i in array)
    columns = Fraction(sum(_passes(i) * i.nvalid for i in array), passes)
    rows = Fraction(sum(accesses(i, spec).macs for i in array)) / (columns * passes)
    of_columns, of_rows = spec.array.cols, lanes(array[0], spec)
    least = min(columns / of_columns, rows / of_rows, Fraction(passes, work))
    if least == columns / of_columns:
        return f"{_mean(columns)} output channels meet {of_columns} columns"
    if least == rows / of_rows:
        if all(isinstance(i, isa.Depthwise) for i in array):
            return f"a depthwise channel feeds 1 of {of_rows} rows"
        return f"{_mean(rows)} inputs meet {of_rows} rows"
    tiles = sum(_tiles(i) for i in array)
    return (
        f"{_mean(Fraction(passes, tiles))} pixels meet a tile of {_mean(Fraction(work, tiles))} "
        "cycles, in which its weights are loaded"
    )


def _passes(i: isa.Gemm | isa.Depthwise) -> int:
    """Rows of sums that it adds to: each takes a cycle if nothing is in the way."""
    return i.m0 * i.m1 * _tiles(i)


def _tiles(i: isa.Gemm | isa.Depthwise) -> int:
    return i.k0 * i.k1 * i.k2 if isinstance(i, isa.Gemm) else i.kw * i.kh


def _mean(number: Fraction) -> str:
    whole = number.denominator == 1
    return str(number) if whole else f"{float(number):.1f} on average"
