"""What each layer of a program costs: its window of the total, what the units did in it, and why.

    program = price(program, spec)      runs the clock once
    program.layers                      a LayerCost per layer; their windows partition the total

A layer's window goes from the end of the layer before to the completion of its last instruction.
Units run ahead: what the DMA already loads for the next layer is in this layer's window. MACs,
bytes and energy are those of the layer's own instructions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from targets.npu.machine import isa
from targets.npu.machine.energy_tables import EnergyTable
from targets.npu.machine.program import LayerSpan, Program
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.accesses import dram_bytes, lanes
from targets.npu.price.energy import picojoules
from targets.npu.price.occupancy import occupancy
from targets.npu.price.stalls import Span, account, clip, totals
from targets.npu.price.timeline import Timeline
from targets.npu.price.timing import simulate_timing

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
        bus_cycles: of the window in which the bus moved data.
        fetch_cycles: of the window in which it moved instructions.
        macs: multiply-accumulates of the layer, without the zeros that fill up tiles.
        dram_bytes: of tensors and constants, and of its instructions.
        utilization: of the array at the layer's operand widths, in [0, 1].
        filled: share of its multipliers with data while it works for the layer, in [0, 1].
        busy: share of the window in which it works for the layer; filled * busy = utilization.
        unfilled: why multipliers have no data, in words; "" where nearly all have.
        bound: a word of ``BOUNDS``.
        picojoules: relative energy.
    """

    name: str
    begin: int
    end: int
    units: tuple[dict[str, int], ...]
    bus_cycles: int
    fetch_cycles: int
    macs: int
    dram_bytes: int
    utilization: float
    filled: float
    busy: float
    unfilled: str
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
        ideal_cycles: that the array needs for all layers' MACs with every lane busy.
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
    bus = [_transfers(run.bus for run in timeline.runs), _transfers(timeline.fetch)]
    windows = layer_windows(program, timeline)
    layers = [
        _layer(program, span, window, spans, bus, spec, table)
        for span, window in zip(program.layers, windows, strict=True)
    ]
    ideal = sum((_ideal_cycles(program, span, spec) for span in program.layers), Fraction(0))
    return PricedProgram(program, timeline, tuple(map(tuple, spans)), tuple(layers), ideal)


def layer_windows(program: Program, timeline: Timeline) -> list[tuple[int, int]]:
    """[begin, end) of every layer; a layer without instructions has an empty one."""
    working = [n for n, span in enumerate(program.layers) if span.runs]
    windows, begin = [], 0
    for number, span in enumerate(program.layers):
        end = max((begin, *(run.done for run in span.of(timeline.runs))))
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
    bus: Sequence[Sequence[Span]],
    spec: NpuSpec,
    table: EnergyTable,
) -> LayerCost:
    instructions = span.of(program.instructions)
    cycles = window[1] - window[0]
    units = tuple(totals(clip(unit, *window)) for unit in spans)
    data, fetch = (totals(clip(moves, *window))["work"] for moves in bus)
    ideal = _ideal_cycles(program, span, spec)
    array = occupancy(instructions, span.macs, spec)
    return LayerCost(
        name=span.name,
        begin=window[0],
        end=window[1],
        units=units,
        bus_cycles=data,
        fetch_cycles=fetch,
        macs=span.macs,
        dram_bytes=sum(dram_bytes(i) + spec.issue.insn_bytes for i in instructions),
        # A short layer whose sums were ready before the layer before it ended can be above 1.
        utilization=min(1.0, round(float(ideal / cycles), 4)) if cycles else 0.0,
        filled=array.filled,
        busy=min(1.0, round(array.work / cycles, 4)) if cycles else 0.0,
        unfilled=array.why,
        bound=_bound(instructions, units, (data, fetch), cycles) if cycles else "",
        picojoules=sum(picojoules(i, spec, table) for i in instructions),
    )


def _bound(
    instructions: Sequence[isa.Instruction],
    units: Sequence[dict[str, int]],
    bus: tuple[int, int],
    cycles: int,
) -> str:
    """The part that is busy longest, if it is busy for half of the window; else what it waits for.

    A unit that decodes or waits for instructions most of that time is short of issue; else the
    parts wait for each other and for what is on its way: latency.
    """
    vector = any(isinstance(i, isa.Requantize) for i in instructions)
    busy = {
        "MAC array": units[isa.MM]["work"],
        "DMA" if bus[0] >= bus[1] else "issue": sum(bus),
        "requantize" if vector else "vector unit": units[isa.VU]["work"],
    }
    busiest = max(busy, key=busy.__getitem__)
    if 2 * busy[busiest] >= cycles:
        return busiest
    issue = max(unit["decode"] + unit["fetch"] for unit in units)
    return "issue" if 2 * issue >= cycles - busy[busiest] else "latency"


def _ideal_cycles(program: Program, span: LayerSpan, spec: NpuSpec) -> Fraction:
    """Cycles of the array with every lane busy, at the rate of the layer's operand widths."""
    for i in span.of(program.instructions):
        if isinstance(i, isa.Gemm | isa.Depthwise):
            return Fraction(span.macs, lanes(i, spec) * spec.array.cols)
    return Fraction(0)


def _transfers(moves: Iterable[tuple[int, int]]) -> list[Span]:
    return [Span(begin, end, "work") for begin, end in sorted(moves) if begin < end]
