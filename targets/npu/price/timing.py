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

The event loop is compiled by Numba: all of its state is in arrays.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from targets.errors import TimingError
from targets.npu.compiled import compiled, inlined
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.durations import Duration, duration
from targets.npu.price.timeline import Run, Timeline

UNITS = 4
_COSTS = [each.name for each in fields(Duration)]
STEP = np.dtype([(name, np.int64) for name in ("unit", *_COSTS, "pops", "pushes", "halts")])
"""What time knows of an instruction: the unit that executes it, its cycles there (``Duration``),
masks of the units whose tokens it waits for and that get one of it, and whether it is HALT."""

_costs_of = attrgetter(*_COSTS)

Table = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]
Coming = list[tuple[int, int]]


def steps_of(program: Sequence[isa.Instruction], spec: NpuSpec) -> Records:
    """What time knows of instructions, ``STEP[n]``."""
    rows = [
        (i.unit, *_costs_of(duration(i, spec)), i.pop, i.push, isinstance(i, isa.Halt))
        for i in program
    ]
    return np.array(rows, STEP)


def simulate_timing(program: Sequence[isa.Instruction], spec: NpuSpec) -> Timeline:
    """Run the clock over a program.

    Raises:
        TimingError: no unit can move though instructions are left, or tokens are left at HALT;
            names what each unit waits for.
    """
    return time_steps(steps_of(program, spec), spec)


def time_steps(steps: Records, spec: NpuSpec) -> Timeline:
    """Likewise, where nothing but the steps is known."""
    state, total = _clocked(steps, spec)
    runs = [_run_of(*row) for row in state.runs.tolist()]
    fetch = state.fetch[: state.clock.fetches].tolist()
    return Timeline(total, tuple(runs), tuple([(begin, end) for begin, end in fetch]))


def cycles_of(steps: Records, spec: NpuSpec) -> int:
    """Of ``time_steps``, the total alone."""
    return _clocked(steps, spec)[1]


def _run_of(*row: int) -> Run:
    queued, token, source, unheld, start, decoded, asked = row[:7]
    bus_begin, bus_end, work_begin, work_end, done, _ = row[7:]
    bus, work = (bus_begin, bus_end), (work_begin, work_end)
    return Run(queued, (token, source), unheld, start, decoded, asked, bus, work, done)


def _clocked(steps: Records, spec: NpuSpec) -> tuple[_State, int]:
    state = _State.before(steps, spec)
    left_at_halt = _run(state)
    if left_at_halt:
        raise TimingError("HALT with tokens left: " + ", ".join(state.held_tokens()))
    if state.clock.left:
        raise TimingError("deadlock: " + "; ".join(state.stuck()))
    return state, int(state.runs["done"].max(initial=0))


# --- the state of the event loop


def _numbers(names: str) -> np.dtype[np.void]:
    return np.dtype([(name, np.int64) for name in names.split()])


_RUN = _numbers(
    "queued token source unheld start decoded asked bus_begin bus_end work_begin work_end done"
    " finished"
)
"""The attributes of ``Run``; and whether the instruction has finished, maybe before others of its
unit that are to complete first."""

_UNIT = _numbers("started dealt completed free in_flight unheld buffer wakes waits pushed made")
"""How many of its instructions have started, were dealt to it and have completed; when it is free;
its transfers in flight; when the last of its tokens found room; from when on the second weight
buffer is free; when it wakes; whether its first instruction can't start before something happens to
it; of its tokens, how many were pushed and how many were made."""

_CLOCK = _numbers("now requested arrived dealt left events fetches tokens_left")
"""The cycle; how many instructions were requested, have arrived, were dealt and have not completed;
how many events and fetches there were; tokens that HALT has found."""

_MACHINE = _numbers(
    "decode insn_bytes queue_depth token_depth burst bytes_per_cycle read_latency outstanding"
    " private"
)
"""What time knows of the machine; whether each requester has a bus of its own."""

_EVENT = _numbers("kind number index")
"""What happens, to which unit or how many instructions, and to which one."""

ON_FETCH, ON_FETCHED, ON_WAKE, ON_REQUEST, ON_FINISH = range(5)


class _State(NamedTuple):
    """Everything that changes, and what the event loop knows.

    Attributes:
        steps: of the instructions.
        machine: a record.
        mine: by unit, its instructions, int64[UNITS, n]. A queue is a part of a row, since a unit
            gets, starts and completes its instructions in order.
        units: their records.
        pushing: by unit, whom its tokens go to, in order, int64[UNITS, UNITS * n].
        tokens: when those came that are in a FIFO, by (source, target), in a ring of
            ``token_depth``.
        passed: of each FIFO, tokens that were pushed and popped, int64[UNITS, UNITS, 2].
        bus_free: when the bus of a requester is free; the fetcher comes after the units.
        runs: of the instructions.
        fetch: transfers [begin, end) of instructions, int64[n, 2].
        events: all so far.
        clock: a record.
    """

    steps: Records
    machine: Any
    mine: Table
    units: Records
    pushing: Table
    tokens: Table
    passed: Table
    bus_free: Table
    runs: Records
    fetch: Table
    events: Records
    clock: Any

    @staticmethod
    def before(steps: Records, spec: NpuSpec) -> _State:
        """At cycle 0."""
        count, issue, dma = len(steps), spec.issue, spec.dma
        machine = np.zeros(1, _MACHINE).view(np.recarray)[0]
        for name in ("decode", "insn_bytes", "queue_depth", "token_depth"):
            machine[name] = getattr(issue, name)
        for name in ("burst", "bytes_per_cycle", "read_latency", "outstanding"):
            machine[name] = getattr(dma, name)
        machine.private = dma.arbiter == "private"
        mine = np.zeros((UNITS, count), np.int64)
        for number in range(UNITS):
            of_unit = np.flatnonzero(steps["unit"] == number)
            mine[number, : len(of_unit)] = of_unit
        units, runs = np.zeros(UNITS, _UNIT), np.zeros(count, _RUN)
        units["wakes"] = -1
        for name in ("queued", "token", "source", "start", "decoded", "asked", "done"):
            runs[name] = -1
        clock = np.zeros(1, _CLOCK).view(np.recarray)[0]
        clock.left = count
        return _State(
            steps=steps,
            machine=machine,
            mine=mine,
            units=units,
            pushing=np.zeros((UNITS, UNITS * count), np.int64),
            tokens=np.zeros((UNITS, UNITS, issue.token_depth), np.int64),
            passed=np.zeros((UNITS, UNITS, 2), np.int64),
            bus_free=np.zeros(UNITS + 1, np.int64),
            runs=runs,
            fetch=np.zeros((count, 2), np.int64),
            events=np.zeros(5 * count + 8, _EVENT),
            clock=clock,
        )

    def held(self, source: int, target: int) -> int:
        """Tokens in a FIFO."""
        pushed, popped = self.passed[source, target]
        return int(pushed - popped)

    def stuck(self) -> Iterator[str]:
        """What each unit waits for, and where tokens are."""
        for number, unit in enumerate(self.units):
            name = isa.UNIT_NAMES[number]
            if unit["pushed"] < unit["made"]:
                full = isa.UNIT_NAMES[self.pushing[number, unit["pushed"]]]
                yield f"{name} can't push to {full}, whose FIFO is full"
            elif unit["started"] < unit["dealt"]:
                index = self.mine[number, unit["started"]]
                pops = [s for s in range(UNITS) if self.steps["pops"][index] >> s & 1]
                missing = [s for s in pops if not self.held(s, number)]
                units = ", ".join(isa.UNIT_NAMES[s] for s in missing) or "all units"
                yield f"{name} waits for {units} at instruction {index}"
        if (dealt := self.clock.dealt) < len(self.steps):
            full = isa.UNIT_NAMES[self.steps["unit"][dealt]]
            yield f"instruction {dealt} finds the queue of {full} full"
        yield "tokens: " + (", ".join(self.held_tokens()) or "none")

    def held_tokens(self) -> list[str]:
        """How many tokens are in which FIFO."""
        pairs = [(s, t) for s in range(UNITS) for t in range(UNITS)]
        return [
            f"{held} from {isa.UNIT_NAMES[s]} to {isa.UNIT_NAMES[t]}"
            for s, t in pairs
            if (held := self.held(s, t))
        ]


# --- the event loop
#
# An event changes what it is about, no more. After the last event of a cycle ``_advance`` looks at
# what can move: an instruction that starts may free a place in a queue, a token that is taken may
# let another unit go on, all in the same cycle. So no event has to know whom it lets go; but a unit
# whose first instruction waits is looked at again only once it gets a token, is free or has
# completed something.


@compiled
def _run(s: _State) -> bool:
    """Until nothing happens any more, or HALT finds tokens; whether it did."""
    coming = [(0, 0) for _ in range(0)]  # when, and which event
    _fetch_more(s, coming)
    while len(coming) > 0 and not s.clock.tokens_left:
        s.clock.now, number_of_event = heapq.heappop(coming)
        event = s.events[number_of_event]
        number, index = event.number, event.index
        if event.kind == ON_FETCH:
            _on_fetch(s, coming, number)
        elif event.kind == ON_FETCHED:
            s.clock.arrived += number
        elif event.kind == ON_WAKE:
            s.units[number].waits = 0
        elif event.kind == ON_REQUEST:
            _on_request(s, coming, number, index)
        else:
            _on_finish(s, number, index)
        if len(coming) == 0 or coming[0][0] > s.clock.now:
            _advance(s, coming)
    return s.clock.tokens_left > 0


@inlined
def _at(s: _State, coming: Coming, time: int, kind: int, number: int, index: int) -> None:
    event = s.events[s.clock.events]
    event.kind, event.number, event.index = kind, number, index
    heapq.heappush(coming, (time, s.clock.events))
    s.clock.events += 1


@inlined
def _advance(s: _State, coming: Coming) -> None:
    """Everything that can happen at this cycle without waiting."""
    moved = True
    while moved:
        moved = _deal(s)
        for number in range(UNITS):
            unit = s.units[number]
            if unit.pushed < unit.made:
                moved |= _release(s, number)
            elif unit.started < unit.dealt and not unit.waits:
                moved |= _start(s, coming, number)
    _fetch_more(s, coming)


# Instructions come in.


@inlined
def _fetch_more(s: _State, coming: Coming) -> None:
    ahead = min(s.clock.dealt + s.machine.queue_depth, len(s.steps))
    while s.clock.requested < ahead:
        burst = max(1, s.machine.burst // s.machine.insn_bytes)
        count = min(burst, len(s.steps) - s.clock.requested)
        s.clock.requested += count
        _at(s, coming, s.clock.now + s.machine.read_latency, ON_FETCH, count, 0)


@inlined
def _on_fetch(s: _State, coming: Coming, count: int) -> None:
    size = -(-count * s.machine.insn_bytes // s.machine.burst) * s.machine.burst
    begin, end = _transfer(s, UNITS, -(-size // s.machine.bytes_per_cycle))
    s.fetch[s.clock.fetches, 0] = begin
    s.fetch[s.clock.fetches, 1] = end
    s.clock.fetches += 1
    _at(s, coming, end, ON_FETCHED, count, 0)


@inlined
def _deal(s: _State) -> bool:
    dealt = s.clock.dealt
    while s.clock.dealt < s.clock.arrived:
        index = s.clock.dealt
        unit = s.units[s.steps[index].unit]
        if unit.dealt - unit.started == s.machine.queue_depth:
            break
        unit.dealt += 1
        s.runs[index].queued = s.clock.now
        s.clock.dealt += 1
    return s.clock.dealt != dealt


# Units work.


@inlined
def _start(s: _State, coming: Coming, number: int) -> bool:
    unit, now = s.units[number], s.clock.now
    index = s.mine[number, unit.started]
    step = s.steps[index]
    for source in range(UNITS):
        passed = s.passed[source, number]
        if step.pops >> source & 1 and passed[0] == passed[1]:
            unit.waits = 1
            return False
    if step.bus and unit.in_flight == s.machine.outstanding:
        unit.waits = 1
        return False
    if step.halts and not _may_halt(s):
        return False
    if unit.free > now:
        # Nothing else may happen when the unit becomes free: wake up then, once.
        if unit.wakes < unit.free:
            unit.wakes = unit.free
            _at(s, coming, unit.free, ON_WAKE, number, 0)
        unit.waits = 1
        return False
    unit.started += 1
    run = s.runs[index]
    for source in range(UNITS):
        if step.pops >> source & 1:
            passed = s.passed[source, number]
            came = s.tokens[source, number, passed[1] % s.machine.token_depth]
            passed[1] += 1
            if came >= run.token:  # of tokens that came together, that of the last unit
                run.token, run.source = came, source
    run.unheld, run.start = unit.unheld, now
    run.decoded = now + s.machine.decode
    _occupy(s, coming, number, index)
    return True


@inlined
def _may_halt(s: _State) -> bool:
    """Whether all else has completed and pushed its tokens."""
    if s.clock.left > 1:
        return False
    for source in range(UNITS):
        if s.units[source].pushed < s.units[source].made:
            return False
    for source in range(UNITS):
        for target in range(UNITS):
            s.clock.tokens_left += s.passed[source, target, 0] - s.passed[source, target, 1]
    return s.clock.tokens_left == 0


@inlined
def _occupy(s: _State, coming: Coming, number: int, index: int) -> None:
    unit, run, step = s.units[number], s.runs[index], s.steps[index]
    if step.bus:
        unit.free = run.decoded
        unit.in_flight += 1
        run.asked = run.decoded + step.latency
        _at(s, coming, run.asked, ON_REQUEST, number, index)
        return
    begin = run.decoded
    # The first tile's weights need neither the array nor the activations, only the second
    # weight buffer: they load under the instruction before, from when its last tile has begun.
    if step.warm_up:
        loading = max(run.queued, run.token, unit.buffer)
        begin = max(begin, loading + s.machine.decode + step.warm_up)
    unit.free = begin + step.work
    if step.work:
        unit.buffer = unit.free - step.spare
    run.work_begin, run.work_end = begin, unit.free
    _at(s, coming, unit.free + step.drain, ON_FINISH, number, index)


@inlined
def _on_request(s: _State, coming: Coming, number: int, index: int) -> None:
    run, step = s.runs[index], s.steps[index]
    begin, end = _transfer(s, number, step.bus)
    run.bus_begin, run.bus_end = begin, end
    run.work_begin, run.work_end = begin, end
    _at(s, coming, end + step.drain, ON_FINISH, number, index)


@inlined
def _transfer(s: _State, requester: int, cycles: int) -> tuple[int, int]:
    bus = requester if s.machine.private else 0
    begin = max(s.clock.now, s.bus_free[bus])
    s.bus_free[bus] = begin + cycles
    return begin, begin + cycles


@inlined
def _on_finish(s: _State, number: int, index: int) -> None:
    unit = s.units[number]
    unit.waits = 0
    s.runs[index].finished = 1
    s.clock.left -= 1
    if s.steps[index].bus:
        unit.in_flight -= 1
    # A transfer that is done before one that started earlier waits for it: who takes a token
    # for an instruction may rely on all before it.
    while unit.completed < unit.started:
        head = s.mine[number, unit.completed]
        if not s.runs[head].finished:
            break
        unit.completed += 1
        s.runs[head].done = s.clock.now
        for target in range(UNITS):
            if s.steps[head].pushes >> target & 1:
                s.pushing[number, unit.made] = target
                unit.made += 1


@inlined
def _release(s: _State, number: int) -> bool:
    """Push the tokens of completed instructions while their FIFOs have room."""
    unit, moved = s.units[number], False
    while unit.pushed < unit.made:
        target = s.pushing[number, unit.pushed]
        passed = s.passed[number, target]
        if passed[0] - passed[1] == s.machine.token_depth:
            break
        s.tokens[number, target, passed[0] % s.machine.token_depth] = s.clock.now
        passed[0] += 1
        s.units[target].waits = 0
        unit.pushed += 1
        unit.unheld = s.clock.now
        moved = True
    return moved
