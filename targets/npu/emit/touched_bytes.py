"""What is known of the bytes of a memory or DRAM region, in pieces that are touched alike.

A touch cuts at its two ends, and a write makes one piece of all that it covers. So there are at
most two pieces more than touches that are still of interest, and a walk over a program takes time
in proportion to its length.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Span:
    """Bytes [begin, end) of a memory or DRAM region; at least one."""

    space: str
    begin: int
    end: int


class TouchedBytes(Generic[T]):
    """One memory or DRAM region; ``T`` is what is known of a byte, at first ``untouched``."""

    def __init__(self, untouched: T) -> None:
        # Piece n is [_begins[n], _begins[n + 1]); the last one has no end.
        self._begins = [0]
        self._known = [untouched]

    def pieces(self, span: Span) -> list[T]:
        """What is known of those that share a byte with the span."""
        first = bisect_left(self._begins, span.begin + 1) - 1
        return self._known[first : bisect_left(self._begins, span.end, lo=first)]

    def change(self, span: Span, changed: Callable[[T], T]) -> None:
        """Let what is known of the span's bytes be what ``changed`` makes of it."""
        first, behind = self._cut(span.begin), self._cut(span.end)
        self._known[first:behind] = map(changed, self._known[first:behind])

    def cover(self, span: Span, known: T) -> None:
        """Let the span's bytes be one piece of which this is known."""
        first, behind = self._cut(span.begin), self._cut(span.end)
        self._begins[first:behind] = [span.begin]
        self._known[first:behind] = [known]

    def _cut(self, at: int) -> int:
        """The piece that begins at a byte; the one around it is cut there if need be."""
        n = bisect_left(self._begins, at)
        if n == len(self._begins) or self._begins[n] != at:
            self._begins.insert(n, at)
            self._known.insert(n, self._known[n - 1])
        return n
