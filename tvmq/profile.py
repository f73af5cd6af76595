"""Where the time of one image goes: NPU layers in modelled cycles, CPU kernels as measured.

An operator on the NPU costs what ``targets/npu/cycles.py`` says of its instructions; one on the CPU
is measured on this machine, the smallest of several runs. Host work that no layer describes (the
float ends of the network) has rows of its own. Packing for the simulator is left out: a real host
would hand over pointers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from targets.npu.cycles import layer_cycles
from targets.npu.spec import NpuSpec, load_spec
from tvmq.artifact import Artifact

REPEATS = 20


@dataclass(frozen=True)
class OperatorProfile:
    """One row, for one image.

    Attributes:
        name: of the layer, or of the host function.
        layer: module path and source line.
        op: "conv2d", "add", ..., or "host".
        device: "npu" or "cpu".
        cycles: of the NPU; 0 on the CPU.
        us: microseconds, modelled on the NPU, measured on the CPU.
        macs: multiply-accumulates.
        bytes: DRAM traffic of the NPU; 0 on the CPU.
        utilization: of the NPU's MAC array in this operator, in [0, 1].
        bound: the unit that is busiest, or "host".
        reason: why it isn't on the NPU; "" where it is.
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


@dataclass(frozen=True)
class Profile:
    """All operators of one image, in order.

    Attributes:
        total_cycles: of the NPU.
        total_ms: NPU cycles at the machine's clock, and CPU time.
        mac_utilization: of the NPU's MAC array while the NPU works, in [0, 1].
        operators: the rows.
    """

    total_cycles: int
    total_ms: float
    mac_utilization: float
    operators: tuple[OperatorProfile, ...]


def profile(artifact: Artifact) -> Profile:
    """Price the NPU part of an artifact and measure its CPU part."""
    layers = artifact.read_json("layers.json")
    spec = load_spec(str(artifact.path("npu.toml"))) if artifact.has("npu.toml") else None
    on_npu = _npu_rows(artifact, spec, layers) if spec is not None else {}
    on_cpu, host = _cpu_rows(artifact, layers)
    rows = [on_npu.get(layer["name"]) or on_cpu[layer["name"]] for layer in layers] + host
    cycles = sum(row.cycles for row in rows)
    macs = sum(row.macs for row in rows if row.device == "npu")
    peak = spec.peak_macs_per_cycle if spec is not None else 1
    return Profile(
        total_cycles=cycles,
        total_ms=round(sum(row.us for row in rows) / 1000, 6),
        mac_utilization=round(macs / (cycles * peak), 4) if cycles else 0.0,
        operators=tuple(rows),
    )


def _npu_rows(
    artifact: Artifact, spec: NpuSpec, layers: list[dict[str, Any]]
) -> dict[str, OperatorProfile]:
    sources = {layer["name"]: layer for layer in layers}
    rows = {}
    for program in artifact.programs().values():
        for cost in layer_cycles(program, spec):
            layer = sources[cost.name]
            capacity = cost.cycles * spec.peak_macs_per_cycle
            rows[cost.name] = OperatorProfile(
                name=cost.name,
                layer=layer["source"],
                op=layer["kind"],
                device="npu",
                cycles=cost.cycles,
                us=round(cost.cycles / spec.clock_hz * 1e6, 3),
                macs=layer["macs"],
                bytes=cost.dram_bytes,
                utilization=round(layer["macs"] / capacity, 4) if capacity else 0.0,
                bound=cost.bound,
                reason="",
            )
    return rows


def _cpu_rows(
    artifact: Artifact, layers: list[dict[str, Any]]
) -> tuple[dict[str, OperatorProfile], list[OperatorProfile]]:
    """Rows of the layers on the CPU, by name, and rows of host work that belongs to no layer.

    Kernels are called in the order of their layers and named after their kinds, so the calls of
    one kind are the layers of that kind. Layers without a kernel (moves) are ordinary operators;
    their time is with the host's.
    """
    waiting: dict[str, list[str]] = {}
    rows = {}
    for layer in layers:
        if layer["device"] == "cpu":
            waiting.setdefault(layer["kind"], []).append(layer["name"])
            rows[layer["name"]] = _cpu_row(layer, 0.0)
    by_name = {layer["name"]: layer for layer in layers}
    host: dict[str, float] = {}
    for symbol, us in _measure(artifact):
        kind = symbol.removeprefix("cpu_").rstrip("0123456789")  # TVM numbers equal names
        if symbol.startswith("cpu_") and waiting.get(kind):
            name = waiting[kind].pop(0)
            rows[name] = _cpu_row(by_name[name], us)
        elif not symbol.startswith("npu_program_"):
            host[symbol] = host.get(symbol, 0.0) + us
    return rows, [_cpu_row(_host_layer(symbol), us) for symbol, us in host.items()]


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


def _host_layer(symbol: str) -> dict[str, Any]:
    reason = "float input or output of the network, or data movement between kernels"
    return {"name": symbol, "source": "", "kind": "host", "macs": 0, "reason": reason}


def _measure(artifact: Artifact) -> list[tuple[str, float]]:
    """Compiled functions that model.so calls for one image, in order, with their microseconds."""
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(
        tvm.runtime.load_module(str(artifact.path("model.so"))), tvm.cpu()
    )
    calls: list[tuple[str, float]] = []
    began = 0.0

    def listen(_: Any, symbol: str, before: bool, *__: Any) -> int:
        nonlocal began
        if before:
            began = time.perf_counter()
        elif not symbol.startswith("vm.builtin") and symbol != "shape_func":
            calls.append((symbol, (time.perf_counter() - began) * 1e6))
        return 0

    machine.set_instrument(listen)
    inputs = [
        tvm.runtime.tensor(np.zeros((1, *info.image_shape), np.float32))
        for info in artifact.manifest.inputs
    ]
    runs = []
    for _ in range(REPEATS):
        calls.clear()
        machine["main"](*inputs)
        runs.append(list(calls))
    return [(same[0][0], min(us for _, us in same)) for same in zip(*runs, strict=True)]
