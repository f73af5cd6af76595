"""Public transformers and detectors on the modelled NPU: cycles, utilization, what was busy.

    python -m benchmarks.tokens_on_npu [--networks NAME ...] [--machines e256 ...]

Networks of timm and torchvision (the extra `zoo`) and of ultralytics, with random weights, w8a8,
batch 1, ranges from two images of noise: cycles depend on shapes alone. Detectors are taken with
the outputs of their heads, before boxes are decoded, at 320 x 320. Nothing is built or executed
here; ``benchmarks.zoo`` does that. Prints a row per network and machine: operators on the NPU and
on the CPU; cycles and MAC utilization of the NPU's programs; the shares of these cycles in which
the array, the vector unit and the bus were busy, which overlap; and how far the estimate of `tvmq
inspect` is off.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo import made
from relay_passes.estimate import estimate
from relay_passes.place import place
from relay_passes.read_layers import IntegerNetwork, read_layers
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.npu.price.layer_costs import price
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture
from tvmq.lowering import lower
from tvmq.plan.annotate import annotate
from tvmq.plan.planner import make_plan
from tvmq.settings import Settings

TRANSFORMERS = ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
DETECTORS = ("yolov8n", "ssdlite320_mobilenet_v3_large")
PIXELS, DETECTOR_PIXELS, IMAGES, SEED = 224, 320, 2, 0


def main() -> int:
    """Run the benchmark; 2 if a package is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=(*TRANSFORMERS, *DETECTORS))
    parser.add_argument("--machines", nargs="+", default=["e256", "m2048"])
    options = parser.parse_args()
    header = ("network", "machine", "NPU", "CPU", "cycles", "MAC utilization")
    header += ("array", "vector unit", "bus", "estimate")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    for name in options.networks:
        torch.manual_seed(SEED)
        try:
            module, network = _integers(name)
        except ImportError as error:
            print(f"{error}; pip install '.[zoo]' ultralytics", file=sys.stderr)
            return 2
        for machine in options.machines:
            cells = _cells(module, network, load_spec(machine))
            print(f"| {name} | {machine} | {' | '.join(cells)} |", flush=True)
    return 0


def _integers(name: str) -> tuple[Any, IntegerNetwork]:
    """The integer module and its layers."""
    network, shape = made(name, DETECTOR_PIXELS if name in DETECTORS else PIXELS)
    images = torch.randn(IMAGES, *shape)
    batch = torch.export.Dim("n")
    program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / "network.pt2"
        torch.export.save(program, path)
        model = capture(path)
    plan = make_plan(model, calibrate(model, [images]), Settings(bias_correction=False))
    module = lower(model, annotate(model, plan))
    return module, read_layers(module, {})


def _cells(module: Any, network: IntegerNetwork, spec: NpuSpec) -> list[str]:
    placed = place(module, network, spec)
    on_npu = [placement.device == "npu" for placement in placed.placements]
    estimates = estimate(network, placed.placements, spec)
    estimated = sum(e.cycles for e, taken in zip(estimates, on_npu, strict=True) if taken)
    priced = [price(program, spec) for program in placed.programs]
    total = sum(each.timeline.total for each in priced)
    layers = [layer for each in priced for layer in each.layers]
    busy = [
        *(sum(layer.units[unit]["work"] for layer in layers) for unit in (isa.MM, isa.VU)),
        sum(layer.bus_cycles + layer.fetch_cycles for layer in layers),
    ]
    return [
        *(str(sum(on_npu)), str(len(on_npu) - sum(on_npu)), f"{total:,}"),
        f"{float(sum(each.ideal_cycles for each in priced)) / total:.3f}",
        *(f"{cycles / total:.0%}" for cycles in busy),
        f"{estimated / total - 1:+.1%}",
    ]


if __name__ == "__main__":
    sys.exit(main())
