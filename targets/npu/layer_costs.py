"""What each layer of a program costs: its window of the total, what the units did in it, and why.

    program = price(program, spec)      runs the clock once
    program.layers                      a LayerCost per layer; their windows partition the total

A layer's window goes from the end of the layer before to the completion of its last instruction.
Units run ahead: what the DMA already loads for the next layer is in this layer's window. MACs,
bytes and energy are those of the layer's own instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from targets.npu import isa
from targets.npu.accesses import accesses, dram_bytes, lanes
from targets.npu.energy import picojoules
from targets.npu.program import LayerSpan, Program
from targets.npu.spec import EnergyTable, NpuSpec
from targets.npu.stalls import Span, account, clip, totals
from targets.npu.timeline import Timeline
from targets.npu.timing import simulate_timing

BOUNDS = ("MAC array", "DMA", "requantize", "vector unit", "issue", "latency")
"""What can bound a layer; no layer has another word, "" is for one without instructions."""


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs for one image.

    Attributes:
        name: of the layer.
        begin: cycle at which its window begins.
        end: cycle at which its window ends.
        units: of LD, MM, VU, ST: class of ``stalls`` -> cycles inside the window.
        bus_cycles: of the window in which the bus moved data or instructions.
        macs: products.
        dram_bytes: of tensors and constants, and of its instructions.
        utilization: of the array at the layer's operand widths, in [0, 1].
        bound: a word of ``BOUNDS``.
        picojoules: relative energy.
    """

    name: str
    begin: int
    end: int
    units: tuple[dict[str, int], ...]
    bus_cycles: int
    macs: int
    dram_bytes: int
    utilization: float
    bound: str
    picojoules: float

    @property
    def cycles(self) -> int:
        """Length of the window."""
        return self.end - self.begin


@dataclass(frozen=True)
class PricedProgram:
    """A program, its run, and its accounts.

    Attributes:
        program: what ran.
        timeline: when.
        spans: per unit, classes of cycles from 0 to the total.
        layers: costs in order.
        ideal_cycles: that the array needs for all MACs at their widths with every lane busy.
    """

    program: Program
    timeline: Timeline
    spans: tuple[tuple[Span, ...], ...]
    layers: tuple[LayerCost, ...]
    ideal_cycles: Fraction


def price(program: Program, spec: NpuSpec, energy: str = "") -> PricedProgram:
    """Run the clock over a program and account for every cycle.

    Args:
        program: any.
        spec: the machine.
        energy: a table of the description; "" takes its choice.

    Raises:
        SpecError: no such energy table.
        TimingError: the program does not end.
    """
    table = spec.energy.named(energy)
    timeline = simulate_timing(program.instructions, spec)
    spans = account(timeline, program.instructions)
    bus = _bus_spans(timeline)
    windows = layer_windows(program, timeline)
    layers = [
        _layer(program, span, window, spans, bus, spec, table)
        for span, window in zip(program.layers, windows, strict=True)
    ]
    return PricedProgram(
        program,
        timeline,
        tuple(map(tuple, spans)),
        tuple(layers),
        _ideal_cycles(program.instructions, spec),
    )


def layer_windows(program: Program, timeline: Timeline) -> list[tuple[int, int]]:
    """[begin, end) of every layer; a layer without instructions has an empty one."""
    working = [n for n, span in enumerate(program.layers) if span.begin < span.end]
    windows, begin = [], 0
    for number, span in enumerate(program.layers):
        done = (run.done for run in timeline.runs[span.begin : span.end])
        end = max(begin, max(done, default=begin))
        if working and number == working[-1]:
            end = timeline.total  # HALT is the last layer's
        windows.append((begin, end))
        begin = end
    return windows


def _layer(
    program: Program,
    span: LayerSpan,
    window: tuple[int, int],
    spans: Sequence[Sequence[Span]],
    bus: Sequence[Span],
    spec: NpuSpec,
    table: EnergyTable,
) -> LayerCost:
    instructions = program.instructions[span.begin : span.end]
    cycles = window[1] - window[0]
    units = tuple(totals(clip(unit, *window)) for unit in spans)
    bus_cycles = sum(s.end - s.begin for s in clip(bus, *window))
    ideal = _ideal_cycles(instructions, spec)
    return LayerCost(
        name=span.name,
        begin=window[0],
        end=window[1],
        units=units,
        bus_cycles=bus_cycles,
        macs=sum(accesses(i, spec).macs for i in instructions),
        dram_bytes=sum(dram_bytes(i) + spec.issue.insn_bytes for i in instructions),
        # A short layer whose sums were ready before the layer before it ended can be above 1.
        utilization=min(1.0, round(float(ideal / cycles), 4)) if cycles else 0.0,
        bound=_bound(instructions, units, bus_cycles, cycles) if cycles else "",
        picojoules=sum(picojoules(i, spec, table) for i in instructions),
    )


def _bound(
    instructions: Sequence[isa.Instruction],
    units: Sequence[dict[str, int]],
    bus_cycles: int,
    cycles: int,
) -> str:
    """The part that is busy longest, if it is busy for half of the window; else what it waits for.

    A unit that decodes or waits for instructions most of its idle time is short of issue; else the
    parts wait for each other and for what is on its way: latency.
    """
    vector = any(isinstance(i, isa.Requantize) for i in instructions)
    busy = {
        "MAC array": units[isa.MM]["work"],
        "DMA": bus_cycles,
        "requantize" if vector else "vector unit": units[isa.VU]["work"],
    }
    busiest = max(busy, key=busy.__getitem__)
    if 2 * busy[busiest] >= cycles:
        return busiest
    unit = max(units, key=lambda classes: classes["decode"] + classes["fetch"])
    issue = unit["decode"] + unit["fetch"]
    return "issue" if 2 * issue >= cycles - busy[busiest] else "latency"


def _ideal_cycles(instructions: Sequence[isa.Instruction], spec: NpuSpec) -> Fraction:
    """Cycles with every lane of the array busy, at the rate of each instruction's widths."""
    by_lanes: dict[int, int] = {}
    for i in instructions:
        if isinstance(i, isa.Gemm | isa.Depthwise):
            width = lanes(i, spec)
            by_lanes[width] = by_lanes.get(width, 0) + accesses(i, spec).macs
    return sum((Fraction(n, width * spec.array.cols) for width, n in by_lanes.items()), Fraction(0))


def _bus_spans(timeline: Timeline) -> list[Span]:
    transfers = [run.bus for run in timeline.runs if run.bus[0] < run.bus[1]]
    transfers += list(timeline.fetch)
    return [Span(begin, end, "work") for begin, end in sorted(transfers)]
