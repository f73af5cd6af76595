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

from typing import NamedTuple

import numpy as np

from targets.npu.compiled import compiled, inlined
from targets.npu.emit.hazards import Needs, Table

UNITS = 4


class Tokens(NamedTuple):
    """What instructions wait for, in the order in which they are issued.

    Attributes:
        pops: of each, a mask of the units that it pops a token from, int64[n].
        pushes: of those that it pushes one to, int64[n].
        early: NOPs that take a token from a unit: before which position, of which unit, from
            which, int64[m, 3].
    """

    pops: Table
    pushes: Table
    early: Table


def derive_tokens(order: Table, units: Table, needs: Needs, depth: int) -> Tokens:
    """The pops and pushes that make any interleaving of the units equal to an order.

    Args:
        order: the instructions by number, as they are issued: each behind those that it needs.
        units: of the instructions, by number.
        needs: by number.
        depth: tokens that a FIFO holds.
    """
    count = len(order)
    tokens = Tokens(
        np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros((UNITS * count, 4), np.int64)
    )
    early, wrong = _derive(order, units, needs, depth, tokens)
    assert wrong < 0, f"{wrong} is issued before what it needs"
    nops = tokens.early[:early]
    nops = nops[np.lexsort((nops[:, 3], nops[:, 0]))]
    return tokens._replace(early=nops[:, :3])


@compiled
def _derive(
    order: Table, units: Table, needs: Needs, depth: int, tokens: Tokens
) -> tuple[int, int]:
    """Fill in the tokens; how many NOPs there are, and who is issued before what it needs."""
    clock = np.full((UNITS, UNITS), -1, np.int64)
    # clock[u, v]: the last position of v's instructions that u knows to have completed
    known_at = np.empty((len(order), UNITS), np.int64)  # the clock of a unit when it starts that
    place = np.full(len(units), len(order), np.int64)
    # Of each FIFO, positions of those that pop what is in it, in a ring.
    waiting = np.zeros((UNITS, UNITS, depth), np.int64)
    # And how many were pushed and popped, and its place in the order of their first tokens.
    passed, fifos = np.zeros((UNITS, UNITS, 3), np.int64), 0
    early = 0
    needed = np.empty(UNITS, np.int64)
    for index in range(len(order)):
        number = order[index]
        unit, known = units[number], known_at[index]
        needed[:] = -1  # per unit, the last position of what this one must follow
        for n in range(needs.ends[number - 1] if number else 0, needs.ends[number]):
            other = needs.numbers[n]
            needed[units[other]] = max(needed[units[other]], place[other])
        if needed.max() >= index:
            return early, number
        known[:] = clock[unit]
        # Later instructions first: what they waited for often makes the others superfluous.
        for _ in range(UNITS):
            source = _latest(needed)
            last, needed[source] = needed[source], -1
            if source == unit or last <= known[source]:
                continue
            tokens.pushes[last] |= 1 << unit
            tokens.pops[index] |= 1 << source
            if passed[source, unit, 0] == 0:
                passed[source, unit, 2] = fifos
                fifos += 1
            early = _wait(tokens, waiting, passed, early, source, unit, last, index)
            known[:] = np.maximum(known, known_at[last])
            known[source] = last
        clock[unit] = known
        place[number] = index
    return early, -1


@inlined
def _latest(needed: Table) -> int:
    """Who is needed last; of equal ones the last unit."""
    source = 0
    for unit in range(1, UNITS):
        if needed[unit] >= needed[source]:
            source = unit
    return source


@inlined
def _wait(
    tokens: Tokens,
    waiting: Table,
    passed: Table,
    early: int,
    source: int,
    unit: int,
    push: int,
    pop: int,
) -> int:
    """A token from a push to a pop; where its FIFO would overflow, the oldest is popped before."""
    fifo, ends = waiting[source, unit], passed[source, unit]
    depth = len(fifo)
    while ends[1] < ends[0] and fifo[ends[1] % depth] < push:
        ends[1] += 1
    if ends[0] - ends[1] == depth:
        tokens.pops[fifo[ends[1] % depth]] &= ~(1 << source)
        ends[1] += 1
        nop = tokens.early[early]
        nop[0], nop[1], nop[2], nop[3] = push, unit, source, ends[2]
        early += 1
    fifo[ends[0] % depth] = pop
    ends[0] += 1
    return early
