"""Where the time of one image goes: NPU layers in modelled cycles, CPU kernels as measured.

An operator on the NPU costs what the timing model says of its window (``targets.npu.price``);
one on the CPU is measured on this machine, the smallest of several runs. What passes between NPU
and CPU has rows of its own: it lies in DRAM that both see, and is counted as once over the
machine's bus. So have the float ends of the network, each as a whole, and host work that is
neither: from floats to codes, and from sums to floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from relay_passes.float_ends import HEAD, TAIL
from targets.errors import InputError
from targets.npu.machine.isa import UNIT_NAMES
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.npu.price.layer_costs import LayerCost, PricedProgram, price
from tvmq.artifact.artifact import Artifact, RangeEntry
from tvmq.artifact.description import described
from tvmq.profile.cpu import measure_cpu


@dataclass(frozen=True)
class OperatorProfile:
    """One row, for one image.

    Attributes:
        name: of the layer, of the host function, or of the program whose tensors are handed over.
        layer: module path and source line.
        op: "conv2d", "add", ..., "float" for an end of the network or an island in it, "host", or
            "transfer".
        device: "npu", "cpu", or "bus".
        cycles: of the NPU; 0 elsewhere.
        us: microseconds, modelled on NPU and bus, measured on the CPU.
        macs: multiply-accumulates.
        bytes: DRAM traffic of the NPU, instructions included, or bytes handed over; 0 on the CPU.
        utilization: of the NPU's MAC array at the layer's operand widths, in [0, 1].
        filled: share of that array's multipliers with data while it works for the layer, in [0, 1].
        busy: share of the cycles in which it does; filled * busy is the utilization.
        bound: a word of ``layer_costs.BOUNDS``, "host" or "handover".
        reason: why it isn't on the NPU; "" where it is.
        unfilled: why multipliers have no data; "" where nearly all have, and off the NPU.
        energy_pj: relative energy; 0 where nothing is modelled.
        stalls: unit -> class of ``stalls`` -> cycles of the layer's window; only what isn't 0.
    """

    name: str
    layer: str
    op: str
    device: str
    cycles: int
    us: float
    macs: int
    bytes: int
    utilization: float
    bound: str
    reason: str
    filled: float = 0.0
    busy: float = 0.0
    unfilled: str = ""
    energy_pj: float = 0.0
    stalls: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """All operators of one image: layers in order, then transfers, float ends, then host work.

    Attributes:
        artifact: its folder.
        target: what it was built for.
        total_cycles: of the NPU.
        total_ms: NPU cycles at the machine's clock, transfers, and CPU time.
        mac_utilization: of the NPU's MAC array while the NPU works, in [0, 1].
        energy_table: name of the table, "" without an NPU.
        operators: the rows.
        spec: the machine, or None.
        programs: what the rows of the NPU were made from, by file name.
        reconstruction: what the manifest says of it.
        about: lines of what the artifact is.
        ranges: the same, of what is too narrow for its step.
    """

    artifact: str
    target: str
    total_cycles: int
    total_ms: float
    mac_utilization: float
    energy_table: str
    operators: tuple[OperatorProfile, ...]
    spec: NpuSpec | None
    programs: dict[str, PricedProgram]
    reconstruction: dict[str, Any] = field(default_factory=dict)
    about: tuple[str, ...] = ()
    ranges: tuple[RangeEntry, ...] = ()


def profile(artifact: Artifact, energy: str = "") -> Profile:
    """Price the NPU part of an artifact and measure its CPU part.

    Args:
        artifact: to profile.
        energy: a table of the machine's description; "" takes its choice.

    Raises:
        SpecError: no such energy table.
    """
    layers = artifact.layers()
    spec = load_spec(str(artifact.path("npu.toml"))) if artifact.has("npu.toml") else None
    priced = {} if spec is None else price_programs(artifact, spec, energy)
    sources = {layer["name"]: layer for layer in layers}
    _check_layers(artifact, layers, priced)
    rows = {
        cost.name: _npu_row(cost, sources[cost.name], spec)
        for program in priced.values()
        for cost in program.layers
        if spec is not None
    }
    measured = measure_cpu(artifact, layers)
    rows |= {name: _cpu_row(sources[name], us) for name, us in measured.layers.items()}
    rows |= {
        layer["name"]: _cpu_row(layer, measured.floats[layer["name"]])
        for layer in layers
        if layer["device"] == "float"
    }
    operators = [rows[layer["name"]] for layer in layers]
    if spec is not None:
        byte_pj = spec.energy.named(energy).dram_byte
        operators += [row for item in priced.items() for row in _transfers(*item, spec, byte_pj)]
    operators += _end_rows(artifact, measured.floats)
    operators += [_cpu_row(_host_layer(symbol), us) for symbol, us in measured.host.items()]
    cycles = sum(program.timeline.total for program in priced.values())
    ideal = float(sum(program.ideal_cycles for program in priced.values()))
    return Profile(
        artifact=str(artifact.folder),
        target=artifact.manifest.target,
        total_cycles=cycles,
        total_ms=round(sum(row.us for row in operators) / 1000, 6),
        mac_utilization=round(ideal / cycles, 4) if cycles else 0.0,
        energy_table="" if spec is None else energy or spec.energy.table,
        operators=tuple(operators),
        spec=spec,
        programs=priced,
        reconstruction=artifact.manifest.reconstruction,
        about=tuple(described(artifact)),
        ranges=artifact.manifest.ranges,
    )


def _check_layers(
    artifact: Artifact, layers: list[dict[str, Any]], priced: dict[str, PricedProgram]
) -> None:
    """Raise where programs and layers.json are of different networks."""
    named = sorted(layer["name"] for layer in layers if layer["device"] == "npu")
    found = sorted(cost.name for program in priced.values() for cost in program.layers)
    if named != found:
        raise InputError(
            f"{artifact.folder}: layers.json and the NPU programs name different layers. Build it "
            "again."
        )


def price_programs(artifact: Artifact, spec: NpuSpec, energy: str) -> dict[str, PricedProgram]:
    """The NPU programs of an artifact with their timelines, by file name."""
    return {name: price(each, spec, energy) for name, each in artifact.programs().items()}


def _npu_row(cost: LayerCost, layer: dict[str, Any], spec: NpuSpec) -> OperatorProfile:
    return OperatorProfile(
        name=cost.name,
        layer=layer["source"],
        op=layer["kind"],
        device="npu",
        cycles=cost.cycles,
        us=_microseconds(cost.cycles, spec),
        macs=layer["macs"],
        bytes=cost.dram_bytes,
        utilization=cost.utilization,
        bound=cost.bound,
        reason="",
        filled=cost.filled,
        busy=cost.busy,
        unfilled=cost.unfilled,
        energy_pj=round(cost.picojoules, 1),
        stalls={
            unit: {name: cycles for name, cycles in classes.items() if cycles}
            for unit, classes in zip(UNIT_NAMES, cost.units, strict=True)
        },
    )


def _cpu_row(layer: dict[str, Any], us: float) -> OperatorProfile:
    return OperatorProfile(
        name=layer["name"],
        layer=layer["source"],
        op=layer["kind"],
        device="cpu",
        cycles=0,
        us=round(us, 3),
        macs=layer["macs"],
        bytes=0,
        utilization=0.0,
        bound="host",
        reason=layer["reason"],
    )


def _transfers(
    name: str, priced: PricedProgram, spec: NpuSpec, byte_pj: float
) -> Iterator[OperatorProfile]:
    program, dma = priced.program, spec.dma
    for size, latency, what in (
        (program.input_bytes, dma.write_latency, "inputs"),
        (program.output_bytes, dma.read_latency, "outputs"),
    ):
        bursts = -(-size // dma.burst) * dma.burst
        cycles = -(-bursts // dma.bytes_per_cycle) + latency
        yield OperatorProfile(
            name=f"{name} {what}",
            layer="",
            op="transfer",
            device="bus",
            cycles=0,
            us=_microseconds(cycles, spec),
            macs=0,
            bytes=size,
            utilization=0.0,
            bound="handover",
            reason=f"{what} of the NPU program pass through DRAM between CPU and NPU",
            energy_pj=round(size * byte_pj, 1),
        )


def _microseconds(cycles: int, spec: NpuSpec) -> float:
    return round(spec.microseconds(cycles), 3)


def _end_rows(artifact: Artifact, microseconds: Mapping[str, float]) -> Iterator[OperatorProfile]:
    ends = artifact.manifest.float_ends
    if ends is None:
        return
    for name, operators in ((HEAD, ends.head), (TAIL, ends.tail)):
        if operators:  # else what only passes
            kinds = ", ".join(dict.fromkeys(operator.kind for operator in operators))
            row = {"name": f"float {name}", "source": operators[0].source, "kind": "float"}
            reason = f"in float at the network's end, on the host: {kinds}"
            yield _cpu_row(row | {"macs": 0, "reason": reason}, microseconds[name])


def _host_layer(symbol: str) -> dict[str, Any]:
    reason = "from floats to codes or from sums to floats, or data movement between kernels"
    return {"name": symbol, "source": "", "kind": "host", "macs": 0, "reason": reason}
