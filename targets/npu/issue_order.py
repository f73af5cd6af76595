"""In which order a program's instructions are issued, so that layers overlap.

Layers are written one after the other, and a unit takes its instructions in order: the vector unit
would requantize the last pixel of a layer before it normalizes the first one for the layer behind,
while the array waits for it. Any other order in which each instruction still follows those whose
bytes it touches means the same. One is found by running a clock over the program in which a unit
that is free takes the first instruction, in the order of writing, that has what it needs; REQ goes
before what else the vector unit could do, since the array waits for room for its sums.

    vector unit     REQ REQ REQ REQ NORM NORM       as written
                    REQ REQ NORM REQ REQ NORM       as issued

The clock is not the timing model: it leaves out the fetch and tokens. What it finds is taken only
if by it there is something to gain; otherwise instructions are issued as they are written.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

from targets.npu.emit.emitted import Emitted
from targets.npu.emit.touched_bytes import TouchedBytes
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.durations import Duration, duration

UNITS = 4
WORTHWHILE = 64
"""An order that gains less than one part in so many of the cycles is not worth the reading."""


def issue_order(
    emitted: Sequence[Emitted], spec: NpuSpec, worthwhile: int = WORTHWHILE
) -> list[int]:
    """Positions of the instructions in the order in which they are issued.

    Args:
        emitted: in an order that is right one after the other.
        spec: the machine.
        worthwhile: an order that gains no more than one part in so many is not taken.
    """
    as_written, found = _clocked(emitted, spec)
    if as_written - max(found, default=0) <= as_written // worthwhile:
        return list(range(len(emitted)))
    return sorted(range(len(emitted)), key=found.__getitem__)


def with_leads(emitted: Sequence[Emitted], order: Sequence[int], leads: Sequence[int]) -> list[int]:
    """An order in which some instructions come earlier, as far as what they need allows it.

    Args:
        emitted: in an order that is right one after the other.
        order: positions, in another such order.
        leads: by position in ``emitted``, how many instructions earlier than in ``order``; later
            where it is below 0.
    """
    turn = [0] * len(emitted)
    for place, position in enumerate(order):
        turn[position] = place - leads[position]
    needs = hazards(emitted)
    followers = _followers(needs)
    missing = [len(before) for before in needs]
    there = [(turn[n], n) for n, count in enumerate(missing) if not count]
    heapq.heapify(there)
    found = []
    while there:
        _, position = heapq.heappop(there)
        found.append(position)
        for follower in followers[position]:
            missing[follower] -= 1
            if not missing[follower]:
                heapq.heappush(there, (turn[follower], follower))
    return found


def least_cycles(emitted: Sequence[Emitted], spec: NpuSpec) -> int:
    """Until the last instruction starts, in the order in which they would be issued."""
    as_written, found = _clocked(emitted, spec)
    return min(as_written, max(found, default=0))


def _clocked(emitted: Sequence[Emitted], spec: NpuSpec) -> tuple[int, list[int]]:
    """When the last instruction starts in the order of writing, and when each does out of it."""
    units = [each.instruction.unit for each in emitted]
    needs = hazards(emitted)
    costs = [duration(each.instruction, spec) for each in emitted]
    in_turn = _one_after_the_other(units, needs)
    as_written = max(_starts(units, costs, in_turn, spec, [False] * len(units)), default=0)
    urgent = [isinstance(each.instruction, isa.Requantize) for each in emitted]
    return as_written, _starts(units, costs, needs, spec, urgent)


def hazards(emitted: Iterable[Emitted]) -> list[set[int]]:
    """Per instruction, which of those before it have to come first.

    Those that wrote what it reads, and those that read or wrote what it writes; not what these
    themselves had to follow.
    """
    spaces: defaultdict[str, TouchedBytes[_Users]] = defaultdict(lambda: TouchedBytes(_Users()))
    needs = []
    for index, each in enumerate(emitted):
        before: set[int] = set()
        for span in each.reads:
            before |= {users.writer for users in spaces[span.space].pieces(span)}
        seen: set[int] = set()
        for span in each.writes:
            for users in spaces[span.space].pieces(span):
                before.add(users.writer)
                reader = users.readers
                while reader is not None and id(reader) not in seen:
                    seen.add(id(reader))
                    before.add(reader[0])
                    reader = reader[1]
        for span in each.reads:
            spaces[span.space].change(span, partial(_read_by, index))
        for span in each.writes:
            spaces[span.space].cover(span, _Users(index))
        needs.append(before - {-1})
    return needs


_Readers: TypeAlias = "tuple[int, _Readers] | None"
"""The last reader and those before it: pieces that were one share their past."""


class _Users(NamedTuple):
    """Who wrote a piece of memory last, -1 for nobody, and who has read it since."""

    writer: int = -1
    readers: _Readers = None


def _read_by(index: int, users: _Users) -> _Users:
    return users._replace(readers=(index, users.readers))


def _one_after_the_other(units: Sequence[int], needs: Sequence[set[int]]) -> list[set[int]]:
    """The needs, and of each instruction the one before it on its unit."""
    last: dict[int, int] = {}
    every = []
    for index, (unit, before) in enumerate(zip(units, needs, strict=True)):
        every.append(before | {last[unit]} if unit in last else before)
        last[unit] = index
    return every


def _followers(needs: Sequence[set[int]]) -> list[list[int]]:
    """Per instruction, those that have to come behind it."""
    followers: list[list[int]] = [[] for _ in needs]
    for index, earlier in enumerate(needs):
        for each in earlier:
            followers[each].append(index)
    return followers


def _starts(
    units: Sequence[int],
    costs: Sequence[Duration],
    before: Sequence[set[int]],
    spec: NpuSpec,
    urgent: Sequence[bool],
) -> list[int]:
    """The cycle at which each instruction starts.

    Args:
        units: of the instructions.
        costs: likewise.
        before: which ones must be done, or have started if they are of the same unit, which
            completes them in order.
        spec: the machine.
        urgent: which ones go first, where others of their unit could start, too.
    """
    count, decode = len(units), spec.issue.decode
    followers = _followers(before)
    missing = [len(earlier) for earlier in before]
    starts, ready = [0] * count, [0] * count
    there: list[list[tuple[bool, int]]] = [[] for _ in range(UNITS)]  # heaps of what can start
    coming: list[list[tuple[int, int]]] = [[] for _ in range(UNITS)]  # and of (when, what) can
    in_flight: list[list[int]] = [[] for _ in range(UNITS)]
    free, bus = [0] * UNITS, 0
    for index in range(count):
        if not missing[index]:
            heapq.heappush(there[units[index]], (not urgent[index], index))
    for _ in range(count):
        now, unit = min(
            (free[unit] if there[unit] else max(free[unit], coming[unit][0][0]), unit)
            for unit in range(UNITS)
            if there[unit] or coming[unit]
        )
        while coming[unit] and coming[unit][0][0] <= now:
            _, index = heapq.heappop(coming[unit])
            heapq.heappush(there[unit], (not urgent[index], index))
        _, index = heapq.heappop(there[unit])
        starts[index], cost = now, costs[index]
        if cost.bus:
            bus = max(now + decode + cost.latency, bus) + cost.bus
            done = bus + cost.drain
            free[unit] = now + decode
            heapq.heappush(in_flight[unit], done)
            if len(in_flight[unit]) == spec.dma.outstanding:
                free[unit] = max(free[unit], heapq.heappop(in_flight[unit]))
        else:
            # The array decodes, and its weights come in, under the instruction before.
            free[unit] = now + (max(cost.work, decode) if unit == isa.MM else decode + cost.work)
            done = now + decode + cost.work + cost.drain
        for follower in followers[index]:
            if unit != units[follower]:
                ready[follower] = max(ready[follower], done)
            missing[follower] -= 1
            if not missing[follower]:
                heapq.heappush(coming[units[follower]], (ready[follower], follower))
    return starts
