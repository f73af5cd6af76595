"""What public networks become: built for the NPU, compared on every device, how far from float.

    python -m benchmarks.zoo [--only NAME ...] [--list] [--out FOLDER]

Networks of torchvision, timm, transformers and ultralytics (the extra `zoo`) and of
`zoo_networks.py`, with random weights and batch norms with the statistics of noise; each is
exported for any batch and built by `tvmq build` (w8a8, powers of two, one step per tensor), which
compares NPU, CPU and reference bit for bit, in a process of its own. Prints a row per network:
the shape of its input, operators on the NPU, on the CPU and in float, signal to quantization
noise against float in dB, the same of two plain min-max w8a8 fake quantizations of the same
folded network, with powers of two as the build has them and with free steps; the same in float,
with noise of 60 dB below each value on it ("shaken"); seconds and peak memory of the build; or
why it is refused. With --out, rows are kept, and a second run adds what is missing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.zoo_networks import NETWORKS
from benchmarks.zoo_packages import imported_timm, imported_torchvision
from targets.errors import TvmqError
from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture
from tvmq.float_ends import whole_network
from tvmq.float_model import FloatModel
from tvmq.flow import build
from tvmq.plan.annotate import annotate
from tvmq.plan.planner import make_plan
from tvmq.regions import find_regions
from tvmq.run.session import Session
from tvmq.settings import Settings

TORCHVISION = (
    *("alexnet", "vgg11", "googlenet", "inception_v3", "squeezenet1_1", "resnet18", "resnet50"),
    *("wide_resnet50_2", "resnext50_32x4d", "densenet121", "mobilenet_v2", "mobilenet_v3_small"),
    *("mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0", "efficientnet_b0"),
    *("efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "segmentation.fcn_resnet50"),
    *("segmentation.deeplabv3_mobilenet_v3_large", "convnext_tiny", "vit_b_16", "swin_t"),
)
TIMM = (
    *("mobilenetv1_100", "mobilenetv4_conv_small", "efficientnet_lite0", "repvgg_a0"),
    *("mobileone_s0", "ghostnet_100", "regnety_002", "hgnetv2_b0", "seresnet50", "convnext_atto"),
    *("repvit_m1", "fastvit_t8", "mambaout_femto", "vit_tiny_patch16_224"),
    *("deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilevit_xxs", "pvt_v2_b0"),
    *("levit_128s", "efficientformer_l1", "edgenext_xx_small", "xcit_nano_12_p16_224"),
    *("coatnet_nano_rw_224", "mixer_s32_224", "resmlp_12_224", "poolformer_s12", "cait_xxs24_224"),
)
LARGE = frozenset({"alexnet", "vgg11", "efficientformer_l1"})
"""What is made for images of 224 x 224 pixels; the others get 96 x 96."""

TOLD = frozenset(
    {"vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"}
    | {"levit_128s", "coatnet_nano_rw_224", "mixer_s32_224", "resmlp_12_224", "cait_xxs24_224"}
)
"""Networks of timm that are told the size of images when they are made."""

PLAIN = {
    "plain": Settings(scales="pot", calib_method="minmax", bias_correction=False),
    "plain_free": Settings(scales="free", calib_method="minmax", bias_correction=False),
}
"""Ranges from extremes and nothing else, on the grid of the build and with any step."""

CALIBRATED, COMPARED, SEED = 32, 32, 0
"""Images of noise that ranges are taken from, and others that are compared."""


def main() -> int:
    """Run the benchmark; 2 if a package is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="these networks alone")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--out", help="folder that keeps what is finished")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # one network, in this process
    options = parser.parse_args()
    if options.list:
        print("\n".join((*TORCHVISION, *TIMM, *NETWORKS)))
        return 0
    if options.row:
        print(json.dumps(row(options.row)))
        return 0
    header = ("network", "input", "NPU", "CPU", "float", "dB")
    header += ("plain dB", "plain free dB", "shaken dB", "seconds", "GB")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    for name in options.only or (*TORCHVISION, *TIMM, *NETWORKS):
        found = kept_row(name, Path(options.out) if options.out else None)
        if "missing" in found:
            print(found["missing"], file=sys.stderr)
            return 2
        if "refused" in found:
            print(f"| {name} | {found['refused']} |", flush=True)
            continue
        cells = [str(found[key]) for key in ("input", "npu", "cpu", "float")]
        cells += [f"{found[key]:.1f}" for key in ("db", *PLAIN, "shaken", "seconds", "gigabytes")]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


def kept_row(name: str, out: Path | None) -> dict[str, Any]:
    """The row of a network, from a process that has no other, or from an earlier run."""
    kept = None if out is None else out / f"{name}.json"
    if kept is not None and kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    command = [sys.executable, "-m", "benchmarks.zoo", "--row", name]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"refused": f"ended with {done.returncode}: {last}"}
    found = json.loads(lines[-1])
    if kept is not None and "missing" not in found:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found))
    return found


def row(name: str) -> dict[str, Any]:
    """What becomes of a network."""
    torch.manual_seed(SEED)
    try:
        network, shape = made(name)
    except ImportError as error:
        return {"missing": f"{error}; pip install '.[zoo]', beside a CPU build of torch"}
    images, others = torch.randn(CALIBRATED, *shape), torch.randn(COMPARED, *shape)
    program = torch.export.export(
        network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / f"{name}.pt2"
        torch.export.save(program, path)
        begin = time.perf_counter()
        try:
            model = capture(path)
            np.savez(Path(room) / "images.npz", **{model.network_inputs[0].name: images.numpy()})
            request = BuildRequest(path, Path(room) / "out", calib_data=f"{room}/images.npz")
            build(request).check_gates()
        except TvmqError as error:
            return {"refused": str(error)[:300]}
        seconds = time.perf_counter() - begin
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        artifact = Artifact.load(request.output)
        inputs = {model.network_inputs[0].name: others.numpy()}
        exact = Session(artifact, "float").run(inputs)
        placement = artifact.manifest.placement
        return {
            "input": " x ".join(map(str, shape)),
            **{device: placement.get(device, 0) for device in ("npu", "cpu", "float")},
            "db": decibels(exact, Session(artifact, "cpu").run(inputs)),
            **plain_decibels(model, images, others, exact),
            "shaken": shaken_decibels(model, others, exact),
            "seconds": seconds,
            "gigabytes": memory,
        }


def plain_decibels(
    model: FloatModel, calibrated: torch.Tensor, images: torch.Tensor, exact: dict[str, Any]
) -> dict[str, float]:
    """Signal to noise of the plain quantizations of a network."""
    calibration = calibrate(model, [model.quantized_inputs([x]) for x in calibrated.split(8)])
    found = {}
    for key, settings in PLAIN.items():
        plan = make_plan(model, calibration, settings)
        network = whole_network(model, annotate(model, plan, torch.float32))
        found[key] = decibels(exact, outputs_of(model, network, images))
    return found


def shaken_decibels(model: FloatModel, images: torch.Tensor, exact: dict[str, Any]) -> float:
    """Signal to noise in float when every value gets noise of 60 dB below it.

    What is missing to 60 is how much the network amplifies noise, whoever quantizes it.
    """
    return decibels(exact, outputs_of(model, whole_network(model, _Shaken(model)), images))


def outputs_of(model: FloatModel, network: torch.nn.Module, images: torch.Tensor) -> dict[str, Any]:
    """What a network gives for images, by the names of the outputs."""
    names = [output.name for output in model.network_outputs]
    with torch.no_grad():
        return dict(zip(names, (value.numpy() for value in network(images)), strict=True))


class _Shaken(torch.nn.Module):
    """A float network with white noise on every value that a build quantizes."""

    def __init__(self, model: FloatModel) -> None:
        super().__init__()
        self.network, self.values = model.graph_module, find_regions(model).values

    def forward(self, *inputs: torch.Tensor) -> Any:
        values = self.values

        class Interpreter(torch.fx.Interpreter):
            def run_node(self, node: torch.fx.Node) -> Any:
                found = super().run_node(node)
                if node.name not in values:
                    return found
                return found + 1e-3 * found.square().mean().sqrt() * torch.randn_like(found)

        return Interpreter(self.network).run(*inputs)


def made(name: str, pixels: int | None = None) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """A network with batch norms that have seen noise, to be evaluated, and its input's shape.

    Images have the zoo's size, or a square of ``pixels``.
    """
    side = pixels or (224 if name in LARGE else 96)
    if name in NETWORKS:
        make, shape = NETWORKS[name]
        network = make()
        if pixels is not None:
            shape = (*shape[:-2], pixels, pixels)
    elif name in TORCHVISION:
        found: Any = imported_torchvision().models
        for part in name.split("."):
            found = getattr(found, part)
        options: dict[str, Any] = {}
        if name.startswith("segmentation"):
            options = {"weights_backbone": None}
        if name in ("googlenet", "inception_v3"):
            options = {"aux_logits": False}
        if name == "vit_b_16":
            options = {"image_size": side}
        network, shape = found(weights=None, **options), (3, side, side)
    else:
        options = {"img_size": side} if name in TOLD else {}
        network = imported_timm().create_model(name, pretrained=False, **options)
        shape = (3, side, side)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the statistics of all that was seen, as of trained networks
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.02)  # a head that starts from nothing
    with torch.no_grad():
        network.train()(torch.randn(4, *shape))
    return network.eval(), shape


def decibels(exact: dict[str, Any], found: dict[str, Any]) -> float:
    """Signal to noise of all outputs."""
    signal = sum(float((exact[key] ** 2).sum()) for key in exact)
    noise = sum(float(((found[key] - exact[key]) ** 2).sum()) for key in exact)
    return float(10 * np.log10(signal / max(noise, 1e-30)))


if __name__ == "__main__":
    sys.exit(main())
