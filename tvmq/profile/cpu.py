"""CPU time of an artifact: what model.so calls for one image, each call measured."""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from relay_passes.float_ends import HEAD, INTEGERS, TAIL
from targets.npu.execute.compiled import SYMBOL
from tvmq.artifact.artifact import Artifact, TensorInfo
from tvmq.run.session import load_library

NPU_SYMBOLS = (SYMBOL, "npu_program_")
"""The NPU's simulation, and what packs its inputs and outputs: time of the machine and its bus."""
REPEATS = 20
"""Runs; the smallest time counts, since whatever disturbs a run makes it longer."""


@dataclass
class CpuTimes:
    """Microseconds of one image.

    Attributes:
        layers: of the layers on the CPU, by name.
        host: of work that belongs to no layer, by symbol.
        floats: of what stays in float, the ends of the network and islands in it, by function.
    """

    layers: dict[str, float] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)
    floats: dict[str, float] = field(default_factory=dict)


def measure_cpu(artifact: Artifact, layers: list[dict[str, Any]]) -> CpuTimes:
    """Run an artifact on zeros and attribute the time of its kernels.

    Kernels are called in the order of their layers and named after their kinds, so the calls of
    one kind are the layers of that kind. Layers without a kernel (moves) are ordinary operators;
    their time is with the host's.
    """
    waiting: dict[str, list[str]] = {}
    times = CpuTimes()
    for layer in layers:
        if layer["device"] == "cpu":
            waiting.setdefault(layer["kind"], []).append(layer["name"])
            times.layers[layer["name"]] = 0.0
    with artifact.library("model.so") as path:
        floats = {island.name for island in artifact.manifest.float_islands}
        if artifact.manifest.float_ends is not None:
            floats |= {HEAD, TAIL}
        calls = _measure(path, artifact.manifest.inputs, floats)
    for symbol, us in calls:
        if symbol in floats:
            times.floats[symbol] = us
            continue
        kind = symbol.removeprefix("cpu_").rstrip("0123456789")  # TVM numbers equal names
        if symbol.startswith("cpu_") and waiting.get(kind):
            times.layers[waiting[kind].pop(0)] = us
        elif not symbol.startswith(NPU_SYMBOLS):
            times.host[symbol] = times.host.get(symbol, 0.0) + us
    return times


def _measure(path: Path, specs: Sequence[TensorInfo], floats: Set[str]) -> list[tuple[str, float]]:
    """Compiled functions that a library calls for one image, in order, with their microseconds.

    What stays in float is one of them, with all that it calls; what is between the ends is not.
    """
    import tvm

    machine = load_library(path)
    calls: list[tuple[str, float]] = []
    open_calls: list[tuple[str, float]] = []

    def listen(_: Any, symbol: str, before: bool, *__: Any) -> int:
        if before:
            open_calls.append((symbol, time.perf_counter()))
            return 0
        _, began = open_calls.pop()
        inside = any(outer in floats for outer, _ in open_calls)
        ours = symbol.startswith(("vm.builtin", "shape_func")) or symbol == INTEGERS
        if not (inside or ours):
            calls.append((symbol, (time.perf_counter() - began) * 1e6))
        return 0

    machine.set_instrument(listen)
    inputs = [tvm.runtime.tensor(np.zeros((1, *spec.image_shape), spec.dtype)) for spec in specs]
    runs = []
    for _ in range(REPEATS):
        calls.clear()
        machine["main"](*inputs)
        runs.append(list(calls))
    return [(same[0][0], min(us for _, us in same)) for same in zip(*runs, strict=True)]
