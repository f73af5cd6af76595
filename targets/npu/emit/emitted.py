"""Instructions on their way into a program: with the bytes they touch, and where buffers lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from targets.npu.emit.numbers import Numbers, Table
from targets.npu.emit.touched_bytes import Span

MEMORIES = {"global.act": 0, "global.wgt": 1, "global.acc": 2, "global.par": 3}
"""Storage scope -> the ``mem`` field of LD and ST."""
ACT, WGT, ACC, PAR = range(4)


class Rows(NamedTuple):
    """Rows [begin, end) of a tensor, those of its border included."""

    begin: Numbers
    end: Numbers


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

    def read(self, row: Numbers) -> Numbers:
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
    """An instruction and its footprint; or several, which differ in addresses and rows alone.

    Attributes:
        instruction: itself; addresses of several, and their bytes and rows, are arrays.
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

    @cached_property
    def _different(self) -> dict[str, list[int]]:
        fields = vars(self.instruction).items()
        return {name: each.tolist() for name, each in fields if isinstance(each, np.ndarray)}

    def at(self, place: int, pop: int = 0, push: int = 0) -> Any:
        """The instruction at a place of its addresses, with tokens."""
        here = {name: numbers[place] for name, numbers in self._different.items()}
        return replace(self.instruction, **here, pop=pop, push=push)


@dataclass(frozen=True)
class Emission:
    """Instructions of layers in order.

    Attributes:
        emitted: all that are in it, and maybe others.
        order: int64[n, 3], of each instruction its layer, which of ``emitted`` it is, and the place
            of its addresses in that.
    """

    emitted: Sequence[Emitted]
    order: Table

    @staticmethod
    def of(emitted: Sequence[Emitted], owners: int | Sequence[int]) -> Emission:
        """Of instructions one by one, and their layers."""
        order = np.zeros((len(emitted), 3), np.int64)
        order[:, 0], order[:, 1] = owners, np.arange(len(emitted))
        return Emission(emitted, order)

    @staticmethod
    def joined(parts: Sequence[Emission]) -> Emission:
        """One behind another."""
        firsts = np.cumsum([0, *(len(part.emitted) for part in parts)])
        orders = [part.order + np.array([0, n, 0]) for part, n in zip(parts, firsts, strict=False)]
        return Emission([each for part in parts for each in part.emitted], np.concatenate(orders))

    def part(self, which: slice | Table) -> Emission:
        """Some of them."""
        return replace(self, order=self.order[which])

    def __len__(self) -> int:
        return len(self.order)

    @property
    def takes(self) -> list[Rows | None]:
        """Rows that each of them reads of a tensor that rolls through ACT."""
        return self._rows([each.takes for each in self.emitted])

    @property
    def makes(self) -> list[Rows | None]:
        """Rows that each of them writes of one."""
        return self._rows([each.makes for each in self.emitted])

    def _rows(self, given: Sequence[Rows | None]) -> list[Rows | None]:
        listed = [
            [Rows(*each) for each in np.stack(np.atleast_1d(*rows), 1).tolist()] if rows else [None]
            for rows in given
        ]
        order = self.order[:, 1:].tolist()
        return [listed[which][place % len(listed[which])] for which, place in order]


def reach(extents: Iterable[int], strides: Iterable[int], last: int) -> int:
    """Bytes from the first byte touched to behind the last, for a box of runs of ``last`` bytes."""
    return sum((n - 1) * s for n, s in zip(extents, strides, strict=True)) + last
