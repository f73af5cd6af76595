"""When every instruction runs: a discrete-event model of units, queues, tokens and the bus.

    timeline = simulate_timing(program.instructions, spec)

Integers only, a function of program and description alone. No values: those are ``simulator.py``'s.

fetch   instructions come over the bus in bursts, ``queue_depth`` of them ahead, and are dealt in
        program order to the queues of the units, each ``queue_depth`` long; one that finds its
        queue full holds up those behind it
start   units are in order: an instruction starts once its unit is free, and every token it pops is
        there; LD and ST are free again after decoding, with ``outstanding`` transfers in flight;
        HALT starts when everything else has completed
weights the first tile's come in as soon as the instruction's tokens are there and the array's
        second buffer is free: a GEMM that waited behind another finds them loaded
bus     one transfer at a time, first come first served
finish  instructions of a unit complete in order and push their tokens then; a token that finds its
        FIFO full keeps the unit from starting anything

Every time is a maximum of earlier times plus constants, so making a part faster never makes a
program slower. Only the shared bus is different: who comes first may change.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from targets.errors import TimingError
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.durations import Duration, duration
from targets.npu.price.timeline import Run, Timeline

UNITS = 4
UNITS_OF = tuple(
    tuple(unit for unit in range(UNITS) if mask >> unit & 1) for mask in range(1 << UNITS)
)
"""The units of a mask of tokens."""


class Step(NamedTuple):
    """What time knows of an instruction.

    Attributes:
        unit: that executes it.
        cost: its cycles there.
        pops: units whose tokens it waits for.
        pushes: units that get a token of it.
        halts: it is HALT.
    """

    unit: int
    cost: Duration
    pops: tuple[int, ...]
    pushes: tuple[int, ...]
    halts: bool = False


def simulate_timing(program: Sequence[isa.Instruction], spec: NpuSpec) -> Timeline:
    """Run the clock over a program.

    Raises:
        TimingError: no unit can move though instructions are left, or tokens are left at HALT;
            names what each unit waits for.
    """
    return time_steps([step_of(instruction, spec) for instruction in program], spec)


def time_steps(steps: Sequence[Step], spec: NpuSpec) -> Timeline:
    """Likewise, where nothing but the steps is known."""
    return _Machine(steps, spec).run()


def step_of(instruction: isa.Instruction, spec: NpuSpec) -> Step:
    """What time knows of an instruction."""
    pops, pushes = UNITS_OF[instruction.pop], UNITS_OF[instruction.push]
    halts = isinstance(instruction, isa.Halt)
    return Step(instruction.unit, duration(instruction, spec), pops, pushes, halts)


@dataclass
class _Unit:
    queue: deque[int] = field(default_factory=deque)
    free: int = 0
    running: deque[int] = field(default_factory=deque)  # started, not completed, in order
    in_flight: int = 0
    pushes: deque[int] = field(default_factory=deque)  # targets of tokens held back
    unheld: int = 0  # when the last of them found room
    buffer: int = 0  # from when on the second weight buffer is free
    wakes: int = -1
    waits: bool = False  # its first instruction can't start before something happens to the unit


class _Machine:
    """State of the event loop; every method named ``_on_…`` is an event.

    An event changes what it is about, no more. After the last event of a cycle ``_advance`` looks
    at what can move: an instruction that starts may free a place in a queue, a token that is taken
    may let another unit go on, all in the same cycle. So no event has to know whom it lets go; but
    a unit whose first instruction waits is looked at again only once it gets a token, is free or
    has completed something.
    """

    def __init__(self, steps: Sequence[Step], spec: NpuSpec) -> None:
        self.steps, self.dma = steps, spec.dma
        self.decode, self.insn_bytes = spec.issue.decode, spec.issue.insn_bytes
        self.queue_depth, self.token_depth = spec.issue.queue_depth, spec.issue.token_depth
        self.outstanding = spec.dma.outstanding
        self.runs = [Run() for _ in steps]
        self.units = [_Unit() for _ in range(UNITS)]
        # tokens[source][target]: arrival times
        self.tokens: list[list[deque[int]]] = [
            [deque() for _ in range(UNITS)] for _ in range(UNITS)
        ]
        self.finished = [False] * len(steps)
        self.left = len(steps)
        shared = [0]
        private = spec.dma.arbiter == "private"
        # bus_free[requester][0]: when its bus is free; the fetcher comes after the units
        self.bus_free = [[0] if private else shared for _ in range(UNITS + 1)]
        self.requested = self.arrived = self.dealt = 0
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
        if self.left:
            raise TimingError("deadlock: " + "; ".join(self._stuck()))
        total = max((run.done for run in self.runs), default=0)
        return Timeline(total, tuple(self.runs), tuple(self.fetch))

    def _at(self, time: int, event: Callable[..., None], *arguments: int) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, event, arguments))

    def _advance(self) -> None:
        """Everything that can happen at this cycle without waiting."""
        moved = True
        while moved:
            moved = self.dealt < self.arrived and self._deal()
            for number, unit in enumerate(self.units):
                if unit.pushes:
                    moved |= self._release(number)
                elif unit.queue and not unit.waits:
                    moved |= self._start(number)
        self._fetch_more()

    # Instructions come in.

    def _fetch_more(self) -> None:
        ahead = min(self.dealt + self.queue_depth, len(self.steps))
        while self.requested < ahead:
            burst = max(1, self.dma.burst // self.insn_bytes)
            count = min(burst, len(self.steps) - self.requested)
            self.requested += count
            self._at(self.now + self.dma.read_latency, self._on_fetch, count)

    def _on_fetch(self, count: int) -> None:
        dma = self.dma
        size = -(-count * self.insn_bytes // dma.burst) * dma.burst
        self.fetch.append(self._transfer(UNITS, -(-size // dma.bytes_per_cycle)))
        self._at(self.fetch[-1][1], self._on_fetched, count)

    def _on_fetched(self, count: int) -> None:
        self.arrived += count

    def _deal(self) -> bool:
        dealt = self.dealt
        while self.dealt < self.arrived:
            queue = self.units[self.steps[self.dealt].unit].queue
            if len(queue) == self.queue_depth:
                break
            queue.append(self.dealt)
            self.runs[self.dealt].queued = self.now
            self.dealt += 1
        return self.dealt != dealt

    # Units work.

    def _start(self, number: int) -> bool:
        unit, tokens = self.units[number], self.tokens
        index = unit.queue[0]
        step = self.steps[index]
        cost, sources = step.cost, step.pops
        for source in sources:
            if not tokens[source][number]:
                unit.waits = True
                return False
        if cost.bus and unit.in_flight == self.outstanding:
            unit.waits = True
            return False
        if step.halts and not self._may_halt():
            return False
        if unit.free > self.now:
            # Nothing else may happen when the unit becomes free: wake up then, once.
            if unit.wakes < unit.free:
                unit.wakes = unit.free
                self._at(unit.free, self._on_wake, number)
            unit.waits = True
            return False
        unit.queue.popleft()
        run = self.runs[index]
        for source in sources:
            run.token = max(run.token, (tokens[source][number].popleft(), source))
        run.unheld, run.start = unit.unheld, self.now
        run.decoded = self.now + self.decode
        self._occupy(number, index, cost)
        return True

    def _may_halt(self) -> bool:
        if self.left > 1 or any(unit.pushes for unit in self.units):
            return False
        if any(self.tokens[s][t] for s in range(UNITS) for t in range(UNITS)):
            raise TimingError("HALT with tokens left: " + ", ".join(self._held_tokens()))
        return True

    def _occupy(self, number: int, index: int, cost: Duration) -> None:
        unit, run = self.units[number], self.runs[index]
        unit.running.append(index)
        if cost.bus:
            unit.free = run.decoded
            unit.in_flight += 1
            run.asked = run.decoded + cost.latency
            self._at(run.asked, self._on_request, number, index)
            return
        begin = run.decoded
        # The first tile's weights need neither the array nor the activations, only the second
        # weight buffer: they load under the instruction before, from when its last tile has begun.
        if cost.warm_up:
            loading = max(run.queued, run.token[0], unit.buffer)
            begin = max(begin, loading + self.decode + cost.warm_up)
        unit.free = begin + cost.work
        if cost.work:
            unit.buffer = unit.free - cost.spare
        run.work = (begin, unit.free)
        self._at(unit.free + cost.drain, self._on_finish, number, index)

    def _on_wake(self, number: int) -> None:
        self.units[number].waits = False

    def _on_request(self, number: int, index: int) -> None:
        run, cost = self.runs[index], self.steps[index].cost
        run.bus = run.work = self._transfer(number, cost.bus)
        self._at(run.bus[1] + cost.drain, self._on_finish, number, index)

    def _transfer(self, requester: int, cycles: int) -> tuple[int, int]:
        begin = max(self.now, self.bus_free[requester][0])
        self.bus_free[requester][0] = begin + cycles
        return begin, begin + cycles

    def _on_finish(self, number: int, index: int) -> None:
        unit = self.units[number]
        unit.waits = False
        self.finished[index] = True
        self.left -= 1
        if self.steps[index].cost.bus:
            unit.in_flight -= 1
        # A transfer that is done before one that started earlier waits for it: who takes a token
        # for an instruction may rely on all before it.
        while unit.running and self.finished[unit.running[0]]:
            head = unit.running.popleft()
            self.runs[head].done = self.now
            unit.pushes.extend(self.steps[head].pushes)

    def _release(self, number: int) -> bool:
        """Push the tokens of completed instructions while their FIFOs have room."""
        unit, moved = self.units[number], False
        while unit.pushes:
            fifo = self.tokens[number][unit.pushes[0]]
            if len(fifo) == self.token_depth:
                break
            fifo.append(self.now)
            self.units[unit.pushes.popleft()].waits = False
            unit.unheld = self.now
            moved = True
        return moved

    def _stuck(self) -> Iterator[str]:
        """What each unit waits for, and where tokens are."""
        for number, unit in enumerate(self.units):
            name = isa.UNIT_NAMES[number]
            if unit.pushes:
                yield f"{name} can't push to {isa.UNIT_NAMES[unit.pushes[0]]}, whose FIFO is full"
            elif unit.queue:
                index = unit.queue[0]
                missing = [s for s in self.steps[index].pops if not self.tokens[s][number]]
                units = ", ".join(isa.UNIT_NAMES[s] for s in missing) or "all units"
                yield f"{name} waits for {units} at instruction {index}"
        if self.dealt < len(self.steps):
            unit_name = isa.UNIT_NAMES[self.steps[self.dealt].unit]
            yield f"instruction {self.dealt} finds the queue of {unit_name} full"
        yield "tokens: " + (", ".join(self._held_tokens()) or "none")

    def _held_tokens(self) -> list[str]:
        pairs = [(s, t) for s in range(UNITS) for t in range(UNITS) if self.tokens[s][t]]
        return [
            f"{len(self.tokens[s][t])} from {isa.UNIT_NAMES[s]} to {isa.UNIT_NAMES[t]}"
            for s, t in pairs
        ]
