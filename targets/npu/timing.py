"""When every instruction runs: a discrete-event model of units, queues, tokens and the bus.

    timeline = simulate_timing(program.instructions, spec)

Integers only, a function of program and description alone. No values: those are ``simulator.py``'s.

fetch   instructions come over the bus in bursts, and are dealt in program order to the queues of
        the units, each ``queue_depth`` long; one that finds its queue full holds up those behind it
start   units are in order: an instruction starts once its unit is free, and every token it pops is
        there; LD and ST are free again after decoding, with ``outstanding`` transfers in flight
bus     one transfer at a time, first come first served
finish  instructions of a unit complete in order and push their tokens then; a token that finds its
        FIFO full keeps the unit from starting anything
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from targets.errors import TimingError
from targets.npu import isa
from targets.npu.durations import Duration, duration
from targets.npu.spec import NpuSpec

UNITS = 4


@dataclass
class Run:
    """When one instruction ran; cycles from the program's start.

    Attributes:
        queued: it is in its unit's queue.
        start: decoding begins.
        cold: whether the unit was idle before, so that the first weights had to be waited for.
        asked: the bus is requested.
        bus: the transfer [begin, end); equal for what does not touch DRAM.
        work: the unit works on it [begin, end).
        done: it has completed.
        token: when the last token it pops came, and from which unit; -1 if it pops none.
    """

    queued: int = -1
    start: int = -1
    cold: bool = False
    asked: int = -1
    bus: tuple[int, int] = (0, 0)
    work: tuple[int, int] = (0, 0)
    done: int = -1
    token: tuple[int, int] = (-1, -1)


@dataclass(frozen=True)
class Timeline:
    """A program's run on a machine.

    Attributes:
        total: cycles until everything has completed.
        runs: one per instruction, in program order.
        fetch: transfers [begin, end) of instructions on the bus.
    """

    total: int
    runs: tuple[Run, ...]
    fetch: tuple[tuple[int, int], ...]


def simulate_timing(program: Sequence[isa.Instruction], spec: NpuSpec) -> Timeline:
    """Run the clock over a program.

    Raises:
        TimingError: no unit can move though instructions are left; names what each waits for.
    """
    return _Machine(program, spec).run()


@dataclass
class _Unit:
    queue: deque[int] = field(default_factory=deque)
    free: int = 0
    running: deque[int] = field(default_factory=deque)  # started, not completed, in order
    in_flight: int = 0
    pushes: deque[tuple[int, int]] = field(default_factory=deque)  # (source, target), held back
    wakes: int = -1


class _Machine:
    """State of the event loop; every method named ``_on_…`` is an event."""

    def __init__(self, program: Sequence[isa.Instruction], spec: NpuSpec) -> None:
        self.program, self.spec = program, spec
        self.costs = [duration(i, spec) for i in program]
        self.runs = [Run() for _ in program]
        self.units = [_Unit() for _ in range(UNITS)]
        # tokens[source][target]: arrival times
        self.tokens: list[list[deque[int]]] = [
            [deque() for _ in range(UNITS)] for _ in range(UNITS)
        ]
        self.finished = [False] * len(program)
        self.bus_free = 0
        self.requested = self.arrived = self.dealt = self.fetching = 0
        self.fetch: list[tuple[int, int]] = []
        self.now = 0
        self.events: list[tuple[int, int, Callable[..., None], tuple[int, ...]]] = []
        self.order = 0

    def run(self) -> Timeline:
        self._fetch_more()
        while self.events:
            self.now, _, event, arguments = heapq.heappop(self.events)
            event(*arguments)
            if not self.events or self.events[0][0] > self.now:
                self._advance()
        if not all(self.finished):
            raise TimingError(self._deadlock())
        total = max((run.done for run in self.runs), default=0)
        return Timeline(total, tuple(self.runs), tuple(self.fetch))

    def _at(self, time: int, event: Callable[..., None], *arguments: int) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, event, arguments))

    def _advance(self) -> None:
        """Everything that can happen at this cycle without waiting."""
        moved = True
        while moved:
            moved = self._deal()
            for number in range(UNITS):
                moved |= self._release(number) or self._start(number)
        self._fetch_more()

    # Instructions come in.

    def _fetch_more(self) -> None:
        size, dma, issue = self.spec.issue.insn_bytes, self.spec.dma, self.spec.issue
        while (
            self.requested < len(self.program)
            and self.requested - self.dealt < issue.queue_depth
            and self.fetching < dma.outstanding
        ):
            count = min(max(1, dma.burst // size), len(self.program) - self.requested)
            self.requested += count
            self.fetching += 1
            self._at(self.now + dma.read_latency, self._on_fetch, count)

    def _on_fetch(self, count: int) -> None:
        dma = self.spec.dma
        begin = max(self.now, self.bus_free)
        size = -(-count * self.spec.issue.insn_bytes // dma.burst) * dma.burst
        self.bus_free = begin + -(-size // dma.bytes_per_cycle)
        self.fetch.append((begin, self.bus_free))
        self._at(self.bus_free, self._on_fetched, count)

    def _on_fetched(self, count: int) -> None:
        self.fetching -= 1
        self.arrived += count

    def _deal(self) -> bool:
        dealt = self.dealt
        while self.dealt < self.arrived:
            queue = self.units[self.program[self.dealt].unit].queue
            if len(queue) == self.spec.issue.queue_depth:
                break
            queue.append(self.dealt)
            self.runs[self.dealt].queued = self.now
            self.dealt += 1
        return self.dealt != dealt

    # Units work.

    def _start(self, number: int) -> bool:
        unit = self.units[number]
        if not unit.queue or unit.pushes:
            return False
        index = unit.queue[0]
        cost, instruction, run = self.costs[index], self.program[index], self.runs[index]
        sources = [s for s in range(UNITS) if instruction.pop >> s & 1]
        if any(not self.tokens[s][number] for s in sources):
            return False
        if cost.bus and unit.in_flight == self.spec.dma.outstanding:
            return False
        if unit.free > self.now:
            if unit.wakes < unit.free:
                unit.wakes = unit.free
                self._at(unit.free, self._on_wake)
            return False
        unit.queue.popleft()
        for source in sources:
            arrival = self.tokens[source][number].popleft()
            run.token = max(run.token, (arrival, source))
        run.start, run.cold = self.now, self.now > unit.free or index == 0
        self._occupy(number, index, cost)
        return True

    def _occupy(self, number: int, index: int, cost: Duration) -> None:
        unit, run = self.units[number], self.runs[index]
        decoded = self.now + self.spec.issue.decode
        unit.running.append(index)
        if cost.bus:
            unit.free = decoded
            unit.in_flight += 1
            run.asked = decoded + cost.latency
            self._at(run.asked, self._on_request, number, index)
            return
        begin = decoded + (cost.warm_up if run.cold else 0)
        run.work = (begin, begin + cost.work)
        unit.free = begin + cost.work
        self._at(unit.free + cost.drain, self._on_finish, number, index)

    def _on_wake(self) -> None:
        """Nothing: the loop looks at all units after every event."""

    def _on_request(self, number: int, index: int) -> None:
        run, cost = self.runs[index], self.costs[index]
        begin = max(self.now, self.bus_free)
        self.bus_free = begin + cost.bus
        run.bus = run.work = (begin, self.bus_free)
        self._at(self.bus_free + cost.drain, self._on_finish, number, index)

    def _on_finish(self, number: int, index: int) -> None:
        unit = self.units[number]
        self.finished[index] = True
        if self.costs[index].bus:
            unit.in_flight -= 1
        while unit.running and self.finished[unit.running[0]]:
            head = unit.running.popleft()
            self.runs[head].done = self.now
            push = self.program[head].push
            unit.pushes.extend((number, target) for target in range(UNITS) if push >> target & 1)

    def _release(self, number: int) -> bool:
        """Push the tokens of completed instructions while their FIFOs have room."""
        pushes, moved = self.units[number].pushes, False
        while pushes:
            source, target = pushes[0]
            if len(self.tokens[source][target]) == self.spec.issue.token_depth:
                break
            self.tokens[source][target].append(self.now)
            pushes.popleft()
            moved = True
        return moved

    def _deadlock(self) -> str:
        heads = []
        for name, unit in zip(isa.UNIT_NAMES, self.units, strict=True):
            if unit.queue:
                index = unit.queue[0]
                pop = self.program[index].pop
                missing = [isa.UNIT_NAMES[s] for s in range(UNITS) if pop >> s & 1]
                heads.append(f"{name} at instruction {index}, which pops from {missing or 'none'}")
        return "deadlock: " + "; ".join(heads or ["a unit holds a token that nobody pops"])
