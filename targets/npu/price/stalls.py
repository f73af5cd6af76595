"""Where the time of every unit goes: classes of cycles that add up to the program's total exactly.

    spans = account(timeline, program)      per unit, spans that partition [0, total)
    totals(spans)                           cycles per class
    totals(clip(spans, begin, end))         the same inside a window

A cycle belongs to the first class that holds: what a unit does comes before what it waits for.

    work      of MM and VU, and LD filling; of LD and ST their data on the bus
    weights   the array waits for the first tile's weights
    decode
    bus       a transfer is ready and another one has the bus
    latency   something of this unit is on its way: DRAM's answer, the pipeline's drain
    fetch     the next instruction has not come in
    LD ... ST the next instruction waits for a token from that unit
    fifo      a token of this unit finds its FIFO full
    done      nothing is left to do

Where all transfers that may be in flight are, the unit's own are in a class that comes before
waiting, so that needs no class of its own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from targets.npu.machine import isa
from targets.npu.price.timeline import Run, Timeline

TOKEN_CLASSES = isa.UNIT_NAMES
CLASSES = (
    *("work", "weights", "decode", "bus", "latency"),
    *("fetch", *TOKEN_CLASSES, "fifo", "done"),
)
"""In the order of precedence."""
_RANK = {name: rank for rank, name in enumerate(CLASSES)}


@dataclass(frozen=True)
class Span:
    """Cycles [begin, end) of one class."""

    begin: int
    end: int
    kind: str


def account(timeline: Timeline, program: Sequence[isa.Instruction]) -> list[list[Span]]:
    """Per unit, in order and without gaps, spans from 0 to the total."""
    return [_unit(timeline, program, unit) for unit in range(len(isa.UNIT_NAMES))]


def totals(spans: Iterable[Span]) -> dict[str, int]:
    """Cycles of every class; zero where there are none."""
    cycles = dict.fromkeys(CLASSES, 0)
    for span in spans:
        cycles[span.kind] += span.end - span.begin
    return cycles


def clip(spans: Sequence[Span], begin: int, end: int) -> list[Span]:
    """The parts of spans, in order and apart, that lie in [begin, end)."""
    if begin >= end:
        return []
    first = bisect_right(spans, begin, key=lambda span: span.end)
    last = bisect_left(spans, end, key=lambda span: span.begin)
    return [Span(max(s.begin, begin), min(s.end, end), s.kind) for s in spans[first:last]]


def _unit(timeline: Timeline, program: Sequence[isa.Instruction], unit: int) -> list[Span]:
    """Waits from each start to the next one, work and latency over them; the best class wins."""
    runs = [
        run
        for run, instruction in zip(timeline.runs, program, strict=True)
        if instruction.unit == unit
    ]
    found: list[Span] = []
    free = 0
    for run in runs:
        found += _wait(free, run)
        found += _run(run)
        free = run.start
    found.append(Span(free, timeline.total, "done"))
    return _flatten(found, timeline.total)


def _wait(free: int, run: Run) -> Iterable[Span]:
    """Why an instruction did not start before it did; it could have from ``free`` on.

    It needs all of: to have come in, its tokens, room for the tokens before it. Each has a time,
    and up to that time it was what was missing; what came earlier than the one before it was never
    waited for. What is left over is the unit's own: it was still at work, which comes first anyway.
    """
    arrival, source = run.token
    steps = [(run.queued, "fetch"), (arrival, isa.UNIT_NAMES[source])]
    steps += [(run.unheld, "fifo"), (run.start, "done")]  # HALT waits for all units
    begin = free
    for end, kind in steps:
        if begin < end:
            yield Span(begin, end, kind)
            begin = end


def _run(run: Run) -> Iterable[Span]:
    """What an instruction does; several of LD and ST run at the same time, so spans may overlap."""
    yield Span(run.start, run.decoded, "decode")
    yield Span(run.work[0], run.work[1], "work")
    if run.asked >= 0:
        yield Span(run.asked, run.bus[0], "bus")
        yield Span(run.decoded, run.asked, "latency")
    else:
        yield Span(run.decoded, run.work[0], "weights")
    yield Span(run.work[1], run.done, "latency")


def _flatten(spans: Iterable[Span], total: int) -> list[Span]:
    """One class per cycle, the first that holds; neighbours of a class become one span.

    A sweep over the spans' ends that counts, per class, how many hold: each end is looked at once.
    """
    events: dict[int, list[tuple[int, int]]] = {0: [], total: []}
    for span in spans:
        if span.begin < span.end:
            events.setdefault(span.begin, []).append((_RANK[span.kind], 1))
            events.setdefault(span.end, []).append((_RANK[span.kind], -1))
    active = [0] * len(CLASSES)
    times = sorted(events)
    flat: list[Span] = []
    for begin, end in pairwise(times):
        for rank, change in events[begin]:
            active[rank] += change
        kind = CLASSES[next(rank for rank, count in enumerate(active) if count)]
        if flat and flat[-1].kind == kind:
            begin = flat.pop().begin
        flat.append(Span(begin, end, kind))
    return flat
