"""The bytes that instructions touch: as spans that they are made with, and all of a program's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MEMORIES_OF_SPM = 4
"""Memories come before DRAM regions where both are numbered."""


@dataclass(frozen=True)
class Span:
    """Bytes [begin, end) of a memory, "mem0" ..., or DRAM region, "dram0" ...; at least one."""

    space: str
    begin: int
    end: int

    @property
    def row(self) -> tuple[int, int, int]:
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

    spans: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    @staticmethod
    def of(footprints: Iterable[tuple[Sequence[Span], Sequence[Span]]]) -> TouchedBytes:
        """Of what each instruction reads and writes."""
        rows: list[tuple[int, int, int]] = []
        ends = []
        for reads, writes in footprints:
            rows += [span.row for span in reads]
            read = len(rows)
            rows += [span.row for span in writes]
            ends.append((read, len(rows)))
        return TouchedBytes(
            np.array(rows, np.int64).reshape(-1, 3), np.array(ends, np.int64).reshape(-1, 2)
        )

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
