"""What public networks become: built for the NPU, compared on every device, and how far from float.

    python -m benchmarks.zoo [--only NAME ...] [--list] [--out FOLDER]

Networks of torchvision and timm (the extra `zoo`), with random weights and batch norms that have
seen noise; each is exported for any batch, built by `tvmq build` (w8a8, powers of two, one step per
tensor), which compares NPU, CPU and reference bit for bit, in a process of its own. Prints a row
per network: operators on the NPU and on the CPU, signal to quantization noise against float in dB,
the same of a plain min-max w8a8 fake quantization with free steps of the same network, seconds and
peak memory of the build; or why it is refused. With --out, rows are kept, and a second run only
adds what is missing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from targets.errors import TvmqError
from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture
from tvmq.flow import build
from tvmq.plan.annotate import annotate
from tvmq.plan.planner import make_plan
from tvmq.run.session import Session
from tvmq.settings import Settings

TORCHVISION = (
    *("alexnet", "vgg11", "googlenet", "inception_v3", "squeezenet1_1", "resnet18", "resnet50"),
    *("wide_resnet50_2", "resnext50_32x4d", "densenet121", "mobilenet_v2", "mobilenet_v3_small"),
    *("mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0", "efficientnet_b0"),
    *("efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "vit_b_16"),
    *("swin_t", "segmentation.fcn_resnet50", "segmentation.deeplabv3_mobilenet_v3_large"),
)
TIMM = (
    *(
        "mobilenetv1_100",
        "mobilenetv4_conv_small",
        "efficientnet_lite0",
        "repvgg_a0",
        "mobileone_s0",
    ),
    *("ghostnet_100", "repvit_m1", "fastvit_t8", "mambaout_femto", "hgnetv2_b0", "convnext_atto"),
    *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"),
    *("mobilevit_xxs", "pvt_v2_b0", "levit_128s", "efficientformer_l1", "edgenext_xx_small"),
    *("xcit_nano_12_p16_224", "coatnet_nano_rw_224", "mixer_s32_224", "resmlp_12_224"),
    *("poolformer_s12", "cait_xxs24_224", "seresnet50"),
)
PLAIN = Settings(scales="free", calib_method="minmax", bias_correction=False)
CALIBRATED, COMPARED, SEED = 8, 4, 0


def main() -> int:
    """Run the benchmark; 2 if a package is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="these networks alone")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--out", help="folder that keeps what is finished")
    parser.add_argument("--row", help=argparse.SUPPRESS)  # one network, in this process
    options = parser.parse_args()
    if options.list:
        print("\n".join((*TORCHVISION, *TIMM)))
        return 0
    if options.row:
        print(json.dumps(row(options.row)))
        return 0
    header = ("network", "NPU", "CPU", "dB", "plain dB", "seconds", "GB")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    for name in options.only or (*TORCHVISION, *TIMM):
        found = kept_row(name, Path(options.out) if options.out else None)
        if "missing" in found:
            print(found["missing"], file=sys.stderr)
            return 2
        if "refused" in found:
            print(f"| {name} | {found['refused']} |", flush=True)
            continue
        cells = [str(found["npu"]), str(found["cpu"])]
        cells += [f"{found[key]:.1f}" for key in ("db", "plain", "seconds", "gigabytes")]
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
        network, size = made(name)
    except ImportError as error:
        return {"missing": f"{error}; pip install '.[zoo]', beside a CPU build of torch"}
    images = torch.randn(CALIBRATED, 3, size, size)
    program = torch.export.export(
        network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / f"{name}.pt2"
        torch.export.save(program, path)
        begin = time.perf_counter()
        try:
            model = capture(path)
            np.savez(Path(room) / "images.npz", **{model.inputs[0].name: images.numpy()})
            request = BuildRequest(path, Path(room) / "out", calib_data=f"{room}/images.npz")
            build(request).check_gates()
        except TvmqError as error:
            return {"refused": str(error)[:300]}
        seconds = time.perf_counter() - begin
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        artifact = Artifact.load(request.output)
        inputs = {model.inputs[0].name: images[:COMPARED].numpy()}
        exact = Session(artifact, "float").run(inputs)
        placement = artifact.manifest.placement
        plain = annotate(model, make_plan(model, calibrate(model, [images]), PLAIN), torch.float32)
        with torch.no_grad():
            rough = plain(images[:COMPARED])
        names = [output.name for output in model.outputs]
        return {
            "npu": placement.get("npu", 0),
            "cpu": placement.get("cpu", 0),
            "db": decibels(exact, Session(artifact, "cpu").run(inputs)),
            "plain": decibels(
                exact, {key: value.numpy() for key, value in zip(names, rough, strict=True)}
            ),
            "seconds": seconds,
            "gigabytes": memory,
        }


def made(name: str) -> tuple[torch.nn.Module, int]:
    """A network with batch norms that have seen noise, in evaluation mode, and its image size."""
    network: torch.nn.Module
    if name in TORCHVISION:
        torchvision = imported_torchvision()
        make: Callable[..., torch.nn.Module] = torchvision.models
        for part in name.split("."):
            make = getattr(make, part)
        given = {"weights_backbone": None} if name.startswith("segmentation") else {}
        network, size = make(weights=None, **given), 299 if name == "inception_v3" else 224
    else:
        imported_torchvision()
        import timm

        network = timm.create_model(name, pretrained=False)
        size = network.default_cfg["input_size"][1]
    with torch.no_grad():
        network.train()(torch.randn(4, 3, size, size))
    return network.eval(), size


def imported_torchvision() -> Any:
    """The package; a build for another torch registers operators that this one doesn't know."""
    register = torch.library.register_fake

    def passing(name: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(name, str) and name.startswith("torchvision::"):
            return lambda function: function
        return register(name, *args, **kwargs)

    torch.library.register_fake = passing
    try:
        import torchvision
    finally:
        torch.library.register_fake = register
    return torchvision


def decibels(exact: dict[str, Any], found: dict[str, Any]) -> float:
    """Signal to noise of all outputs."""
    signal = sum(float((exact[key] ** 2).sum()) for key in exact)
    noise = sum(float(((found[key] - exact[key]) ** 2).sum()) for key in exact)
    return float(10 * np.log10(signal / max(noise, 1e-30)))


if __name__ == "__main__":
    sys.exit(main())
