"""ResNet-20 on CIFAR-10 by every method, precision and kind of step: accuracy, mean and spread.

    python benchmarks/reconstruction.py --results FILE [--data FOLDER] [--only PATTERN ...]
                                        [--seeds 0,1,2] [--iters N] [--jobs N]

The folder (default: the environment variable TVMQ_DATA) holds resnet20.pt2, cifar10_calib.npz and
cifar10_eval.npz. A run is named such as ``w2a4-pot-rapq``; ``--only`` takes such names or globs of
them, and all are run without it, those that matter most first. Each finished run is added to the
results, and an interrupted one goes on where it was, so the table may grow over days;
``benchmarks/reconstruction_table.py`` prints it.

Accuracy is that of the annotated network in float32 torch, which equals the integers with powers of
two and is within rounding ties of them with free steps. Weights are symmetric per channel, first
and last layer 8 bits. The seed draws the calibration images and everything random after that.
``nearest`` is RAPQ's reconstruction with every exponent fixed to the one nearest to the best free
step, ``2 ** round(log2(step))``: what the search of exponents has to beat. ``asymmetric`` is QDrop
with a zero point for each channel of weights, in fake quantization only: what the public code does,
and what symmetric weights give up. ``unscaled`` is RAPQ with tensors as large as they were: what
scaling them to steps that are powers of two has to beat. A run of RAPQ also has its accuracy before
the pass over the whole network.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import torch
from reconstruction_table import FREE_METHODS, POT_METHODS, PRECISIONS, find, read, table, write

from tvmq import __version__
from tvmq.calibrate.calibrate import Calibration, calibrate
from tvmq.capture.capture import capture
from tvmq.data.labels import Labelling
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import FloatModel
from tvmq.plan.annotate import annotate
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.plan import Plan
from tvmq.plan.plan_network import plan_network
from tvmq.plan.planner import make_plan
from tvmq.reconstruct.engine import Reconstruction, reconstruct
from tvmq.reconstruct.methods import combined
from tvmq.reconstruct.network_work import NetworkPass
from tvmq.reconstruct.refinements.compensated import CompensatedCodes
from tvmq.reconstruct.unit_graph import QuantizedUnit
from tvmq.settings import Settings, parse_methods, parse_precision

CLASSES = Labelling("classes")
IMAGES = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SAMPLES, BATCH = 1024, 64
FIRST = (
    *("w2a4-pot-rapq", "w2a4-pot-nearest", "w4a4-pot-rapq", "w4a4-free-qdrop", "w2a4-free-qdrop"),
    *("w2a2-free-qdrop", "w2a2-pot-rapq", "w4a4-pot-nearest", "w2a2-pot-nearest"),
)
"""The runs that matter most, in order."""


def names() -> list[str]:
    """All runs: rounding to nearest costs nothing and comes first, then those of ``FIRST``."""
    every = [f"{bits}-pot-{method}" for bits in PRECISIONS for method in POT_METHODS]
    every += [f"{bits}-free-{method}" for bits in PRECISIONS for method in FREE_METHODS]
    cheap = [name for name in every if name.endswith("-rtn")]
    return list(dict.fromkeys([*cheap, *FIRST, *every]))


def main() -> int:
    """Run what is missing; 2 if the data isn't there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TVMQ_DATA"), help="folder of the data")
    parser.add_argument("--results", type=Path, required=True, help="JSON file that grows")
    parser.add_argument("--only", nargs="*", default=["*"], help="names or globs of runs")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--iters", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    options = parser.parse_args()
    if not options.data or not (Path(options.data) / "resnet20.pt2").is_file():
        print(f"{options.data}: no resnet20.pt2; give --data or TVMQ_DATA.", file=sys.stderr)
        return 2
    # All names of one seed before the next, so that a table of few seeds is soon whole.
    missing = [
        (name, int(seed))
        for seed in options.seeds.split(",")
        for name in names()
        if any(fnmatch(name, glob) for glob in options.only)
        and not find(read(options.results), name, int(seed), options.iters)
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, spawn) as workers:
        runs = {
            workers.submit(run, *item, options.iters, Path(options.data), options.results): item
            for item in missing
        }
        for done in as_completed(runs):
            if error := done.exception():  # the others go on
                name, seed = runs[done]
                print(f"{name} seed {seed}: failed: {error!r}", file=sys.stderr, flush=True)
                continue
            fact = done.result()
            write(options.results, [*read(options.results), fact])
            print(
                f"{fact['name']} seed {fact['seed']}: {100 * fact['top1']:.2f} % in "
                f"{fact['cpu_seconds']:.0f} CPU s",
                flush=True,
            )
    print("\n".join(table(read(options.results), options.iters)))
    return 0


def run(name: str, seed: int, iterations: int, data: Path, results: Path) -> dict[str, Any]:
    """Quantize and evaluate, in a process that does this for one run after the other."""
    torch.set_num_threads(1)
    precision, scales, method = name.split("-")
    model, calibration = calibrated(data, seed)
    known = {"nearest": "rapq", "unscaled": "rapq", "asymmetric": "qdrop"}.get(method, method)
    settings = Settings(
        *parse_precision(precision),
        scales,
        "channel",
        method=parse_methods(known),
        iterations=iterations,
    )
    began, cpu = time.perf_counter(), time.process_time()
    folder = results.with_name(f"{results.stem}.units") / f"{name}-{seed}-{iterations}"
    model, plan, done = quantized(model, calibration, settings, method, seed, folder)
    facts: dict[str, Any] = {}
    if plan.scaling is not None:
        facts["scaling"] = plan.scaling.reason
    if done is not None:
        kept = [unit.kept for unit in done.units]
        facts["kept"] = {kind: kept.count(kind) for kind in set(kept)}
    if done is not None and done.network:
        (network,) = done.network
        before = without_moves(model, plan, network)
        facts["moves"] = len(network.moves)
        facts["top1_before_moves"] = accuracy(model, before, data)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "name": name,
        "seed": seed,
        "iterations": 0 if method == "rtn" else iterations,
        "top1": accuracy(model, plan, data),
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "tvmq": __version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "data": f"{data.name}: {SAMPLES} images to learn from, all of cifar10_eval.npz",
        **facts,
    }


@cache
def calibrated(data: Path, seed: int) -> tuple[FloatModel, Calibration]:
    """The network and what a seed calibrates it with, made once in a process."""
    model = capture(data / "resnet20.pt2")
    source = open_data(str(data / "cifar10_calib.npz"), model.inputs, IMAGES)
    batches = [batch.inputs for batch in source.samples(SAMPLES, BATCH, seed=seed)]
    return model, calibrate(model, batches, SAMPLES)


def quantized(
    model: FloatModel,
    calibration: Calibration,
    settings: Settings,
    method: str,
    seed: int,
    folder: Path,
) -> tuple[FloatModel, Plan, Reconstruction | None]:
    """A plan by one method, what it is of, and its reconstruction; its units are in the folder."""
    if method.split(",")[0] == "rapq":
        planned = plan_network(model, calibration, settings)
        given = planned.model, planned.calibration, planned.plan
        done = reconstruct(*given, seed=seed, checkpoints=folder)
        return done.model, done.plan, done
    start = make_plan(model, calibration, settings)
    if method == "rtn":
        return model, start, None
    how = combined(settings.method)
    if method == "nearest":
        start = nearest_exponents(model, calibration, start)
        how = replace(how, refinements=(CompensatedCodes(), *how.refinements[1:]), over_network=())
    prepare = (lambda unit: use_zero_points(unit, settings)) if method == "asymmetric" else None
    done = reconstruct(
        model, calibration, start, method=how, prepare=prepare, seed=seed, checkpoints=folder
    )
    plan = done.plan
    if method == "asymmetric":  # codes of few bits about a zero point fit a byte, not their bits
        wide = {name: replace(weight, bits=8) for name, weight in plan.weights.items()}
        plan = replace(plan, weights=wide)
    return model, plan, done


def without_moves(model: FloatModel, plan: Plan, network: NetworkPass) -> Plan:
    """The same plan before the pass over the whole network."""
    values = dict(plan.values)
    for move in network.moves:
        for name in move.values:
            values[name] = replace(values[name], step=2.0**move.before)
    return complete_plan(model, plan.settings, plan.calibration, values, plan.weights, plan.biases)


def nearest_exponents(model: FloatModel, calibration: Calibration, plan: Plan) -> Plan:
    """The same plan with each step the power of two nearest to the best free one."""
    free = make_plan(model, calibration, plan.settings.with_free_steps("channel"))

    def nearest(step: float) -> float:
        return 2.0 ** round(float(torch.log2(torch.tensor(step, dtype=torch.float64))))

    values = {
        name: replace(value, step=nearest(free.values[name].step))
        for name, value in plan.values.items()
    }
    weights = dict(plan.weights)
    for name, weight in plan.weights.items():
        if len(weight.steps) > 1:
            steps = [nearest(step) for step in free.weights[name].steps]
            least = max(steps) * 2.0**-15  # the shifts of a layer's channels are that far apart
            weights[name] = replace(weight, steps=tuple(max(step, least) for step in steps))
    return complete_plan(model, plan.settings, plan.calibration, values, weights, {})


def use_zero_points(unit: QuantizedUnit, settings: Settings) -> None:
    """Give each channel of a unit's weights a range of codes of its own, with the least error."""
    for weight in unit.weights.values():
        if weight.bits != settings.weight_bits:
            continue
        rows = weight.weight.double().flatten(1)
        low, high = rows.amin(1).clamp_max(0)[:, None], rows.amax(1).clamp_min(0)[:, None]
        last = 2**weight.bits - 1
        best, steps, zeros = torch.full((len(rows),), torch.inf).double(), high[:, 0], high[:, 0]
        for percent in range(30, 101, 2):
            step = percent / 100 * (high - low).clamp_min(1e-9) / last
            zero = torch.round(percent / 100 * -low / step).clamp(0, last)
            codes = torch.floor(rows / step + 0.5).clamp(-zero, last - zero)
            error = (codes * step - rows).square().sum(1)
            better = error < best
            best = torch.where(better, error, best)
            steps = torch.where(better, step[:, 0], steps)
            zeros = torch.where(better, zero[:, 0], zeros)
        steps = torch.maximum(steps, steps.max() * 2.0**-14)
        column = zeros.float().reshape(-1, *[1] * (weight.weight.dim() - 1))
        weight.low, weight.high = -column, last - column
        weight.use_steps(steps)
        weight.freeze(weight.nearest_codes())


def accuracy(model: FloatModel, plan: Plan, data: Path) -> float:
    """Top-1 of the annotated network on all images of cifar10_eval.npz."""
    graph_module = annotate(model, plan, torch.float32)
    source = open_data(str(data / "cifar10_eval.npz"), model.inputs, IMAGES, CLASSES)
    right = count = 0
    with torch.no_grad():
        for batch in source.batches(250):
            (images,) = batch.inputs.values()
            (logits,) = graph_module(torch.as_tensor(images))
            right += int((logits.argmax(1) == torch.as_tensor(batch.labels)).sum())
            count += len(logits)
    return right / count


if __name__ == "__main__":
    sys.exit(main())
