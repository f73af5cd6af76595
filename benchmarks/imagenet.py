"""ImageNet networks from eight bits to four, to nearest and learned, by the command line.

    python -m benchmarks.imagenet [--data FOLDER] [--samples N] [--only NETWORK]
        [--precisions P ...] [--methods M ...] [--images N] [--iters N] [--distill-iters N]
        [--out FOLDER]

The folder of the data (default: the environment variable TVMQ_DATA) holds models/ with
mobilenet_v2_imagenet.pt2 and efficientnet_lite0_imagenet.pt2, and imagenet/ with calib/, val/ and
val.csv, a line `file,label` per image. Each row is `tvmq build`, calibrated on images of calib,
which compares all devices bit for bit, and `tvmq eval` of all images of val on the NPU and the CPU,
and of the first 100 on the reference, too. Prints a Markdown table per network, with the seconds of
each build. With --out, artifacts and rows are kept, and a second run only adds what is missing.
Fails if devices differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from targets.cpu.host import CpuFeatures, host_target
from tvmq import __version__

IMAGENET = ("0.485,0.456,0.406", "0.229,0.224,0.225")
HALF = ",".join([repr(127 / 255)] * 3), ",".join([repr(128 / 255)] * 3)
NETWORKS = {"mobilenet_v2_imagenet": IMAGENET, "efficientnet_lite0_imagenet": HALF}
NEAREST = {
    "per tensor": ["--method", "rtn"],
    "WESS": ["--method", "wess"],
    "per channel": ["--method", "rtn", "--granularity", "channel"],
}
"""Rounded to nearest; steps are powers of two."""

FREE, CHANNEL = ["--scales", "free"], ["--granularity", "channel"]
LEARNED = {
    "QDrop, free steps": ["--method", "qdrop", *FREE, *CHANNEL],
    "RAPQ": ["--method", "rapq", *CHANNEL],
    "OPTQ, QDrop, distill, free steps": ["--method", "optq,qdrop,distill", *FREE, *CHANNEL],
    "RAPQ, distill": ["--method", "rapq,distill", *CHANNEL],
    "RAPQ, WAPS, distill": ["--method", "rapq,waps,distill", *CHANNEL],
}
"""Learned, of which only rows of 4 bits are made."""

PRECISIONS = ("w8a8", "w6a8", "w4a8", "w4a4")
CHECKED = 100


def main() -> int:
    """Run the benchmark; 2 if the data isn't there, 1 if devices differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TVMQ_DATA"), help="folder of the data")
    parser.add_argument("--samples", type=int, help="evaluate only the first images")
    parser.add_argument("--only", choices=NETWORKS, help="one network alone")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--methods", nargs="+", choices=[*NEAREST, *LEARNED])
    parser.add_argument("--images", type=int, default=256, help="that are calibrated on")
    parser.add_argument("--iters", type=int, default=100, help="of learning, per unit")
    parser.add_argument("--distill-iters", type=int, default=0, help="0: as --iters")
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
        f"{features.cores} cores; {options.images} calibration images, {options.iters} iterations "
        f"per unit, seed 0"
    )
    with tempfile.TemporaryDirectory() as room:
        for network in wanted:
            table(data, network, Path(options.out or room), options)
    return 0


def table(data: Path, network: str, out: Path, options: argparse.Namespace) -> None:
    """Print the table of one network."""
    header = "| precision | weights | top-1 | top-5 | build s |\n|---|---|---|---|---|"
    print(f"\n`{network}`\n\n{header}", flush=True)
    artifact = None
    for precision in options.precisions:
        methods = NEAREST if precision in ("w8a8", "w6a8") else NEAREST | LEARNED
        for method in options.methods or methods:
            if method not in methods:
                continue
            words = [*methods[method], "--precision", precision, "--calib-samples", options.images]
            folder = out / network / precision / method.replace(", ", "_").replace(" ", "_")
            if method in LEARNED:
                words += ["--iters", options.iters]
                folder /= f"{options.images}_{options.iters}"
            if options.distill_iters and "distill" in method:
                words += ["--distill-iters", options.distill_iters]
                folder /= str(options.distill_iters)
            row = measured(data, network, words, folder, options.samples)
            numbers = f"{row['top1']:.4f} | {row['top5']:.4f} | {row['seconds']:.0f}"
            print(f"| {precision} | {method} | {numbers} |", flush=True)
            artifact = folder / "artifact"
    if artifact is not None:
        row = evaluated(data, artifact, "float", options.samples)
        print(f"| float | | {row['top1']:.4f} | {row['top5']:.4f} | |", flush=True)


def measured(
    data: Path, network: str, words: list[object], folder: Path, samples: int | None
) -> dict[str, float]:
    """Accuracy of one build, the same on all devices, and the seconds that it took."""
    kept = folder / "row.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        artifact = folder / "artifact"
        begin = time.perf_counter()
        build(data, network, words, artifact)
        seconds = time.perf_counter() - begin
        numbers = agreed(data, artifact, ("npu", "cpu"), samples)
        agreed(data, artifact, ("npu", "cpu", "reference"), min(samples or CHECKED, CHECKED))
        kept.write_text(json.dumps(numbers | {"seconds": seconds}))
    row: dict[str, float] = json.loads(kept.read_text())
    return row


def build(data: Path, network: str, words: list[object], artifact: Path) -> None:
    """`tvmq build`, which compares all devices on its last calibration images."""
    mean, std = NETWORKS[network]
    tvmq(
        *("build", data / "models" / f"{network}.pt2", "-o", artifact, *words),
        *("--calib-data", data / "imagenet" / "calib", "--crop", "224"),
        *("--mean", mean, "--std", std),
    )


def agreed(
    data: Path, artifact: Path, devices: tuple[str, ...], samples: int | None
) -> dict[str, float]:
    """Accuracy that is the same on these devices."""
    rows = [evaluated(data, artifact, device, samples) for device in devices]
    numbers = [{key: row[key] for key in ("top1", "top5", "n")} for row in rows]
    if any(each != numbers[0] for each in numbers):
        sys.exit(f"{artifact}: devices differ: {dict(zip(devices, numbers, strict=True))}")
    return numbers[0]


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
