"""Derive dependency tokens from buffer hazards.

The compiler emits instructions in an order that is right one after the other. Units run ahead of
each other; a token
from unit v to unit u makes u wait until an instruction of v has completed. Wherever an instruction
touches bytes that
an earlier one of another unit touched, and one of the two writes, there must be such a wait,
directly or by way of
others: a forward token for read after write, a backward token for write after read.

A FIFO holds ``depth`` tokens. Where more would be on their way at once, a NOP takes the oldest one
early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Span:
    """Bytes [begin, end) of a memory or DRAM region."""

    space: str
    begin: int
    end: int

    def meets(self, other: Span) -> bool:
        """Whether the two share a byte; the spaces are the same."""
        return self.begin < other.end and other.begin < self.end

    def covers(self, other: Span) -> bool:
        """Whether no byte of the other lies outside."""
        return self.begin <= other.begin and other.end <= self.end


@dataclass(frozen=True)
class Footprint:
    """What an instruction touches: its unit, the bytes it reads and the bytes it writes."""

    unit: int
    reads: tuple[Span, ...]
    writes: tuple[Span, ...]


@dataclass
class Waits:
    """Tokens of one instruction: the units it pops from and pushes to."""

    pop: set[int] = field(default_factory=set)
    push: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class EarlyPop:
    """A NOP of ``unit`` that takes a token from ``source``, before instruction ``position``."""

    position: int
    unit: int
    source: int


@dataclass(frozen=True)
class _Touch:
    span: Span
    index: int
    unit: int
    write: bool


UNITS = 4


def derive_tokens(program: Sequence[Footprint], depth: int) -> tuple[list[Waits], list[EarlyPop]]:
    """The pops and pushes that make any interleaving of the units equal to program order.

    Args:
        program: footprints in program order.
        depth: tokens that a FIFO holds.

    Returns:
        One ``Waits`` per instruction, and the NOPs to insert.
    """
    waits = [Waits() for _ in program]
    history: dict[str, list[_Touch]] = {}
    # clock[u][v]: the last instruction of v that u knows to have completed
    clock = [[-1] * UNITS for _ in range(UNITS)]
    known_at: list[tuple[int, ...]] = []
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, step in enumerate(program):
        needed = _needed(step, history)
        # Later instructions first: what they waited for often makes the others superfluous.
        for source, last in sorted(needed.items(), key=lambda item: -item[1]):
            if source == step.unit or last <= clock[step.unit][source]:
                continue
            waits[last].push.add(step.unit)
            waits[index].pop.add(source)
            pairs.setdefault((source, step.unit), []).append((last, index))
            merged = [max(a, b) for a, b in zip(clock[step.unit], known_at[last], strict=True)]
            merged[source] = max(merged[source], last)
            clock[step.unit] = merged
        known_at.append(tuple(clock[step.unit]))
        _remember(step, index, history)
    return waits, _early_pops(pairs, waits, depth)


def _needed(step: Footprint, history: dict[str, list[_Touch]]) -> dict[int, int]:
    """Unit -> its last instruction that this one must follow."""
    needed: dict[int, int] = {}
    for spans, writing in ((step.reads, False), (step.writes, True)):
        for span in spans:
            for touch in history.get(span.space, ()):
                if (writing or touch.write) and touch.span.meets(span):
                    needed[touch.unit] = max(needed.get(touch.unit, -1), touch.index)
    return needed


def _remember(step: Footprint, index: int, history: dict[str, list[_Touch]]) -> None:
    """Record what was touched; forget what a write covers: who follows the write follows that."""
    for span in step.writes:
        old = history.get(span.space, [])
        history[span.space] = [t for t in old if not span.covers(t.span)]
    for spans, writing in ((step.reads, False), (step.writes, True)):
        for span in spans:
            touches = history.setdefault(span.space, [])
            same = (
                t for t in touches if t.unit == step.unit and t.write == writing and t.span == span
            )
            previous = next(same, None)
            if previous is not None:
                touches.remove(previous)
            touches.append(_Touch(span, index, step.unit, writing))


def _early_pops(
    pairs: dict[tuple[int, int], list[tuple[int, int]]], waits: list[Waits], depth: int
) -> list[EarlyPop]:
    """Where a FIFO would hold more than ``depth`` tokens, pop its oldest before the push."""
    early = []
    for (source, unit), tokens in pairs.items():
        waiting: list[tuple[int, int]] = []
        for push, pop in tokens:
            waiting = [(p, q) for p, q in waiting if q > push]
            if len(waiting) == depth:
                _, oldest = waiting.pop(0)
                waits[oldest].pop.discard(source)
                early.append(EarlyPop(push, unit, source))
            waiting.append((push, pop))
    return sorted(early, key=lambda e: e.position)
