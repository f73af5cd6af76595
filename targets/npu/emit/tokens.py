"""Derive dependency tokens from buffer hazards.

The compiler emits instructions in an order that is right one after the other. Units run ahead of
each other; a token from unit v to unit u makes u wait until an instruction of v has completed.
Wherever an instruction touches bytes that an earlier one of another unit touched, and one of the
two writes, there must be such a wait, directly or by way of others: a forward token for read after
write, a backward token for write after read.

    LD   load x          push MM                   x is there
    MM   sums of x       pop LD, push LD           x is there; x is no longer needed
    LD   load over x     pop MM                    x is no longer needed

Two facts keep the tokens few. A unit runs its instructions in order, so waiting for one of them is
waiting for all before it. And a wait is passed on: who waits for an instruction has also waited for
everything that this instruction had waited for.

A FIFO holds ``depth`` tokens. Where more would be on their way at once, a NOP takes the oldest one
early.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

from targets.npu.emit.touched_bytes import Span, TouchedBytes


@dataclass(frozen=True)
class Footprint:
    """What an instruction touches: its unit, the bytes it reads and the bytes it writes."""

    unit: int
    reads: tuple[Span, ...]
    writes: tuple[Span, ...]


@dataclass(slots=True)
class Waits:
    """Tokens of one instruction: masks of the units that it pops from and pushes to."""

    pop: int = 0
    push: int = 0


@dataclass(frozen=True)
class EarlyPop:
    """A NOP of ``unit`` that takes a token from ``source``, before instruction ``position``."""

    position: int
    unit: int
    source: int


UNITS = 4
_NEVER = (-1,) * UNITS


def derive_tokens(program: Sequence[Footprint], depth: int) -> tuple[list[Waits], list[EarlyPop]]:
    """The pops and pushes that make any interleaving of the units equal to program order.

    Args:
        program: footprints in program order.
        depth: tokens that a FIFO holds.

    Returns:
        One ``Waits`` per instruction, and the NOPs to insert.
    """
    waits = [Waits() for _ in program]
    spaces: _Spaces = defaultdict(lambda: TouchedBytes(_Touched()))
    # clock[u][v]: the last instruction of v that u knows to have completed
    clock = [list(_NEVER) for _ in range(UNITS)]
    known_at: list[tuple[int, ...]] = []  # the clock of an instruction's unit when it starts
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, step in enumerate(program):
        needed = _needed(step, spaces)
        # Later instructions first: what they waited for often makes the others superfluous.
        for last, source in sorted(zip(needed, range(UNITS), strict=True), reverse=True):
            if source == step.unit or last <= clock[step.unit][source]:
                continue
            waits[last].push |= 1 << step.unit
            waits[index].pop |= 1 << source
            pairs.setdefault((source, step.unit), []).append((last, index))
            merged = [max(a, b) for a, b in zip(clock[step.unit], known_at[last], strict=True)]
            merged[source] = last
            clock[step.unit] = merged
        known_at.append(tuple(clock[step.unit]))
        if step.reads:
            read = partial(_read, step.unit, index)
            for span in step.reads:
                spaces[span.space].change(span, read)
        for span in step.writes:
            spaces[span.space].cover(span, _Touched(step.unit, index))
    return waits, _early_pops(pairs, waits, depth)


def _needed(step: Footprint, spaces: _Spaces) -> list[int]:
    """Per unit, its last instruction that this one must follow; -1 for none."""
    needed = list(_NEVER)
    for span in (*step.reads, *step.writes):
        for writer, written, _ in spaces[span.space].pieces(span):
            needed[writer] = max(needed[writer], written)
    for span in step.writes:
        for touched in spaces[span.space].pieces(span):
            for unit, read in enumerate(touched.read):
                needed[unit] = max(needed[unit], read)
    return needed


class _Touched(NamedTuple):
    """Who touched a piece of memory last.

    What came before the last write is forgotten: that write waited for it, and who touches the
    piece next waits for that write.

    Attributes:
        writer: the unit that wrote it.
        written: the instruction that did; -1 for none.
        read: per unit, its last instruction that has read it since; -1 for none.
    """

    writer: int = 0
    written: int = -1
    read: tuple[int, ...] = _NEVER


_Spaces: TypeAlias = defaultdict[str, TouchedBytes[_Touched]]


def _read(unit: int, index: int, touched: _Touched) -> _Touched:
    writer, written, read = touched
    return _Touched(writer, written, (*read[:unit], index, *read[unit + 1 :]))


def _early_pops(
    pairs: dict[tuple[int, int], list[tuple[int, int]]], waits: list[Waits], depth: int
) -> list[EarlyPop]:
    """Where a FIFO would hold more than ``depth`` tokens, pop its oldest before the push."""
    early = []
    for (source, unit), tokens in pairs.items():
        waiting: deque[int] = deque()  # the instructions that pop what was pushed, oldest first
        for push, pop in tokens:
            while waiting and waiting[0] < push:
                waiting.popleft()
            if len(waiting) == depth:
                waits[waiting.popleft()].pop &= ~(1 << source)
                early.append(EarlyPop(push, unit, source))
            waiting.append(pop)
    return sorted(early, key=lambda e: e.position)
