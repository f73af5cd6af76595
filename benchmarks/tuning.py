"""What tuning gains on the NPU: the ten cases of the README, and machines drawn at random.

    python -m benchmarks.tuning [--trials 512] [--cases ...] [--machines 20]

The cases are networks of 224 x 224 pixels, the drawn machines run small ones; random weights but
for the shipped network, power-of-two steps per tensor. Nothing is executed: cycles are those of the
timing model, which are exact, and `tvmq tune` compares the outputs. Prints a Markdown table of the
cases, and one of the machines with the distribution of their ratios.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.networks_224 import NETWORKS, SEED
from relay_passes.place import programs_of
from relay_passes.read_layers import IntegerNetwork, read_layers
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.npu.trials import Trials
from tests.models import export, mobilenet_small, vit_small
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture
from tvmq.lowering import lower
from tvmq.plan.annotate import annotate
from tvmq.plan.plan_network import plan_network
from tvmq.settings import Settings, parse_precision
from tvmq.tune.processes import Processes
from tvmq.tune.search import Found, search

CASES = (
    *(("resnet18", machine, p) for machine in ("m2048", "e256") for p in ("w8a8", "w4a4", "w2a2")),
    *(("mobilenet_v2", machine, p) for machine in ("m2048", "e256") for p in ("w8a8", "w4a4")),
)
"""Network, machine and precision."""
SMALL = {"mobilenet_small": (mobilenet_small, 32), "vit_small": (vit_small, 12)}
"""Networks of the tests, and the pixels of a side."""
IMAGES = 8
DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits" / "digits.pt2"


@dataclass(frozen=True)
class Row:
    """What a search gave.

    Attributes:
        before: cycles by rule.
        best: fewest cycles after each trial; of several programs, one after the other.
        seconds: of the CPU.
    """

    before: int
    best: tuple[int, ...]
    seconds: float

    @property
    def after(self) -> int:
        """Cycles of the tuned programs."""
        return min(self.best, default=self.before)

    @property
    def trials(self) -> int:
        """That were made."""
        return len(self.best)

    @property
    def ratio(self) -> float:
        """How much faster it is."""
        return self.before / self.after

    @property
    def cells(self) -> str:
        """The end of a line."""
        speed = self.trials / self.seconds
        return f"{self.before:,} | {self.after:,} | {self.ratio:.4f} | {speed:.1f} |"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--cases", default="all", help="network:machine:precision,... or none")
    parser.add_argument("--machines", type=int, default=20, help="how many are drawn")
    small = ",".join(("digits", *SMALL))
    parser.add_argument("--networks", default=small, help="on drawn machines")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--precision", default="w8a8", help="on drawn machines")
    options = parser.parse_args()
    cases = [tuple(case.split(":")) for case in options.cases.split(",") if ":" in case]
    if options.cases == "all":
        cases = list(CASES)
    search_for = partial(
        tuned, trials=options.trials, seed=options.seed, processes=options.processes
    )
    if cases:
        print_cases(cases, search_for, options.trials)
    if options.machines:
        networks = [(name, options.precision) for name in options.networks.split(",")]
        print_machines(networks, options.machines, search_for, options.trials)
    return 0


def print_cases(
    cases: Sequence[tuple[str, ...]], search_for: Callable[..., Row], trials: int
) -> None:
    """A line per case."""
    print(f"| network | machine | precision | by rule | {trials} trials | ratio | trials / CPU s |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for name, machine, precision in cases:
        row = search_for(integers(name, precision), load_spec(machine))
        rows.append(row)
        print(f"| {name} | {machine} | {precision} | {row.cells}", flush=True)
    print_distribution([row.ratio for row in rows])


def print_machines(
    networks: Sequence[tuple[str, str]], count: int, search_for: Callable[..., Row], trials: int
) -> None:
    """A line per machine and network."""
    print(f"\n| machine | network | by rule | {trials} trials | ratio | trials / CPU s |")
    print("|---|---|---|---|---|---|")
    rows = []
    for number in range(count):
        spec = drawn_machine(number)
        for name, precision in networks:
            row = search_for(integers(name, precision), spec)
            rows.append(row)
            print(f"| {number}: {words(spec)} | {name} {precision} | {row.cells}", flush=True)
    print_distribution([row.ratio for row in rows])


def print_distribution(ratios: Sequence[float]) -> None:
    """Geometric mean and quartiles."""
    least, low, median, high, most = np.quantile(ratios, [0, 0.25, 0.5, 0.75, 1])
    print(
        f"\n{len(ratios)} ratios: geometric mean {geometric_mean(ratios):.4f}; least {least:.4f}, "
        f"quartiles {low:.4f}, {median:.4f}, {high:.4f}, most {most:.4f}",
        flush=True,
    )


def geometric_mean(ratios: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


class Memory:
    """Records of one run."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], int] = {}

    def find(self, workload: str, choice: Any) -> int | None:
        """As ``Known`` says."""
        return self._known.get((workload, repr(choice)))

    def add(self, workload: str, choice: Any, cycles: int, words: str) -> None:
        """As ``Known`` says."""
        self._known[workload, repr(choice)] = cycles


def tuned(
    network: IntegerNetwork,
    spec: NpuSpec,
    trials: int,
    seed: int,
    searching: Callable[..., Found] = search,
    processes: int = 1,
) -> Row:
    """Tune the programs of a network; trials are shared by what they compute."""
    programs = programs_of(network, spec)
    total = sum(parts.macs for parts in programs)
    begin = sum(os.times()[:4])
    found = []
    with ExitStack() as stack:
        started = stack.enter_context(Processes(processes - 1)) if processes > 1 else None
        for parts in programs:
            space = Trials(parts.layers, parts.inputs, parts.outputs, spec)
            share = trials * parts.macs // total
            found.append(searching(space, share, seed, Memory(), processes=started))
    seconds = sum(os.times()[:4]) - begin
    before = left = sum(each.before for each in found)
    best: list[int] = []
    for each in found:
        best += [left - each.before + cycles for cycles in each.best]
        left += each.after - each.before
    return Row(before, tuple(best), seconds)


@cache
def integers(name: str, precision: str) -> IntegerNetwork:
    """A network, quantized and lowered; "digits" is the shipped one, of 16 x 16 pixels."""
    weights, activations = parse_precision(precision)
    settings = Settings(weight_bits=weights, activation_bits=activations, bias_correction=False)
    if name == "digits":
        model = capture(DIGITS)
    else:
        with TemporaryDirectory() as room:
            file = Path(room) / "model.pt2"
            torch.export.save(exported(name), file)
            model = capture(file)
    (given,) = model.inputs
    noise = np.random.default_rng(SEED).standard_normal((IMAGES, *given.shape[1:]))
    batch = {given.name: noise.astype(np.float32)}
    calibration = calibrate(model, [batch], IMAGES)
    found = plan_network(model, calibration, settings, None, lambda *_: None)
    integer = lower(found.model, annotate(found.model, found.plan), {})
    return read_layers(integer)


def exported(name: str) -> torch.export.ExportedProgram:
    """A network with random weights."""
    if name in NETWORKS:
        return NETWORKS[name](SEED)
    build, pixels = SMALL[name]
    module, _ = build()
    return export((module, torch.zeros(2, 3, pixels, pixels)))


def machine(name: str) -> NpuSpec:
    """A preset, or "drawn" and the seed of one that is drawn."""
    seed = name.removeprefix("drawn")
    return drawn_machine(int(seed)) if seed != name else load_spec(name)


def drawn_machine(seed: int) -> NpuSpec:
    """Rows, columns, memories, bus and vector lanes from wide ranges, the rest of a preset."""
    rng = np.random.default_rng(seed)

    def power(low: int, high: int) -> int:
        return int(2 ** rng.integers(low, high + 1))

    content = load_spec(str(rng.choice(["e256", "m2048"]))).model_dump()
    rows, columns = power(3, 7), power(3, 6)
    content["array"] |= {"rows": rows, "cols": columns}
    memories = content["sram"]
    memories["act"]["bytes"] = int(rng.integers(48, 1025)) * 1024
    memories["wgt"]["bytes"] = int(rng.integers(24, 513)) * 1024 + 4 * rows * columns
    memories["acc"]["bytes"] = power(7, 12) * 4 * columns
    memories["par"]["bytes"] = power(12, 14)
    content["dma"] |= {"bytes_per_cycle": power(2, 6), "read_latency": int(rng.integers(10, 200))}
    lanes = power(2, 6)
    vector = content["vu"]
    content["vu"] |= {name: lanes for name in vector if name.endswith("_lanes")}
    return NpuSpec.model_validate(content | {"name": f"drawn{seed}"})


def words(spec: NpuSpec) -> str:
    """The sizes that were drawn."""
    sram, kib = spec.sram, 1024
    return (
        f"{spec.array.rows} x {spec.array.cols}, ACT {sram.act.bytes // kib} KiB, "
        f"WGT {sram.wgt.bytes // kib} KiB, {spec.dma.bytes_per_cycle} B / cycle, "
        f"{spec.vu.mult_lanes} lanes"
    )


if __name__ == "__main__":
    sys.exit(main())
