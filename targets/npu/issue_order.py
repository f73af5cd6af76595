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
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from targets.npu.choices import FREE, ORDERS, WRITTEN, Order
from targets.npu.emit.emitted import Emitted
from targets.npu.emit.hazards import hazards
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.durations import Duration, duration

UNITS = 4


class Clocked(NamedTuple):
    """An order by the clock.

    Attributes:
        cycles: until the last instruction starts.
        order: positions of the instructions, as they are issued.
    """

    cycles: int
    order: list[int]


class IssueClock:
    """A clock for the instructions of some layers, which finds the orders of ``choices.ORDERS``."""

    def __init__(
        self,
        emitted: Sequence[Emitted],
        owners: Sequence[int],
        spec: NpuSpec,
        costs: Sequence[Duration] | None = None,
    ) -> None:
        """Take a program.

        Args:
            emitted: in an order that is right one after the other.
            owners: the layer of each.
            spec: the machine.
            costs: what each takes, where that is known.
        """
        self.emitted, self.owners, self.spec = emitted, owners, spec
        self.costs = costs or [duration(each.instruction, spec) for each in emitted]
        self.units = [each.instruction.unit for each in emitted]

    @cached_property
    def needs(self) -> list[set[int]]:
        """Per instruction, which of those before it have to come first."""
        return hazards(self.emitted)

    def clocked(self, name: Order) -> Clocked:
        """One of ``choices.ORDERS``, and what it takes."""
        needs, behind, count = self.needs, NOTHING_BEHIND, len(self.emitted)
        urgent = [isinstance(each.instruction, isa.Requantize) for each in self.emitted]
        if name == WRITTEN:
            needs, urgent = _one_after_the_other(self.units, needs), [False] * count
        elif name != FREE:
            behind = _loads_behind(self.units, self.owners, int(name.removeprefix("loads-")))
        starts = _starts(self.units, self.costs, needs, self.spec, urgent, behind)
        order = range(count) if name == WRITTEN else sorted(range(count), key=starts.__getitem__)
        return Clocked(max(starts, default=0), list(order))

    def fastest(self) -> list[tuple[Order, list[int]]]:
        """Names and positions of all orders that differ, the fastest by the clock first."""
        found = [(name, self.clocked(name)) for name in ORDERS]
        found.sort(key=lambda each: each[1].cycles)  # of equal ones, what is nearer to writing
        different: dict[tuple[int, ...], Order] = {}
        for name, each in found:
            different.setdefault(tuple(each.order), name)
        return [(name, list(order)) for order, name in different.items()]

    def least(self) -> int:
        """Cycles until the last instruction starts, as they are written or out of that order."""
        return min(self.clocked(name).cycles for name in (WRITTEN, FREE))

    def order(self, name: Order) -> list[int]:
        """Positions in one of ``choices.ORDERS``."""
        return list(range(len(self.emitted))) if name == WRITTEN else self.clocked(name).order

    def with_leads(self, order: Sequence[int], leads: Sequence[int]) -> list[int]:
        """An order in which some instructions come earlier, as far as what they need allows it.

        Args:
            order: positions.
            leads: by position in ``emitted``, how many instructions earlier than in ``order``;
                later where it is below 0.
        """
        turn = [0] * len(self.emitted)
        for place, position in enumerate(order):
            turn[position] = place - leads[position]
        followers = _followers(self.needs)
        missing = [len(before) for before in self.needs]
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


def _one_after_the_other(units: Sequence[int], needs: Sequence[set[int]]) -> list[set[int]]:
    """The needs, and of each instruction the one before it on its unit."""
    last: dict[int, int] = {}
    every = []
    for index, (unit, before) in enumerate(zip(units, needs, strict=True)):
        every.append(before | {last[unit]} if unit in last else before)
        last[unit] = index
    return every


NOTHING_BEHIND: Mapping[int, int] = MappingProxyType({})


def _loads_behind(units: Sequence[int], owners: Sequence[int], ahead: int) -> dict[int, int]:
    """Per load, the one by which all that are written up to it have begun before it may.

    Args:
        units: of the instructions.
        owners: their layers.
        ahead: how many layers before another a load may begin.
    """
    number = {owner: n for n, owner in enumerate(dict.fromkeys(owners))}
    layers, last = list[int](), list[int]()  # the last load of a layer and those before it
    behind = {}
    for index, (unit, owner) in enumerate(zip(units, owners, strict=True)):
        if unit != isa.LD:
            continue
        layer = number[owner]
        if (known := bisect_right(layers, layer - ahead)) > 0:
            behind[index] = last[known - 1]
        while layers and layers[-1] >= layer:
            del layers[-1], last[-1]
        layers.append(layer)
        last.append(index)
    return behind


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
    behind: Mapping[int, int],
) -> list[int]:
    """The cycle at which each instruction starts.

    Args:
        units: of the instructions.
        costs: likewise.
        before: which ones must be done, or have started if they are of the same unit, which
            completes them in order.
        spec: the machine.
        urgent: which ones go first, where others of their unit could start, too.
        behind: loads that start once another one and all loads before that have.
    """
    count, decode = len(units), spec.issue.decode
    followers = _followers(before)
    missing = [len(earlier) + (index in behind) for index, earlier in enumerate(before)]
    waiting = defaultdict(list)
    for index, other in behind.items():
        waiting[other].append(index)
    loads = deque(index for index, unit in enumerate(units) if unit == isa.LD)
    starts, ready = [-1] * count, [0] * count
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
        while waiting and loads and starts[loads[0]] >= 0:
            for load in waiting.pop(loads.popleft(), ()):
                missing[load] -= 1
                if not missing[load]:
                    heapq.heappush(coming[isa.LD], (ready[load], load))
    return starts
