"""In which order a program's instructions are issued, so that layers overlap.

Layers are written one after the other, and a unit takes its instructions in order: the vector unit
would requantize the last pixel of a layer before it normalizes the first one for the layer behind,
while the array waits for it. Any other order in which each instruction still follows those whose
bytes it touches means the same. One is found by running a clock over the program in which a unit
that is free takes the first instruction, in the order of writing, that has what it needs; REQ goes
before what else the vector unit could do, since the array waits for room for its sums.

    vector unit     REQ REQ REQ REQ NORM NORM       as written
                    REQ REQ NORM REQ REQ NORM       as issued

Loads that begin as soon as there is room for them have the bus before others that are needed
sooner. So there are several orders (``choices.ORDERS``): loads may begin any time, or only so many
layers before those that are written earlier. The clock says which is best, and is not the timing
model: it leaves out the fetch and tokens.
"""

from __future__ import annotations

import heapq
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from targets.npu.choices import FREE, ORDERS, WRITTEN, Order
from targets.npu.compiled import compiled, inlined
from targets.npu.emit.hazards import Needs, hazards
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.timing import UNITS, Coming, Records, Table
from targets.npu.written import Written

NOBODY = -1


class Clocked(NamedTuple):
    """An order by the clock.

    Attributes:
        cycles: until the last instruction starts.
        order: positions of the instructions, as they are issued.
    """

    cycles: int
    order: Table


class IssueClock:
    """A clock for the instructions of some layers, which finds the orders of ``choices.ORDERS``."""

    def __init__(self, written: Written, spec: NpuSpec) -> None:
        """Take a program, and its machine."""
        self.written, self.spec = written, spec

    @cached_property
    def needs(self) -> Needs:
        """Per instruction, which of those before it have to come first."""
        return hazards(self.written.touched)

    def clocked(self, name: Order) -> Clocked:
        """One of ``choices.ORDERS``, and what it takes."""
        steps = self.written.steps
        urgent, nobody = self.written.urgent, np.full(len(steps), NOBODY)
        before = behind = nobody
        if name == WRITTEN:
            urgent, before = np.zeros_like(urgent), _before_on_its_unit(steps)
        elif name != FREE:
            _, layers = np.unique(self.written.owners, return_inverse=True)
            behind = _loads_behind(steps, layers, int(name.removeprefix("loads-")))
        decode, outstanding = self.spec.issue.decode, self.spec.dma.outstanding
        starts = _starts(steps, self.needs, before, behind, urgent, decode, outstanding)
        in_order = name == WRITTEN
        order = np.arange(len(steps)) if in_order else np.argsort(starts, kind="stable")
        return Clocked(int(starts.max(initial=0)), order)

    def fastest(self) -> list[tuple[Order, Table]]:
        """Names and positions of all orders that differ, the fastest by the clock first."""
        found = [(name, self.clocked(name)) for name in ORDERS]
        found.sort(key=lambda each: each[1].cycles)  # of equal ones, what is nearer to writing
        different: dict[bytes, tuple[Order, Table]] = {}
        for name, each in found:
            different.setdefault(each.order.tobytes(), (name, each.order))
        return list(different.values())

    def least(self) -> int:
        """Cycles until the last instruction starts, as they are written or out of that order."""
        return min(self.clocked(name).cycles for name in (WRITTEN, FREE))

    def order(self, name: Order) -> Table:
        """Positions in one of ``choices.ORDERS``."""
        return np.arange(len(self.written)) if name == WRITTEN else self.clocked(name).order

    def with_leads(self, order: Table, leads: Table) -> Table:
        """An order in which some instructions come earlier, as far as what they need allows it.

        Args:
            order: positions.
            leads: by position as written, how many instructions earlier than in ``order``; later
                where it is below 0.
        """
        turns = np.empty(len(order), np.int64)
        turns[order] = np.arange(len(order))
        return _by_turns(turns - leads, self.needs)


def _before_on_its_unit(steps: Records) -> Table:
    """Per instruction, the one before it on its unit, or nobody."""
    before = np.full(len(steps), NOBODY)
    for unit in range(UNITS):
        mine = np.flatnonzero(steps["unit"] == unit)
        before[mine[1:]] = mine[:-1]
    return before


@compiled
def _loads_behind(steps: Records, layers: Table, ahead: int) -> Table:
    """Per load, the one by which all that are written up to it have begun before it may, or nobody.

    Args:
        steps: of the instructions.
        layers: their numbers.
        ahead: how many layers before another a load may begin.
    """
    behind = np.full(len(steps), NOBODY)
    # The last load of a layer and those before it, of layers that go up.
    known, last, count = np.empty_like(layers), np.empty_like(layers), 0
    for index in range(len(steps)):
        if steps[index].unit != isa.LD:
            continue
        layer = layers[index]
        there = np.searchsorted(known[:count], layer - ahead, "right")
        if there > 0:
            behind[index] = last[there - 1]
        while count > 0 and known[count - 1] >= layer:
            count -= 1
        known[count], last[count] = layer, index
        count += 1
    return behind


@inlined
def _followers(needs: Needs) -> tuple[Table, Table]:
    """Per instruction, those that have to come behind it: all of them, and where they end."""
    count = len(needs.ends)
    ends = np.zeros(count, np.int64)
    for other in needs.numbers:
        ends[other] += 1
    ends = np.cumsum(ends)
    free = ends.copy()
    followers = np.empty(len(needs.numbers), np.int64)
    for index in range(count - 1, -1, -1):
        for n in range(needs.ends[index - 1] if index else 0, needs.ends[index]):
            free[needs.numbers[n]] -= 1
            followers[free[needs.numbers[n]]] = index
    return followers, ends


@compiled
def _by_turns(turns: Table, needs: Needs) -> Table:
    """Positions by their turns, each behind what it needs."""
    count = len(turns)
    followers, ends = _followers(needs)
    missing = _given(needs)
    there = [0 for _ in range(0)]  # turn and position as one number
    for index in range(count):
        if missing[index] == 0:
            heapq.heappush(there, turns[index] * count + index)
    found = np.empty(count, np.int64)
    for place in range(count):
        position = heapq.heappop(there) % count
        found[place] = position
        for n in range(ends[position - 1] if position else 0, ends[position]):
            follower = followers[n]
            missing[follower] -= 1
            if missing[follower] == 0:
                heapq.heappush(there, turns[follower] * count + follower)
    return found


@compiled
def _starts(
    steps: Records,
    needs: Needs,
    before: Table,
    behind: Table,
    urgent: npt.NDArray[np.bool_],
    decode: int,
    outstanding: int,
) -> Table:
    """The cycle at which each instruction starts.

    Args:
        steps: of the instructions.
        needs: which ones must be done, or have started if they are of the same unit, which
            completes them in order.
        before: of its unit, the one that has to start first, or nobody.
        behind: loads that start once another one and all loads before that have; of others, nobody.
        urgent: which ones go first, where others of their unit could start, too.
        decode: cycles.
        outstanding: most transfers in flight of a unit.
    """
    count = len(steps)
    followers, ends = _followers(needs)
    missing = _given(needs)
    behind_it = np.full(count, NOBODY)  # a follower on its unit
    waiting = np.full((count, 2), NOBODY)  # the last load that waits for it; the one before that
    starts, ready = np.full(count, -1), np.zeros(count, np.int64)
    there = [[0 for _ in range(0)] for _ in range(UNITS)]  # what can start, the urgent first
    coming = [[(0, 0) for _ in range(0)] for _ in range(UNITS)]  # when, and what, can
    in_flight = [[0 for _ in range(0)] for _ in range(UNITS)]
    free, bus, loads = np.zeros(UNITS, np.int64), 0, 0
    for index in range(count):
        if before[index] != NOBODY:
            missing[index] += 1
            behind_it[before[index]] = index
        if behind[index] != NOBODY:
            missing[index] += 1
            waiting[index, 1] = waiting[behind[index], 0]
            waiting[behind[index], 0] = index
        if missing[index] == 0:
            heapq.heappush(there[steps[index].unit], index + (0 if urgent[index] else count))
    for _ in range(count):
        now, unit = _next(there, coming, free)
        while len(coming[unit]) > 0 and coming[unit][0][0] <= now:
            _, index = heapq.heappop(coming[unit])
            heapq.heappush(there[unit], index + (0 if urgent[index] else count))
        index = heapq.heappop(there[unit]) % count
        starts[index], step = now, steps[index]
        if step.bus:
            bus = max(now + decode + step.latency, bus) + step.bus
            done = bus + step.drain
            free[unit] = now + decode
            heapq.heappush(in_flight[unit], done)
            if len(in_flight[unit]) == outstanding:
                free[unit] = max(free[unit], heapq.heappop(in_flight[unit]))
        else:
            # The array decodes, and its weights come in, under the instruction before.
            work = max(step.work, decode) if unit == isa.MM else decode + step.work
            free[unit] = now + work
            done = now + decode + step.work + step.drain
        for n in range(ends[index - 1] if index else 0, ends[index]):
            follower = followers[n]
            if unit != steps[follower].unit:
                ready[follower] = max(ready[follower], done)
            _one_less(missing, follower, coming[steps[follower].unit], ready)
        if behind_it[index] != NOBODY:
            _one_less(missing, behind_it[index], coming[unit], ready)
        while loads < count and (steps[loads].unit != isa.LD or starts[loads] >= 0):
            load = waiting[loads, 0]
            while load != NOBODY:
                _one_less(missing, load, coming[isa.LD], ready)
                load = waiting[load, 1]
            loads += 1
    return starts


@inlined
def _given(needs: Needs) -> Table:
    """How many others each needs."""
    counts = needs.ends.copy()
    counts[1:] -= needs.ends[:-1]
    return counts


@inlined
def _next(there: list[list[int]], coming: list[Coming], free: Table) -> tuple[int, int]:
    """When an instruction can start first, and on which unit."""
    now, unit = 0, NOBODY
    for each in range(UNITS):
        if len(there[each]) > 0:
            at = free[each]
        elif len(coming[each]) > 0:
            at = max(free[each], coming[each][0][0])
        else:
            continue
        if unit == NOBODY or at < now:
            now, unit = at, each
    return now, unit


@inlined
def _one_less(missing: Table, index: int, coming: Coming, ready: Table) -> None:
    """Something that an instruction waits for has happened."""
    missing[index] -= 1
    if missing[index] == 0:
        heapq.heappush(coming, (ready[index], index))
