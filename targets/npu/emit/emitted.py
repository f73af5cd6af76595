"""An instruction on its way into a program: with the bytes it touches, and where buffers lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from targets.npu.emit.touched_bytes import Span

MEMORIES = {"global.act": 0, "global.wgt": 1, "global.acc": 2, "global.par": 3}
"""Storage scope -> the ``mem`` field of LD and ST."""
ACT, WGT, ACC, PAR = range(4)


@dataclass(frozen=True)
class Place:
    """Where a buffer of a function lies.

    Attributes:
        space: "dram0", "dram1", ... for a DRAM region, "mem0" ... for a memory.
        index: the region or the memory.
        address: of its first byte.
        itemsize: bytes of an element.
        dram: whether it lies in DRAM.
    """

    index: int
    address: int
    itemsize: int
    dram: bool

    @property
    def space(self) -> str:
        """The name of the region or memory in footprints."""
        return f"dram{self.index}" if self.dram else f"mem{self.index}"


@dataclass(frozen=True)
class Emitted:
    """An instruction and its footprint."""

    instruction: Any
    reads: tuple[Span, ...]
    writes: tuple[Span, ...]


def reach(extents: Iterable[int], strides: Iterable[int], last: int) -> int:
    """Bytes from the first byte touched to behind the last, for a box of runs of ``last`` bytes."""
    return sum((n - 1) * s for n, s in zip(extents, strides, strict=True)) + last
