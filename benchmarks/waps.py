"""Factors of products: what they cost on whole networks, and what they are worth on ResNet-20.

    python -m benchmarks.waps cost [--networks resnet18,mobilenet_v2] [--machines e256,m2048]
    python -m benchmarks.waps accuracy --data FOLDER [--seeds 0,1,2] [--images 256] [--test 2000]

``cost``: random weights, 224 x 224 pixels, groups by the default budget, random factors; programs
are compiled and priced with and without them. ``accuracy``: compensated codes (OPTQ) of each unit
with corrected biases, and factors on top of these; top-1 of the fake-quantized network. Both print
a Markdown table.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.mobilenet_v2 import mobilenet_v2
from benchmarks.resnet18 import PIXELS, resnet18
from relay_passes.place import place
from relay_passes.read_layers import read_layers
from targets.npu.machine.spec import load_spec
from targets.product_factors import FACTORS
from tvmq.calibrate.calibrate import Calibration, calibrate
from tvmq.capture.capture import capture, capture_program
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import FloatModel
from tvmq.lowering import lower
from tvmq.plan.annotate import annotate
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.equalized_plan import Planned
from tvmq.plan.mixed_plan import plan_mixed
from tvmq.plan.plan import Plan, ProductPlan
from tvmq.plan.planner import make_plan
from tvmq.plan.product_groups import product_groups
from tvmq.profile.product_cost import product_cost
from tvmq.reconstruct.engine import reconstruct
from tvmq.reconstruct.methods import Method
from tvmq.reconstruct.refinements.compensated import CompensatedCodes
from tvmq.reconstruct.refinements.scaled_products import ScaledProducts
from tvmq.settings import Settings

NETWORKS = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2}
CASES = ((0, 0), (8, 0), (8, 16), (16, 1))
"""Input channels of a group, and output channels that have factors in common; 0: none, and all."""
PRECISIONS = ((2, 4), (2, 2))
IMAGES = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BATCH = 250


def main() -> int:
    """Run a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cost", "accuracy"))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--machines", default="e256,m2048")
    parser.add_argument("--bits", default="4")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--test", type=int, default=2000)
    options = parser.parse_args()
    lines = costs(options) if options.what == "cost" else accuracies(options)
    for line in lines:
        print(line, flush=True)
    return 0


def costs(options: argparse.Namespace) -> Iterator[str]:
    """A row for each network, machine, precision and number of outputs."""
    names = ("network", "machine", "precision", "outputs", "groups", "operations", "cycles")
    yield f"| {' | '.join((*names, 'bytes', 'energy'))} |"
    yield "|" + "---|" * 9
    for name in options.networks.split(","):
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
    plan, groups = scaled_at_random(model, make_plan(model, calibration, settings))
    integer = lower(model, annotate(model, plan))
    placed = place(integer, read_layers(integer), spec)
    found = product_cost(model, plan, placed.programs, spec)
    assert found is not None
    assert found.with_factors is not None
    assert found.without is not None
    after, before = found.with_factors, found.without
    sizes = f"{min(groups)} to {max(groups)}" if len(groups) > 1 else str(min(groups))
    return (
        f"{outputs or 'all'} | {sizes} | {found.share:+.2%} "
        f"| {before.cycles:,} {after.cycles / before.cycles - 1:+.2%} "
        f"| {after.dram_bytes / before.dram_bytes - 1:+.2%} "
        f"| {after.picojoules / before.picojoules - 1:+.2%}"
    )


def scaled_at_random(model: FloatModel, plan: Plan) -> tuple[Plan, set[int]]:
    """The plan with random factors in the groups of its budget, and their sizes."""
    rng, weights = np.random.default_rng(0), dict(plan.weights)
    groups = product_groups(model, plan.weights, plan.settings)
    for name, channels in groups.items():
        count, inputs = model.weight_of(model.nodes[name]).shape[:2]
        outputs = plan.settings.product_outputs or count
        shape = (math.ceil(count / outputs), math.ceil(inputs / channels))
        factors = tuple(tuple(row) for row in rng.choice(FACTORS, shape).tolist())
        products = ProductPlan(channels, outputs, factors, "at random")
        weights[name] = replace(weights[name], products=products)
    done = complete_plan(model, plan.settings, plan.calibration, plan.values, weights, plan.biases)
    return done, set(groups.values())


def accuracies(options: argparse.Namespace) -> Iterator[str]:
    """A row for each precision and case: top-1 of each seed."""
    model = capture(options.data / "resnet20.pt2")
    images = open_data(str(options.data / "cifar10_calib.npz"), model.inputs, IMAGES)
    test = np.load(options.data / "cifar10_eval.npz")
    pixels = (test["images"][: options.test] / 255 - IMAGES.mean) / IMAGES.std
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    y = torch.from_numpy(test["labels"][: options.test].astype(np.int64))
    seeds = tuple(map(int, options.seeds.split(",")))
    yield f"| precision | groups | outputs | top-1, seeds {options.seeds} | mean |"
    yield "|" + "---|" * 5
    for bits in PRECISIONS:
        for channels, outputs in CASES:
            found = []
            for seed in seeds:
                batches = [b.inputs for b in images.samples(options.images, 64, seed=seed)]
                calibration = calibrate(model, batches, options.images)
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
    return planned.model, done.plan


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
