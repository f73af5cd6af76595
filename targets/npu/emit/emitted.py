"""An instruction on its way into a program: with the bytes it touches, and where buffers lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from targets.npu.emit.touched_bytes import Span

MEMORIES = {"global.act": 0, "global.wgt": 1, "global.acc": 2, "global.par": 3}
"""Storage scope -> the ``mem`` field of LD and ST."""
ACT, WGT, ACC, PAR = range(4)


class Rows(NamedTuple):
    """Rows [begin, end) of a tensor, those of its border included."""

    begin: int
    end: int


@dataclass(frozen=True)
class Rolling:
    """How the rows of a tensor follow each other through a buffer; see ``rolling.py``.

    Attributes:
        row_bytes: from one row to the next.
        period: rows after which the first place is taken anew.
        overlap: rows behind a period that repeat the first ones of the next.
    """

    row_bytes: int
    period: int
    overlap: int

    @property
    def rows(self) -> int:
        """Rows that the buffer holds."""
        return self.period + self.overlap

    def read(self, row: int) -> int:
        """The place at which a window that begins with a row begins."""
        return row % self.period

    def written(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Runs of rows (begin, end) and the place of the first: all to which rows are written."""
        while begin < end:
            place = begin % self.period
            stop = min(end, begin - place + self.period)
            yield begin, stop, place
            again = min(stop, begin - place + self.overlap)
            if begin >= self.period and begin < again:
                yield begin, again, self.period + place
            begin = stop


@dataclass(frozen=True)
class Place:
    """Where a buffer of a function lies.

    Attributes:
        space: "dram0", "dram1", ... for a DRAM region, "mem0" ... for a memory.
        index: the region or the memory.
        address: of its first byte.
        itemsize: bytes of an element.
        dram: whether it lies in DRAM.
        rolling: of a tensor of which only some rows are in ACT at a time.
    """

    index: int
    address: int
    itemsize: int
    dram: bool
    rolling: Rolling | None = None

    @property
    def space(self) -> str:
        """The name of the region or memory in footprints."""
        return f"dram{self.index}" if self.dram else f"mem{self.index}"


@dataclass(frozen=True)
class Emitted:
    """An instruction and its footprint.

    Attributes:
        instruction: itself.
        reads: the bytes.
        writes: likewise.
        takes: rows that it reads of a tensor that rolls through ACT.
        makes: rows that it writes of one.
    """

    instruction: Any
    reads: tuple[Span, ...]
    writes: tuple[Span, ...]
    takes: Rows | None = None
    makes: Rows | None = None


def reach(extents: Iterable[int], strides: Iterable[int], last: int) -> int:
    """Bytes from the first byte touched to behind the last, for a box of runs of ``last`` bytes."""
    return sum((n - 1) * s for n, s in zip(extents, strides, strict=True)) + last
