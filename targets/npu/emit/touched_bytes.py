"""The bytes that instructions touch: as spans that they are made with, and all of a program's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from targets.npu.emit.numbers import Numbers, Table

MEMORIES_OF_SPM = 4
"""Memories come before DRAM regions where both are numbered."""


@dataclass(frozen=True)
class Span:
    """Bytes [begin, end) of a memory, "mem0" ..., or DRAM region, "dram0" ...; at least one.

    Of several instructions both are arrays.
    """

    space: str
    begin: Numbers
    end: Numbers

    @property
    def row(self) -> tuple[int, Numbers, Numbers]:
        """Number of the memory or region, begin and end."""
        memory = self.space.startswith("mem")
        number = int(self.space[3:]) if memory else MEMORIES_OF_SPM + int(self.space[4:])
        return number, self.begin, self.end


class TouchedBytes(NamedTuple):
    """Those of some instructions.

    Attributes:
        spans: memory or region, begin and end, int64[m, 3]; of each instruction what it reads and
            then what it writes.
        ends: behind what an instruction reads, and behind what it writes, int64[n, 2].
    """

    spans: Table
    ends: Table

    @staticmethod
    def of(
        footprints: Sequence[tuple[Sequence[Span], Sequence[Span]]], order: Table | None = None
    ) -> TouchedBytes:
        """Of what instructions read and write.

        Args:
            footprints: of each instruction, or of several that differ in where they are.
            order: int64[n, 2], of each instruction which of these it has, and at which place; None
                if there is one of each.
        """
        if order is None:
            order = np.stack([np.arange(len(footprints)), np.zeros(len(footprints), np.int64)], 1)
        which, place = order.T
        counts = np.zeros(len(footprints), np.int64)
        np.maximum.at(counts, which, place + 1)
        reads = np.array([len(each) for each, _ in footprints], np.int64)
        sizes = reads + np.array([len(each) for _, each in footprints], np.int64)
        firsts = np.cumsum(sizes * counts) - sizes * counts
        spans = np.empty((int((sizes * counts).sum()), 3), np.int64)
        for (read, written), size, first, count in zip(
            footprints, sizes.tolist(), firsts.tolist(), counts.tolist(), strict=True
        ):
            for n, span in enumerate((*read, *written)):
                rows = spans[first + n : first + size * count : size]
                for column, number in enumerate(span.row):
                    rows[:, column] = number[:count] if isinstance(number, np.ndarray) else number
        mine = sizes[which]
        ends = np.cumsum(mine)
        first = firsts[which] + place * mine - (ends - mine)
        at = np.repeat(first, mine) + np.arange(mine.sum())
        return TouchedBytes(spans[at], np.stack([ends - mine + reads[which], ends], 1))

    @staticmethod
    def joined(parts: Sequence[TouchedBytes]) -> TouchedBytes:
        """Of one sequence of instructions behind another."""
        sizes = np.cumsum([0, *(len(part.spans) for part in parts)])
        ends = [part.ends + size for part, size in zip(parts, sizes, strict=False)]
        return TouchedBytes(np.concatenate([part.spans for part in parts]), np.concatenate(ends))

    def part(self, first: int, last: int) -> TouchedBytes:
        """Of the instructions [first, last)."""
        begin = self.ends[first - 1, 1] if first else 0
        end = self.ends[last - 1, 1] if last else 0
        return TouchedBytes(self.spans[begin:end], self.ends[first:last] - begin)

    def moved(self, memory: int, which: range, further: int) -> TouchedBytes:
        """The same, but those of a memory that begin among some bytes lie further on."""
        there = (self.spans[:, 0] == memory) & (self.spans[:, 1] >= which.start)
        there &= self.spans[:, 1] < which.stop
        return self._replace(spans=self.spans + np.outer(there * further, [0, 1, 1]))
