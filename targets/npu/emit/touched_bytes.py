"""What is known of the bytes of a memory or DRAM region, in pieces that are touched alike.

A touch cuts at its two ends, and a write makes one piece of all that it covers. So there are at
most two pieces more than touches that are still of interest, and a walk over a program takes time
in proportion to its length.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
_NO_BYTES = range(0), 0


@dataclass(frozen=True)
class Span:
    """Bytes [begin, end) of a memory or DRAM region; at least one."""

    space: str
    begin: int
    end: int

    def moved(self, by: Mapping[str, tuple[range, int]]) -> Span:
        """The same bytes, further on if they are of those; see ``Emitted.moved``."""
        which, further = by.get(self.space, _NO_BYTES)
        if not further or self.begin not in which:
            return self
        return Span(self.space, self.begin + further, self.end + further)


class TouchedBytes(Generic[T]):
    """One memory or DRAM region.

    Attributes:
        known: what is known of the bytes of each piece; ``T`` is of a byte.
    """

    def __init__(self, untouched: T) -> None:
        """Start with one piece; ``untouched`` is known of it."""
        # Piece n is [_begins[n], _begins[n + 1]); the last one has no end.
        self._begins = [0]
        self.known = [untouched]

    def pieces(self, span: Span) -> range:
        """The pieces that are the bytes of a span; what lies across its ends is cut there."""
        begins, known = self._begins, self.known
        first = bisect_left(begins, span.begin)
        if first == len(begins) or begins[first] != span.begin:
            begins.insert(first, span.begin)
            known.insert(first, known[first - 1])
        behind = bisect_left(begins, span.end, first + 1)
        if behind == len(begins) or begins[behind] != span.end:
            begins.insert(behind, span.end)
            known.insert(behind, known[behind - 1])
        return range(first, behind)

    def cover(self, pieces: range, known: T) -> None:
        """Make one piece of some, of which this is known."""
        self._begins[pieces.start : pieces.stop] = [self._begins[pieces.start]]
        self.known[pieces.start : pieces.stop] = [known]
