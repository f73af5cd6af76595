"""What tuning gains on the NPU: the ten cases of the README, and machines drawn at random.

    python -m benchmarks.tuning [--trials 512] [--cases ...] [--machines 20] [--searches ...]

Networks of 224 x 224 pixels with random weights, power-of-two steps per tensor. Nothing is
executed: cycles are those of the timing model, which are exact, and `tvmq tune` compares the
outputs. Prints a Markdown table of the cases, one of the machines with the distribution of their
ratios, and one that compares the search with its parts: cuts at random, and the next by estimate.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
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
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture
from tvmq.lowering import lower
from tvmq.plan.annotate import annotate
from tvmq.plan.plan_network import plan_network
from tvmq.settings import Settings, parse_precision
from tvmq.tune.search import Mix, search

CASES = (
    *(("resnet18", machine, p) for machine in ("m2048", "e256") for p in ("w8a8", "w4a4", "w2a2")),
    *(("mobilenet_v2", machine, p) for machine in ("m2048", "e256") for p in ("w8a8", "w4a4")),
)
"""Network, machine and precision."""
SEARCHES = {
    "search": Mix(),
    "estimate": Mix(near=0, by_estimate=8),
    "random": Mix(first=0, near=0, by_estimate=0),
}
IMAGES = 8
DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits" / "digits.pt2"


@dataclass(frozen=True)
class Row:
    """Cycles by rule and tuned, trials, and the CPU seconds that they took."""

    before: int
    after: int
    trials: int
    seconds: float

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
    parser.add_argument("--networks", default="resnet18,mobilenet_v2", help="on drawn machines")
    parser.add_argument("--precision", default="w8a8", help="on drawn machines")
    parser.add_argument("--searches", default="", help="network:machine:precision to compare on")
    options = parser.parse_args()
    cases = [tuple(case.split(":")) for case in options.cases.split(",") if ":" in case]
    if options.cases == "all":
        cases = list(CASES)
    if cases:
        print_cases(cases, options.trials, options.seed)
    if options.machines:
        networks = [(name, options.precision) for name in options.networks.split(",")]
        print_machines(networks, options.machines, options.trials, options.seed)
    if options.searches:
        name, machine, precision = options.searches.split(":")
        print_searches(integers(name, precision), load_spec(machine), options.trials)
    return 0


def print_cases(cases: Sequence[tuple[str, ...]], trials: int, seed: int) -> None:
    """A line per case."""
    print(f"| network | machine | precision | by rule | {trials} trials | ratio | trials / CPU s |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for name, machine, precision in cases:
        row = tuned(integers(name, precision), load_spec(machine), trials, seed)
        rows.append(row)
        print(f"| {name} | {machine} | {precision} | {row.cells}", flush=True)
    print_distribution([row.ratio for row in rows])


def print_machines(networks: Sequence[tuple[str, str]], count: int, trials: int, seed: int) -> None:
    """A line per machine and network."""
    print(f"\n| machine | network | by rule | {trials} trials | ratio | trials / CPU s |")
    print("|---|---|---|---|---|---|")
    rows = []
    for number in range(count):
        spec = drawn_machine(number)
        for name, precision in networks:
            row = tuned(integers(name, precision), spec, trials, seed)
            rows.append(row)
            print(f"| {number}: {words(spec)} | {name} {precision} | {row.cells}", flush=True)
    print_distribution([row.ratio for row in rows])


def print_searches(network: IntegerNetwork, spec: NpuSpec, trials: int) -> None:
    """A line per search, over three seeds."""
    print("\n| search | ratio, seeds 0 to 2 |\n|---|---|")
    for name, mix in SEARCHES.items():
        ratios = [tuned(network, spec, trials, seed, mix).ratio for seed in range(3)]
        print(f"| {name} | {', '.join(f'{ratio:.4f}' for ratio in ratios)} |", flush=True)


def print_distribution(ratios: Sequence[float]) -> None:
    """Geometric mean and quartiles."""
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    least, low, median, high, most = np.quantile(ratios, [0, 0.25, 0.5, 0.75, 1])
    print(
        f"\n{len(ratios)} ratios: geometric mean {mean:.4f}; least {least:.4f}, quartiles "
        f"{low:.4f}, {median:.4f}, {high:.4f}, most {most:.4f}",
        flush=True,
    )


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
    network: IntegerNetwork, spec: NpuSpec, trials: int, seed: int, mix: Mix | None = None
) -> Row:
    """Tune the programs of a network; trials are shared by what they compute."""
    programs = programs_of(network, spec)
    total = sum(parts.macs for parts in programs)
    before = after = made = 0
    begin = time.process_time()
    for parts in programs:
        search_space = Trials(parts.layers, parts.inputs, parts.outputs, spec)
        found = search(search_space, trials * parts.macs // total, seed, Memory(), mix=mix)
        before, after = before + found.before, after + found.after
        made += len(found.best)
    return Row(before, after, made, time.process_time() - begin)


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
            torch.export.save(NETWORKS[name](SEED), file)
            model = capture(file)
    (given,) = model.inputs
    noise = np.random.default_rng(SEED).standard_normal((IMAGES, *given.shape[1:]))
    batch = {given.name: noise.astype(np.float32)}
    calibration = calibrate(model, [batch], IMAGES)
    found = plan_network(model, calibration, settings, None, lambda *_: None)
    integer = lower(found.model, annotate(found.model, found.plan), {})
    return read_layers(integer)


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
