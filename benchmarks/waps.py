"""Factors of products: what they cost on whole networks, and what they are worth on ResNet-20.

    python -m benchmarks.waps cost [--networks resnet18,mobilenet_v2] [--machines e256,m2048]
    python -m benchmarks.waps accuracy --data FOLDER [--seeds 0,1,2] [--images 256] [--test 2000]
    python -m benchmarks.waps learned --data FOLDER --results FILE [--seeds 0,1,2] [--iters 500]
        [--networks resnet20,mobilenetv2] [--precisions w2a2,w2a4,w4a4] [--pairs rapq,qdrop]
        [--channels 8] [--outputs 16] [--without PART] [--images 1024] [--test 5000]

``cost``: random weights, 224 x 224 pixels, groups by the default budget, random factors; programs
are compiled and priced with and without them. ``accuracy``: compensated codes (OPTQ) of each unit
with corrected biases, and factors on top of these; top-1 of the fake-quantized network.
``learned``: ``qdrop`` (free steps) and ``rapq`` (powers of two) with and without ``waps``, same
images and iterations; on one thread. ``--without`` leaves a part of ``waps`` out: ``mixing`` of
channels, the ``opening`` before weights are learned, the ``closing`` solve behind, or of ``qdrop``
the ``factors``, so that compensated codes are left. Each finished run is a line of the results, and
what is there is not run again. All print a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.mobilenet_v2 import mobilenet_v2
from benchmarks.resnet18 import PIXELS, resnet18
from relay_passes.place import place
from relay_passes.read_layers import read_layers
from targets.npu.machine.spec import load_spec
from tvmq.calibrate.calibrate import Calibration, calibrate
from tvmq.capture.capture import capture, capture_program
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import FloatModel
from tvmq.lowering import lower
from tvmq.plan.annotate import annotate
from tvmq.plan.equalized_plan import Planned
from tvmq.plan.mixed_plan import plan_mixed
from tvmq.plan.plan import Plan
from tvmq.plan.plan_network import plan_network
from tvmq.plan.planner import make_plan
from tvmq.plan.product_groups import product_groups
from tvmq.profile.product_budget import with_factors
from tvmq.profile.product_cost import product_cost
from tvmq.reconstruct.engine import reconstruct
from tvmq.reconstruct.methods import METHODS, Method
from tvmq.reconstruct.refinements.compensated import CompensatedCodes
from tvmq.reconstruct.refinements.scaled_products import ScaledProducts
from tvmq.settings import Settings, parse_precision

NETWORKS = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2}
CASES = ((0, 0), (8, 0), (8, 16), (16, 1))
"""Input channels of a group, and output channels that have factors in common; 0: none, and all."""
PRECISIONS = ((2, 4), (2, 2))
PARTS = ("", "mixing", "opening", "closing", "factors")
IMAGES = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BATCH = 250


def main() -> int:
    """Run a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cost", "accuracy", "learned"))
    parser.add_argument("--networks")
    parser.add_argument("--machines", default="e256,m2048")
    parser.add_argument("--bits", default="4")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images", type=int)
    parser.add_argument("--test", type=int)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--iters", type=int, default=500)
    parser.add_argument("--precisions", default="w2a2,w2a4,w4a4")
    parser.add_argument("--pairs", default="rapq,qdrop")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--outputs", type=int, default=16)
    parser.add_argument("--without", default="", choices=PARTS)
    options = parser.parse_args()
    many = options.what == "learned"
    options.images = options.images or (1024 if many else 256)
    options.test = options.test or (5000 if many else 2000)
    lines = {"cost": costs, "accuracy": accuracies, "learned": comparisons}[options.what]
    for line in lines(options):
        print(line, flush=True)
    return 0


def costs(options: argparse.Namespace) -> Iterator[str]:
    """A row for each network, machine, precision and number of outputs."""
    names = ("network", "machine", "precision", "outputs", "groups", "operations", "cycles")
    yield f"| {' | '.join((*names, 'bytes', 'energy'))} |"
    yield "|" + "---|" * 9
    for name in (options.networks or ",".join(NETWORKS)).split(","):
        model = capture_program(NETWORKS[name](0))
        calibration = calibrate(model, [torch.randn(2, 3, PIXELS, PIXELS)], 2)
        for machine in options.machines.split(","):
            for bits in map(int, options.bits.split(",")):
                for by_column in (False, True):
                    row = cost(model, calibration, machine, bits, by_column=by_column)
                    yield f"| {name} | {machine} | w{bits}a{bits} | {row} |"


def cost(
    model: FloatModel, calibration: Calibration, machine: str, bits: int, *, by_column: bool
) -> str:
    """The cells of a row."""
    spec = load_spec(machine)
    outputs = spec.array.cols if by_column else 0
    settings = Settings(
        bits,
        bits,
        granularity="channel",
        method=("waps",),
        product_unit=spec.array.lanes(bits),
        product_outputs=outputs,
    )
    plan = make_plan(model, calibration, settings)
    groups = product_groups(model, plan.weights, plan.settings)
    plan = with_factors(model, plan, groups)
    integer = lower(model, annotate(model, plan))
    placed = place(integer, read_layers(integer), spec)
    found = product_cost(model, plan, placed.programs, spec)
    assert found is not None
    assert found.with_factors is not None
    assert found.without is not None
    after, before = found.with_factors, found.without
    channels = sorted(set(groups.values()))
    sizes = f"{channels[0]} to {channels[-1]}" if len(channels) > 1 else str(channels[0])
    return (
        f"{outputs or 'all'} | {sizes} | {found.share:+.2%} "
        f"| {before.cycles:,} {after.cycles / before.cycles - 1:+.2%} "
        f"| {after.dram_bytes / before.dram_bytes - 1:+.2%} "
        f"| {after.picojoules / before.picojoules - 1:+.2%}"
    )


def accuracies(options: argparse.Namespace) -> Iterator[str]:
    """A row for each precision and case: top-1 of each seed."""
    model = capture(options.data / "resnet20.pt2")
    x, y = tested(options)
    seeds = tuple(map(int, options.seeds.split(",")))
    yield f"| precision | groups | outputs | top-1, seeds {options.seeds} | mean |"
    yield "|" + "---|" * 5
    for bits in PRECISIONS:
        for channels, outputs in CASES:
            found = []
            for seed in seeds:
                calibration = calibrated(model, options, seed)
                found.append(
                    top1(*learned(model, calibration, bits, channels, outputs, seed), x, y)
                )
            each = ", ".join(f"{100 * number:.2f}" for number in found)
            shared = "" if not channels else str(outputs or "all")
            cells = (f"w{bits[0]}a{bits[1]}", str(channels or "none"), shared, each)
            yield f"| {' | '.join(cells)} | {100 * np.mean(found):.2f} |"


def learned(
    model: FloatModel,
    calibration: Calibration,
    bits: tuple[int, int],
    channels: int,
    outputs: int,
    seed: int,
) -> tuple[FloatModel, Plan]:
    """A network with compensated codes, and with factors if there are groups."""
    settings = Settings(*bits, "free", "channel", method=("waps",) if channels else ("qdrop",))
    settings = replace(settings, product_channels=channels, product_outputs=outputs)
    planned = Planned(model, calibration, make_plan(model, calibration, settings))
    refinements: tuple[CompensatedCodes | ScaledProducts, ...] = (CompensatedCodes(),)
    if channels:
        planned = plan_mixed(planned)
        refinements = (*refinements, ScaledProducts())
    method = Method(refinements=refinements)
    done = reconstruct(planned.model, planned.calibration, planned.plan, method=method, seed=seed)
    return done.model, done.plan


def comparisons(options: argparse.Namespace) -> Iterator[str]:
    """Run what is missing, seed by seed, then a row for each network, precision and method."""
    torch.set_num_threads(1)
    networks = (options.networks or "resnet20,mobilenetv2").split(",")
    names = [name for base in options.pairs.split(",") for name in (base, f"{base},waps")]
    seeds = tuple(map(int, options.seeds.split(",")))

    def run_of(network: str, precision: str, method: str, seed: int) -> Run:
        run = Run(network, precision, method, seed, options.iters, options.images)
        if not method.endswith("waps"):
            return run
        shape = {"channels": options.channels, "outputs": options.outputs}
        return replace(run, **shape, without=options.without)

    precisions = options.precisions.split(",")
    for network in networks:
        model = capture(options.data / f"{network}.pt2")
        for precision, seed, method in product(precisions, seeds, names):
            run = run_of(network, precision, method, seed)
            if run not in results(options.results):
                add(options.results, run, model, options)
    yield "| network | precision | method | groups, outputs | top-1 by seed | mean | difference |"
    yield "|" + "---|" * 7
    known = results(options.results)
    for network, precision, method in product(networks, precisions, names):
        runs = [run_of(network, precision, method, seed) for seed in seeds]
        found, difference = [known[run] for run in runs], ""
        if method.endswith("waps"):
            base = [run_of(network, precision, method[: -len(",waps")], seed) for seed in seeds]
            difference = paired([a - known[b] for a, b in zip(found, base, strict=True)])
        yield _row(runs[0], found, difference)


@dataclass(frozen=True)
class Run:
    """A network that was learned; ``channels`` and ``outputs`` are 0 without factors.

    ``without`` is what was left out of ``waps``.
    """

    network: str
    precision: str
    method: str
    seed: int
    iterations: int
    images: int
    channels: int = 0
    outputs: int = 0
    without: str = ""


def results(path: Path) -> dict[Run, float]:
    """Top-1 in percent of the runs in a file of lines."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {Run(**line["run"]): line["top1"] for line in lines}


def add(path: Path, run: Run, model: FloatModel, options: argparse.Namespace) -> None:
    """Learn, measure and write a line."""
    began, names = time.process_time(), tuple(run.method.split(","))
    settings = Settings(
        *parse_precision(run.precision),
        "pot" if "rapq" in names else "free",
        "channel",
        method=names,
        iterations=run.iterations,
        product_channels=run.channels,
        product_outputs=run.outputs,
    )
    with ExitStack() as stack:
        if run.without == "mixing":
            as_it_is = patch("tvmq.plan.plan_network.plan_mixed", lambda found, _progress: found)
            stack.enter_context(as_it_is)
        stack.enter_context(patch.dict(METHODS, waps=_waps(run.without)))
        planned = plan_network(model, calibrated(model, options, run.seed), settings)
        done = reconstruct(planned.model, planned.calibration, planned.plan, seed=run.seed)
    line = {
        "run": asdict(run),
        "top1": round(100 * top1(done.model, done.plan, *tested(options)), 2),
        "test": options.test,
        "cpu_seconds": round(time.process_time() - began),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "units": [
            {"kept": unit.kept, **{c.name: float(f"{c.loss:.5g}") for c in unit.candidates}}
            for unit in done.units
        ],
    }
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _waps(without: str) -> Method:
    """The method without one of its parts."""
    whole = METHODS["waps"]
    if without == "opening":
        return replace(whole, opening=())
    if without == "closing":
        return replace(whole, refinements=())
    if without == "factors":
        return replace(whole, opening=(CompensatedCodes(),), refinements=())
    return whole


def paired(differences: list[float]) -> str:
    """Their mean, and its standard error where there are two or more."""
    mean = f"{np.mean(differences):+.2f}"
    if len(differences) < 2:
        return mean
    return f"{mean} ± {np.std(differences, ddof=1) / math.sqrt(len(differences)):.2f}"


def _row(run: Run, found: list[float], difference: str) -> str:
    shape = f"{run.channels}, {run.outputs or 'all'}" if run.channels else ""
    shape += f", no {run.without}" if run.without else ""
    each = ", ".join(f"{number:.2f}" for number in found)
    cells = (run.network, run.precision, f"`{run.method}`", shape, each, f"{np.mean(found):.2f}")
    return f"| {' | '.join((*cells, difference))} |"


def calibrated(model: FloatModel, options: argparse.Namespace, seed: int) -> Calibration:
    """By the images that a seed draws."""
    images = open_data(str(options.data / "cifar10_calib.npz"), model.inputs, IMAGES)
    batches = [batch.inputs for batch in images.samples(options.images, 64, seed=seed)]
    return calibrate(model, batches, options.images)


def tested(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """The first test images, float32[N, 3, 32, 32], and their labels, int64[N]."""
    test = np.load(options.data / "cifar10_eval.npz")
    pixels = (test["images"][: options.test] / 255 - IMAGES.mean) / IMAGES.std
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    return x, torch.from_numpy(test["labels"][: options.test].astype(np.int64))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def top1(model: FloatModel, plan: Plan, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of right answers."""
    program = annotate(model, plan, torch.float32)
    right = [
        int((program(images)[0].argmax(1) == labels).sum())
        for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True)
    ]
    return sum(right) / len(y)


if __name__ == "__main__":
    sys.exit(main())
