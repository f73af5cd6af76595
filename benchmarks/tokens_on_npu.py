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
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo import imported_torchvision, made
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

NETWORKS = (
    *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"),
    *("yolov8n", "ssdlite320"),
)
DETECTOR_PIXELS, IMAGES, SEED = 320, 2, 0


def main() -> int:
    """Run the benchmark; 2 if a package is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
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
    network, size = _network(name)
    images = torch.randn(IMAGES, 3, size, size)
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


def _network(name: str) -> tuple[torch.nn.Module, int]:
    if name == "ssdlite320":
        models = imported_torchvision().models
        whole = models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        return _seen(_SsdHeads(whole)), DETECTOR_PIXELS
    if name == "yolov8n":
        tasks = importlib.import_module("ultralytics.nn.tasks")
        whole = tasks.DetectionModel("yolov8n.yaml", verbose=False)
        return _seen(_YoloHeads(whole)), DETECTOR_PIXELS
    return made(name)


def _seen(network: torch.nn.Module) -> torch.nn.Module:
    """In evaluation mode, with batch norms that have seen noise."""
    with torch.no_grad():
        network.train()(torch.randn(IMAGES, 3, DETECTOR_PIXELS, DETECTOR_PIXELS))
    return network.eval()


class _SsdHeads(torch.nn.Module):
    """Box regressions and class logits of all anchors."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.whole.head(list(self.whole.backbone(x).values()))
        return found["bbox_regression"], found["cls_logits"]


class _YoloHeads(torch.nn.Module):
    """Distributions of box sides and class logits, a map per scale."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *body, head = self.whole.model
        kept: list[torch.Tensor] = []
        for layer in body:
            sources = [layer.f] if isinstance(layer.f, int) else layer.f
            read = [x if source == -1 else kept[source] for source in sources]
            x = layer(read[0] if isinstance(layer.f, int) else read)
            kept.append(x)
        maps = [kept[source] for source in head.f]
        return tuple(
            torch.cat((boxes(each), classes(each)), 1)
            for each, boxes, classes in zip(maps, head.cv2, head.cv3, strict=True)
        )


if __name__ == "__main__":
    sys.exit(main())
