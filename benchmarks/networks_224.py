"""Whole networks of 224 x 224 pixels on the modelled NPU: cycles, utilization, bounds, seconds.

    python -m benchmarks.networks_224 [--networks resnet18,mobilenet_v2] [--precisions w8a8,...]

Random weights, batch 1, power-of-two steps per tensor, default schedules. Everything goes through
``tvmq build``; the build fails if devices differ. Prints a Markdown table per network.

The bound is what no program for the machine can beat: the largest of the array's cycles with every
lane busy (depthwise layers at their mode's own rate), of moving weights, inputs and outputs once,
and of the vector unit's work.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from benchmarks.mobilenet_v2 import mobilenet_v2
from benchmarks.resnet18 import PIXELS, resnet18
from targets.cpu.host import CpuFeatures, host_target
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.npu.price.accesses import lanes
from targets.npu.price.durations import duration
from targets.npu.price.layer_costs import PricedProgram, price
from tvmq import __version__
from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.flow import build
from tvmq.run.session import Session
from tvmq.settings import Settings, parse_precision

Result = TypeVar("Result")
NETWORKS = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2}
MACHINES = ("e256", "m2048")
PRECISIONS = ("w8a8", "w4a4", "w2a2")
SEED = 0
IMAGES = 8
HEAD = (
    "| machine | precision | cycles | MAC utilization | bound | cycles / bound | speed / w8a8 "
    "| build s | pricing s | simulation s |"
)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, choices in (
        ("networks", tuple(NETWORKS)),
        ("machines", MACHINES),
        ("precisions", PRECISIONS),
    ):
        parser.add_argument(f"--{name}", default=",".join(choices), help="default: all")
    options = parser.parse_args()
    features = CpuFeatures.of(host_target())
    print(
        f"tvmq {__version__}, {platform.platform()}, {host_target().attrs['mcpu']}, "
        f"{features.cores} cores; seed {SEED}, {IMAGES} images of noise"
    )
    for network in options.networks.split(","):
        print(f"\n{network}\n\n{HEAD}\n|{'---|' * HEAD.count(' |')}")
        with tempfile.TemporaryDirectory() as room:
            folder = Path(room)
            torch.export.save(NETWORKS[network](SEED), folder / "model.pt2")
            noise = np.random.default_rng(SEED).standard_normal((IMAGES, 3, PIXELS, PIXELS))
            np.savez(folder / "noise.npz", x=noise.astype(np.float32))
            for machine in options.machines.split(","):
                first = None
                for precision in options.precisions.split(","):
                    first = row(folder, machine, precision, first)
    return 0


def row(folder: Path, machine: str, precision: str, first: int | None) -> int:
    """Build, price and simulate; print a line.

    Args:
        folder: has model.pt2 and noise.npz.
        machine: a preset.
        precision: such as w4a4.
        first: cycles at the first precision.

    Returns:
        Cycles at the first precision.
    """
    weights, activations = parse_precision(precision)
    request = BuildRequest(
        folder / "model.pt2",
        folder / f"{machine}_{precision}",
        target=f"npu:{machine}",
        settings=Settings(weight_bits=weights, activation_bits=activations, bias_correction=False),
        calib_data=str(folder / "noise.npz"),
        seed=SEED,
        strict=True,
    )
    result, build_seconds = timed(lambda: build(request))
    result.check_gates()
    artifact, spec = Artifact.load(request.output), load_spec(machine)
    (program,) = artifact.programs().values()
    priced, pricing_seconds = timed(lambda: price(program, spec))
    session = Session(artifact, "npu")
    image = {artifact.manifest.inputs[0].name: np.load(folder / "noise.npz")["x"][:1]}
    session.run(image)
    _, simulation_seconds = timed(lambda: session.run(image))
    cycles, least = priced.timeline.total, bound(priced, spec)
    first = first or cycles
    print(
        f"| {machine} | {precision} | {cycles:,} | {float(priced.ideal_cycles / cycles):.1%} "
        f"| {least:,} | {cycles / least:.3f} | {first / cycles:.3f} | {build_seconds:.1f} "
        f"| {pricing_seconds:.2f} | {simulation_seconds:.3f} |",
        flush=True,
    )
    return first


def bound(priced: PricedProgram, spec: NpuSpec) -> int:
    """Cycles that no program of these layers can beat on this machine."""
    program = priced.program
    array = sum((array_cycles(s.of(program.instructions), s.macs, spec)) for s in program.layers)
    moved = len(program.constants) + program.input_bytes + program.output_bytes
    vector = sum(duration(i, spec).work for i in program.instructions if i.unit == isa.VU)
    return max(int(array), moved // spec.dma.bytes_per_cycle, vector)


def array_cycles(instructions: list[isa.Instruction], macs: int, spec: NpuSpec) -> Fraction:
    """Of one layer, with every lane busy."""
    products = [i for i in instructions if isinstance(i, isa.Gemm | isa.Depthwise)]
    if not products:
        return Fraction(0)
    if isinstance(products[0], isa.Depthwise):
        return Fraction(sum(duration(i, spec).work for i in products))
    return Fraction(macs, lanes(products[0], spec) * spec.array.cols)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What a function returns, and the seconds that it took."""
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
