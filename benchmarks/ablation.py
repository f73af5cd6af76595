"""What each method gives and costs, alone and together: a table, and accuracy over cycles as SVG.

    python -m benchmarks.ablation [--data FOLDER] [--results FILE] [--figure FILE] [--seeds 0,1]
        [--iters N] [--distill-iters N] [--networks resnet20:w2a2,mobilenetv2:w4a4,...]
        [--precision w2a2,w4a4] [--residual-bits N] [--residual-reads rounded|whole]
        [--methods M ...] [--run N]

Without --networks, ResNet-20 is measured at w2a2, MobileNetV2 and the ViT at w4a4; a network
without its precision has those of --precision.

The folder (default: the environment variable TVMQ_DATA) holds the networks, cifar10_calib.npz and
cifar10_eval.npz. A row is a network learned from 1,024 images, with weights per channel (a step per
layer for ``wess``), first and last layer 8 bits, tested on all images in fake quantization; cycles,
bytes and relative energy are of its programs for ``e256``. Finished rows are lines of the results,
and what is there isn't run again: ``--run 0`` prints it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.ablation_figure import draw
from targets.npu.machine.spec import load_spec
from tvmq import __version__
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture
from tvmq.data.labels import Labelling
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import TensorSpec
from tvmq.plan.annotate import annotate
from tvmq.plan.plan_network import plan_network
from tvmq.plan.round_reads import round_reads
from tvmq.profile.plan_price import plan_price
from tvmq.reconstruct.engine import reconstruct
from tvmq.settings import Settings, parse_precision

CIFAR = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
VIT = Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
NETWORKS = {
    "resnet20": ("resnet20.pt2", CIFAR),
    "mobilenetv2": ("mobilenetv2.pt2", CIFAR),
    "vit4_cifar10": ("models/vit4_cifar10.pt2", VIT),
}
POT = (
    *("rtn", "wess", "waps", "aquant", "distill", "qdrop", "rapq"),
    *("wess,rapq", "rapq,waps", "rapq,aquant", "rapq,distill"),
    *("wess,rapq,distill", "rapq,waps,distill", "wess,rapq,waps,aquant"),
    "wess,rapq,waps,aquant,distill",
)
FREE = (
    *("rtn", "optq", "qdrop", "optq,qdrop", "qdrop,waps", "qdrop,aquant", "qdrop,distill"),
    *("qdrop,aquant,distill", "optq,qdrop,waps,distill"),
)
EVERY = "resnet20:w2a2,mobilenetv2:w4a4,vit4_cifar10:w4a4"
IMAGES, BATCH = 1024, 125


@dataclass(frozen=True)
class Row:
    """A build that is measured."""

    network: str
    precision: str
    scales: str
    method: str
    seed: int
    iterations: int
    residual_bits: int = 0
    residual_reads: str = "rounded"
    distill_iterations: int = 0


@dataclass(frozen=True)
class Found:
    """What a row has.

    Attributes:
        top1: in percent.
        cycles: of one image.
        dram_bytes: likewise.
        energy: relative.
        cpu_seconds: for learning and everything before it.
        version: of tvmq.
        machine: on which it was learned.
    """

    top1: float
    cycles: int
    dram_bytes: int
    energy: float
    cpu_seconds: float
    version: str
    machine: str

    @property
    def point(self) -> tuple[int, float]:
        """Of the figure."""
        return self.cycles, self.top1


def main() -> int:
    """Run what is missing, print the table, draw the figure; 2 if the data isn't there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TVMQ_DATA"), help="folder of the data")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/ablation.jsonl"))
    parser.add_argument("--figure", type=Path, help="SVG file")
    parser.add_argument("--networks", help=f"network or network:precision,... [{EVERY}]")
    parser.add_argument("--precision", help="of networks without their own [w2a2]")
    parser.add_argument("--residual-bits", type=int, default=0, help="0: as all activations")
    parser.add_argument("--residual-reads", default="rounded", help="rounded or whole")
    parser.add_argument("--distill-iters", type=int, default=0, help="0: as --iters")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=(*POT, *FREE), help="these alone")
    parser.add_argument("--run", type=int, default=10**9, help="at most so many rows")
    options = parser.parse_args()
    if options.precision and not options.networks:
        parser.error("--precision is of networks without their own: give --networks")
    cases = _cases(options.networks or EVERY, options.precision or "w2a2")
    methods = [("pot", m) for m in POT if m in options.methods]
    methods += [("free", m) for m in FREE if m in options.methods]
    every = [
        Row(
            *(network, precision, *how, int(seed)),
            0 if how[1] in ("rtn", "wess") else options.iters,
            *(options.residual_bits, options.residual_reads),
            options.distill_iters if "distill" in how[1] else 0,
        )
        for (network, precision), seed, how in product(cases, options.seeds.split(","), methods)
    ]
    missing = [row for row in every if row not in read(options.results)][: options.run]
    if missing and not (Path(options.data or ".") / "cifar10_eval.npz").is_file():
        print(f"{options.data}: no cifar10_eval.npz; give --data or TVMQ_DATA.", file=sys.stderr)
        return 2
    for row in missing:
        found = measured(row, Path(options.data))
        with options.results.open("a") as file:
            file.write(json.dumps({"row": asdict(row), "found": asdict(found)}) + "\n")
        words = f"{row.network} {row.precision} {row.scales} {row.method}"
        print(f"{words}: {found.top1:.2f} %", file=sys.stderr)
    found_so_far = read(options.results)
    known = {row: found_so_far[row] for row in every if row in found_so_far}
    print("\n".join(table(known)))
    if options.figure:
        points = {
            (f"{row.network}, {_precision(row)}", f"{row.method} ({row.scales})"): found.point
            for row, found in known.items()
        }
        draw(points, options.figure)
    return 0


def _cases(networks: str, precisions: str) -> Iterator[tuple[str, str]]:
    """Networks, each with its precision or with all of those."""
    for network in networks.split(","):
        name, _, precision = network.partition(":")
        yield from ((name, each) for each in (precision or precisions).split(","))


def read(results: Path) -> dict[Row, Found]:
    """What was measured so far."""
    if not results.is_file():
        return {}
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {Row(**line["row"]): Found(**line["found"]) for line in lines}


def table(known: dict[Row, Found]) -> Iterator[str]:
    """In Markdown, a line for each row; energy in millions of the table's units."""
    names = ("network", "precision", "steps", "method", "iterations", "seed", "top-1", "cycles")
    yield f"| {' | '.join((*names, 'DRAM bytes', 'energy'))} |"
    yield "|" + "---|" * 10
    for row, found in known.items():
        precision = _precision(row)
        cells = (row.network, precision, row.scales, f"`{row.method}`", _steps(row), str(row.seed))
        costs = f"{found.cycles:,} | {found.dram_bytes:,} | {found.energy / 1e6:.2f}"
        yield f"| {' | '.join(cells)} | {found.top1:.2f} | {costs} |"


def _steps(row: Row) -> str:
    """Of the optimizer, per unit; and for all units together if those are others."""
    units = f"{row.iterations:,}"
    return f"{units}, {row.distill_iterations:,}" if row.distill_iterations else units


def _precision(row: Row) -> str:
    if not row.residual_bits:
        return row.precision
    return f"{row.precision}, residuals of {row.residual_bits} bits read {row.residual_reads}"


def measured(row: Row, data: Path) -> Found:
    """Build a row and test it."""
    torch.set_num_threads(1)
    began = time.process_time()
    file, images = NETWORKS[row.network]
    model, spec, names = capture(data / file), load_spec("e256"), tuple(row.method.split(","))
    weight_bits, activation_bits = parse_precision(row.precision)
    settings = Settings(
        *(weight_bits, activation_bits, row.scales),
        "tensor" if "wess" in names else "channel",
        residual_bits=row.residual_bits,
        residual_reads=row.residual_reads,
        distill_iterations=row.distill_iterations,
        method=names,
        iterations=max(1, row.iterations),
        product_unit=spec.array.lanes(max(weight_bits, activation_bits)),
    )
    model = round_reads(model, settings)
    source = open_data(str(data / "cifar10_calib.npz"), model.inputs, images)
    batches = [batch.inputs for batch in source.samples(IMAGES, 64, seed=row.seed)]
    planned = plan_network(model, calibrate(model, batches, IMAGES), settings)
    model, plan = planned.model, planned.plan
    if settings.learned_method:
        done = reconstruct(model, planned.calibration, plan, seed=row.seed)
        model, plan = done.model, done.plan
    seconds = round(time.process_time() - began)
    price = plan_price(model, plan, spec)
    program = annotate(model, plan, torch.float32)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    return Found(
        *(round(100 * top1(program, images, data, model.inputs), 2), price.cycles),
        *(price.dram_bytes, round(price.picojoules, 1), seconds, __version__, machine),
    )


@torch.inference_mode()  # type: ignore[untyped-decorator]
def top1(
    program: torch.fx.GraphModule, images: Preprocessing, data: Path, inputs: Sequence[TensorSpec]
) -> float:
    """Share of right answers on all test images."""
    source = open_data(str(data / "cifar10_eval.npz"), inputs, images, Labelling("classes"))
    right: list[np.ndarray] = []
    for batch in source.batches(BATCH):
        (x,) = batch.inputs.values()
        right.append(program(torch.as_tensor(x))[0].argmax(1).numpy() == batch.labels)
    return float(np.concatenate(right).mean())


if __name__ == "__main__":
    sys.exit(main())
