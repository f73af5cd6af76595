"""ImageNet networks per tensor, with WESS and per channel, by the command line, on every device.

    python -m benchmarks.wess_imagenet [--data FOLDER] [--samples N] [--only NETWORK] [--out FOLDER]

The folder of the data (default: the environment variable TVMQ_DATA) holds models/ with
mobilenet_v2_imagenet.pt2 and efficientnet_lite0_imagenet.pt2, and imagenet/ with calib/, val/ and
val.csv, a line `file,label` per image. Each row is `tvmq build`, calibrated on 256 images of calib,
and `tvmq eval` of all images of val on the NPU, the CPU and the reference; steps are powers of two.
Prints a Markdown table per network. With --out, artifacts and rows are kept, and a second run only
adds what is missing. Fails if devices differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from targets.cpu.host import CpuFeatures, host_target
from tvmq import __version__

IMAGENET = ("0.485,0.456,0.406", "0.229,0.224,0.225")
HALF = ",".join([repr(127 / 255)] * 3), ",".join([repr(128 / 255)] * 3)
NETWORKS = {
    "mobilenet_v2_imagenet": (IMAGENET, ("w8a8", "w6a8")),
    "efficientnet_lite0_imagenet": (HALF, ("w8a8", "w6a8")),
}
METHODS = {
    "per tensor": ["--method", "rtn"],
    "WESS": ["--method", "wess"],
    "equalize": ["--method", "equalize"],
    "per channel": ["--method", "rtn", "--granularity", "channel"],
}
DEVICES = ("npu", "cpu", "reference")
IMAGES = "256"


def main() -> int:
    """Run the benchmark; 2 if the data isn't there, 1 if devices differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TVMQ_DATA"), help="folder of the data")
    parser.add_argument("--samples", type=int, help="evaluate only the first images")
    parser.add_argument("--only", choices=NETWORKS, help="one network alone")
    parser.add_argument("--out", help="folder that keeps what is finished")
    options = parser.parse_args()
    data, images = Path(options.data or "."), Path(options.data or ".") / "imagenet"
    wanted = [options.only] if options.only else list(NETWORKS)
    needed = [images / "val.csv", *(data / "models" / f"{name}.pt2" for name in wanted)]
    missing = [str(path) for path in needed if not path.is_file()]
    if missing:
        print(f"missing {', '.join(missing)}. Give --data or TVMQ_DATA.", file=sys.stderr)
        return 2
    features = CpuFeatures.of(host_target())
    print(
        f"tvmq {__version__}, {platform.platform()}, {host_target().attrs['mcpu']}, "
        f"{features.cores} cores; powers of two, {IMAGES} calibration images, seed 0"
    )
    with tempfile.TemporaryDirectory() as room:
        for network in wanted:
            table(data, network, Path(options.out or room), options.samples)
    return 0


def table(data: Path, network: str, out: Path, samples: int | None) -> None:
    """Print the table of one network."""
    print(
        f"\n`{network}`\n\n| precision | weights | top-1 | top-5 |\n|---|---|---|---|", flush=True
    )
    _, precisions = NETWORKS[network]
    folder = out / network / precisions[0] / next(iter(METHODS))
    for precision in precisions:
        for method in METHODS:
            folder = out / network / precision / method.replace(" ", "_")
            row = measured(data, network, precision, method, folder, samples)
            print(f"| {precision} | {method} | {row['top1']:.4f} | {row['top5']:.4f} |", flush=True)
    row = evaluated(data, folder / "artifact", "float", samples)
    print(f"| float | | {row['top1']:.4f} | {row['top5']:.4f} |", flush=True)


def measured(
    data: Path, network: str, precision: str, method: str, folder: Path, samples: int | None
) -> dict[str, float]:
    """Accuracy of one build, the same on all devices."""
    kept = folder / "row.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        build(data, network, precision, METHODS[method], folder / "artifact")
        rows = [evaluated(data, folder / "artifact", device, samples) for device in DEVICES]
        numbers = [{key: row[key] for key in ("top1", "top5", "n")} for row in rows]
        if any(each != numbers[0] for each in numbers):
            sys.exit(f"devices differ: {dict(zip(DEVICES, numbers, strict=True))}")
        kept.write_text(json.dumps(numbers[0]))
    row: dict[str, float] = json.loads(kept.read_text())
    return row


def build(data: Path, network: str, precision: str, method: list[str], artifact: Path) -> None:
    """`tvmq build`, which compares all devices on its last calibration images."""
    (mean, std), _ = NETWORKS[network]
    tvmq(
        *("build", data / "models" / f"{network}.pt2", "-o", artifact, "--precision", precision),
        *("--calib-data", data / "imagenet" / "calib", "--calib-samples", IMAGES, *method),
        *("--mean", mean, "--std", std, "--crop", "224"),
    )


def evaluated(data: Path, artifact: Path, device: str, samples: int | None) -> dict[str, float]:
    """`tvmq eval` on the validation images."""
    images = data / "imagenet"
    limit = [] if samples is None else ["--samples", samples]
    arguments = ("eval", artifact, "--data", images / "val", "--labels", images / "val.csv", *limit)
    row: dict[str, float] = json.loads(tvmq(*arguments, "--device", device, "--json"))
    return row


def tvmq(*arguments: object) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "tvmq", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
