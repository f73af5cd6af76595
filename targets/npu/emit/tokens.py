"""Derive dependency tokens from hazards.

The compiler emits instructions in an order that is right one after the other. Units run ahead of
each other; a token from unit v to unit u makes u wait until an instruction of v has completed.
Wherever an instruction needs an earlier one of another unit (``hazards.py``), there must be such a
wait, directly or by way of others: a forward token for read after write, a backward token for write
after read.

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

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass


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


def derive_tokens(
    order: Sequence[int], units: Sequence[int], needs: Sequence[Collection[int]], depth: int
) -> tuple[list[Waits], list[EarlyPop]]:
    """The pops and pushes that make any interleaving of the units equal to an order.

    Args:
        order: the instructions by number, as they are issued: each behind those that it needs.
        units: of the instructions, by number.
        needs: by number, which of the others have to come before, but for those that these need.
        depth: tokens that a FIFO holds.

    Returns:
        By position in the order, one ``Waits`` per instruction, and the NOPs to insert.
    """
    waits = [Waits() for _ in order]
    # clock[u][v]: the last position of v's instructions that u knows to have completed
    clock = [[-1] * UNITS for _ in range(UNITS)]
    known_at: list[list[int]] = []  # the clock of an instruction's unit when it starts
    place = [len(order)] * len(order)
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, number in enumerate(order):
        unit = units[number]
        needed = [-1] * UNITS  # per unit, the last position of what this one must follow
        for other in needs[number]:
            before = place[other]
            if before > needed[units[other]]:
                needed[units[other]] = before
        assert max(needed) < index, f"{number} is issued before what it needs"
        known = clock[unit]
        # Later instructions first: what they waited for often makes the others superfluous.
        for last, source in sorted(zip(needed, range(UNITS), strict=True), reverse=True):
            if source == unit or last <= known[source]:
                continue
            waits[last].push |= 1 << unit
            waits[index].pop |= 1 << source
            pairs.setdefault((source, unit), []).append((last, index))
            known = list(map(max, known, known_at[last]))
            known[source] = last
        clock[unit] = known
        known_at.append(known)
        place[number] = index
    return waits, _early_pops(pairs, waits, depth)


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
