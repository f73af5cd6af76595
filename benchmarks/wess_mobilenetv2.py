"""Weights of MobileNetV2 per tensor, with WESS, equalized and per channel: accuracy and NPU cost.

    python -m benchmarks.wess_mobilenetv2 [--data FOLDER] [--samples N] [--check N] [--only PART]
                                          [--out FOLDER]

The folder of the data (default: the environment variable TVMQ_DATA) holds mobilenetv2.pt2,
mobilenetv2_rescaled.pt2, cifar10_calib.npz and cifar10_eval.npz. With --out, artifacts and rows are
kept, and a second run only adds what is missing. Ranges are by MSE unless the row says otherwise.
Prints Markdown tables:

    mobilenetv2, mobilenetv2_rescaled    a row per method; accuracy of the CPU build, after NPU,
                                         CPU and reference gave equal logits on the first images
    224                                  width 1.0 at 224 x 224, 1000 classes, random weights:
                                         cycles of the 1x1 layers that expand, and the build's time

Fails if devices differ, if a layer of the 224 network runs on the CPU, or if the program with WESS
and power-of-two steps differs from the one per tensor in anything but shifts and constants.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.mobilenet_v2 import PIXELS, mobilenet_v2
from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from relay_passes.place import place
from relay_passes.read_layers import read_layers
from targets.cpu.host import CpuFeatures, host_target
from targets.npu.machine import isa
from targets.npu.machine.program import Program
from targets.npu.machine.spec import load_spec
from targets.npu.price.layer_costs import PricedProgram, price
from tvmq import __version__
from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture, capture_program
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import FloatModel
from tvmq.flow import build
from tvmq.plan.annotate import annotate
from tvmq.plan.equalize import equalize_as
from tvmq.plan.plan import Plan
from tvmq.plan.plan_file import planned_changes, read_plan
from tvmq.plan.planner import make_plan
from tvmq.plan.weight_steps import weight_codes
from tvmq.run.execute import open_for
from tvmq.run.metrics import Accuracy
from tvmq.run.session import Session
from tvmq.settings import Settings

NETWORKS = ("mobilenetv2", "mobilenetv2_rescaled")
FILES = (*(f"{name}.pt2" for name in NETWORKS), "cifar10_calib.npz", "cifar10_eval.npz")
IMAGES = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MACHINE, SEED, BATCH = "e256", 0, 100
PLAIN, WESS, EQUALIZE = ("rtn",), ("wess",), ("equalize",)
METHODS = {
    f"{name}, {'power of two' if scales == 'pot' else 'free'}": Settings(
        scales=scales, method=method, granularity=granularity
    )
    for scales in ("free", "pot")
    for name, method, granularity in (
        ("per tensor", PLAIN, "tensor"),
        ("WESS", WESS, "tensor"),
        ("equalize", EQUALIZE, "tensor"),
        ("equalize and WESS", EQUALIZE + WESS, "tensor"),
        ("per channel", PLAIN, "channel"),
    )
}
METHODS |= {
    f"WESS, free, ranges by {ranges}": Settings(scales="free", method=WESS, calib_method=ranges)
    for ranges in ("lp", "minmax")
}
SAME, SHIFTED = "per tensor, power of two", "WESS, power of two"


def main() -> int:
    """Run the benchmark; 2 if the data isn't there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TVMQ_DATA"), help="folder of the data")
    parser.add_argument("--samples", type=int, help="evaluate only the first images")
    parser.add_argument("--check", type=int, default=100, help="images that devices agree on")
    parser.add_argument("--out", help="folder that keeps what is finished")
    parser.add_argument("--only", choices=[*NETWORKS, "224"], help="one part alone")
    options = parser.parse_args()
    parts = [options.only] if options.only else [*NETWORKS, "224"]
    data = Path(options.data or ".")
    missing = [name for name in FILES if not (data / name).is_file()]
    if missing and parts != ["224"]:
        print(f"{data}: missing {', '.join(missing)}. Give --data or TVMQ_DATA.", file=sys.stderr)
        return 2
    features = CpuFeatures.of(host_target())
    print(
        f"tvmq {__version__}, {platform.platform()}, {host_target().attrs['mcpu']}, "
        f"{features.cores} cores, {time.strftime('%Y-%m-%d')}; w8a8, seed {SEED}, 256 calibration "
        f"images, symmetric weights, activations per tensor, first and last layer 8 bits, {MACHINE}"
    )
    with tempfile.TemporaryDirectory() as room:
        for part in parts:
            if part == "224":
                at_224()
            else:
                table(data, part, Path(options.out or room), options.samples, options.check)
    return 0


def table(data: Path, network: str, out: Path, samples: int | None, check: int) -> None:
    """Print the table of one network."""
    float_model = capture(data / f"{network}.pt2")
    print(
        f"\n{network}\n\n| weights, steps | top-1 | without bias correction "
        "| only weights quantized | multipliers of a layer | cycles | program bytes | build s |"
        "\n|---|---|---|---|---|---|---|---|"
    )
    for name, settings in METHODS.items():
        kept = folder_of(out, network, name) / "row.txt"
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            cells = row(data, network, kept.parent, settings, float_model, samples, check)
            kept.write_text(f"| {name} | {cells} |")
        print(kept.read_text(), flush=True)
    artifacts = [Artifact.load(folder_of(out, network, name) / "npu") for name in (SAME, SHIFTED)]
    exact = accuracy(Session(artifacts[0], "float"), artifacts[0], data, samples)
    print(f"| float | {exact:.4f} | | | | | | |")
    one, other = (next(iter(artifact.programs().values())) for artifact in artifacts)
    assert_equal_but_for_shifts(one, other)
    print(f"\nPrograms of '{SAME}' and '{SHIFTED}' are equal but for shifts and constants.")


def folder_of(out: Path, network: str, name: str) -> Path:
    """Where the artifacts of a row and the row itself are kept."""
    return out / network / name.replace(", ", "_").replace(" ", "_")


def row(
    data: Path,
    network: str,
    room: Path,
    settings: Settings,
    model: FloatModel,
    samples: int | None,
    check: int,
) -> str:
    """The cells of a row of ``table``, behind the first."""
    artifact, seconds = built(data, network, room, settings)
    agree(artifact, data, check)
    top1 = accuracy(Session(artifact, "cpu"), artifact, data, samples)
    other, _ = built(data, network, room, replace(settings, bias_correction=False), "cpu")
    uncorrected = accuracy(Session(other, "cpu"), other, data, samples)
    planned, *_ = planned_changes(artifact.path("plan.json"))
    if planned is not None:
        model = equalize_as(model, planned)
    plan = read_plan(artifact.path("plan.json"), model)
    rough = accuracy(FakeSession(model, plan), artifact, data, samples)
    (program,) = artifact.programs().values()
    cycles = price(program, load_spec(MACHINE)).timeline.total
    return (
        f"{top1:.4f} | {uncorrected:.4f} | {rough:.4f} | {multipliers(plan)} "
        f"| {cycles:,} | {len(program.to_bytes()):,} | {seconds:.0f}"
    )


def built(
    data: Path, network: str, room: Path, settings: Settings, target: str = f"npu:{MACHINE}"
) -> tuple[Artifact, float]:
    """An artifact that passed its gates, and the seconds that it took."""
    request = BuildRequest(
        data / f"{network}.pt2",
        room / target.partition(":")[0],
        target=target,
        settings=settings,
        calib_data=str(data / "cifar10_calib.npz"),
        preprocessing=IMAGES,
        seed=SEED,
    )
    begin = time.perf_counter()
    build(request).check_gates()
    return Artifact.load(request.output), time.perf_counter() - begin


class FakeSession:
    """The float network with quantized weights and float activations, as a session runs."""

    def __init__(self, model: FloatModel, plan: Plan) -> None:
        self.model = replace(model, graph_module=copy.deepcopy(model.graph_module))
        for name, weights in plan.weights.items():
            if weights.reason.startswith("average"):
                continue
            weight = self.model.weight_of(self.model.nodes[name])
            steps = torch.tensor(weights.steps, dtype=torch.float64)
            codes = weight_codes(weight, weights)
            weight.copy_(codes * steps.reshape(-1, *[1] * (weight.ndim - 1)))

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Logits by output name."""
        with torch.no_grad():
            outputs = self.model.graph_module(*map(torch.from_numpy, inputs.values()))
        return {s.name: t.numpy() for s, t in zip(self.model.outputs, outputs, strict=True)}


def accuracy(
    session: Session | FakeSession, artifact: Artifact, data: Path, samples: int | None
) -> float:
    """Top-1 on the first images of cifar10_eval.npz."""
    count = Accuracy()
    for batch in open_for(artifact, str(data / "cifar10_eval.npz")).batches(BATCH, limit=samples):
        (outputs,) = session.run(batch.inputs).values()
        count.add(outputs, batch.labels)
    return count.top1


def agree(artifact: Artifact, data: Path, images: int) -> None:
    """Fail unless NPU, CPU and reference give the same logits."""
    source = open_for(artifact, str(data / "cifar10_eval.npz"))
    sessions = [Session(artifact, device) for device in ("npu", "cpu", "reference")]
    for batch in source.batches(BATCH, limit=images):
        want, *others = (next(iter(s.run(batch.inputs).values())) for s in sessions)
        if not all(np.array_equal(want, other) for other in others):
            sys.exit("devices differ: this is a fault of tvmq")


def multipliers(plan: Plan) -> str:
    """How many different ones the layers with weights have."""
    counts = {
        len(set(integers.multiplier)) if set(integers.multiplier) != {1} else 0
        for name, integers in plan.requantize.items()
        if not plan.weights[name].reason.startswith("average")
    }
    return f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def assert_equal_but_for_shifts(one: Program, other: Program) -> None:
    """Fail unless the programs do the same at the same time, with other shifts and constants."""

    def skeleton(i: isa.Instruction) -> isa.Instruction:
        shifts = {name: 0 for name in ("shift", "frac") if hasattr(i, name)}
        return replace(i, **shifts)

    assert len(one.constants) == len(other.constants)
    assert one.arena_bytes == other.arena_bytes
    assert [skeleton(i) for i in one.instructions] == [skeleton(i) for i in other.instructions]
    spec = load_spec(MACHINE)
    assert price(one, spec).timeline.total == price(other, spec).timeline.total


def at_224() -> None:
    """Cycles of the layers that expand, and the time of a build."""
    exported = mobilenet_v2(SEED)
    noise = np.random.default_rng(SEED).standard_normal((8, 3, PIXELS, PIXELS)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(exported, Path(folder) / "model.pt2")
        np.savez(Path(folder) / "noise.npz", x=noise)
        request = BuildRequest(
            Path(folder) / "model.pt2",
            Path(folder) / "out",
            target=f"npu:{MACHINE}",
            settings=METHODS[SHIFTED],
            calib_data=str(Path(folder) / "noise.npz"),
            seed=SEED,
            strict=True,
        )
        begin = time.perf_counter()
        result = build(request)
        result.check_gates()
        seconds = time.perf_counter() - begin
    placed = result.manifest.placement
    print(
        f"\nMobileNetV2 of width 1.0, {PIXELS} x {PIXELS}, 1000 classes, random weights, with "
        f"{SHIFTED}: {placed['npu']} operators on the NPU, {placed['cpu']} on the CPU, bit-exact, "
        f"built in {seconds:.0f} s\n\n| weights, steps | cycles of the 1x1 layers that expand "
        "| their ratio to WESS, power of two | of single layers | cycles in all | program bytes |"
        "\n|---|---|---|---|---|---|"
    )
    model = capture_program(exported)
    calibration = calibrate(model, [torch.from_numpy(noise)])
    names = (SHIFTED, SAME, "WESS, free", "per tensor, free", "per channel, free")
    first: dict[str, int] = {}
    programs = {}
    for name in names:
        settings = replace(METHODS[name], bias_correction=False)
        integer = lower_to_integer(
            import_torch(annotate(model, make_plan(model, calibration, settings)))
        )
        (program,) = place(integer, read_layers(integer), load_spec(MACHINE)).programs
        priced = price(program, load_spec(MACHINE))
        cycles = expanding(model, priced)
        first = first or cycles
        programs[name] = program
        ratios = [cycles[layer] / first[layer] for layer in first]
        print(
            f"| {name} | {sum(cycles.values()):,} "
            f"| {sum(cycles.values()) / sum(first.values()):.3f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} | {priced.timeline.total:,} "
            f"| {len(program.to_bytes()):,} |",
            flush=True,
        )
    assert_equal_but_for_shifts(programs[SAME], programs[SHIFTED])


def expanding(model: FloatModel, priced: PricedProgram) -> dict[str, int]:
    """Cycles of the 1x1 convolutions with six times as many outputs as inputs."""
    shapes = {}
    for node in model.graph_module.graph.nodes:
        if node.target is torch.ops.aten.conv2d.default:
            shapes[node.name] = tuple(model.weight_of(node).shape)
    return {
        cost.name: cost.cycles
        for cost in priced.layers
        if math.prod(shapes.get(cost.name, (0, 0, 0, 0))[2:]) == 1
        and shapes[cost.name][0] == 6 * shapes[cost.name][1]
    }


if __name__ == "__main__":
    sys.exit(main())
