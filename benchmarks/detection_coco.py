"""A detector on COCO: average precision of builds at several precisions, on every device.

    python -m benchmarks.detection_coco [--data FOLDER] [--only PRECISION] [--out FOLDER]

The folder of the data (default: the environment variable TVMQ_DATA) holds models/ with
fastestdet_coco.pt2, a FastestDet of 352 x 352 pixels whose outputs are maps of objectness, box and
class, and coco/ with calib/images/, val/images/ and val/labels/, a text file per image with a line
`class x y width height` per object, relative to the image. Each row is `tvmq build`, calibrated on
all images of calib, and `tvmq eval` of all images of val on the NPU and the CPU, and of the first 8
on the reference, too; steps are powers of two. Prints a Markdown table. With --out, artifacts and
rows are kept, and a second run only adds what is missing. Fails if devices differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from targets.cpu.host import CpuFeatures, host_target
from tvmq import __version__

Floats = npt.NDArray[np.float32]

HERE = "benchmarks.detection_coco"

NETWORK, SIZE = "fastestdet_coco", 352
PRECISIONS = ("w8a8", "w4a8", "w4a4")
METHODS = {
    "to nearest": ["--method", "rtn"],
    "WESS": ["--method", "wess"],
    "equalize": ["--method", "equalize"],
    "RAPQ": ["--method", "rapq", "--granularity", "channel", "--iters", "60"],
}
CHECKED = 8

LEAST_SCORE, MOST_BOXES = 0.001, 300
"""Of what is found in an image, the most certain ones that are looked at."""

SAME_OBJECT, FOUND = 0.45, 0.5
"""Overlaps from which on two boxes are one object's, and from which on an object is found."""


def main() -> int:
    """Run the benchmark; 2 if the data isn't there, 1 if devices differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TVMQ_DATA"), help="folder of the data")
    parser.add_argument("--only", choices=PRECISIONS, help="one precision alone")
    parser.add_argument("--out", help="folder that keeps what is finished")
    options = parser.parse_args()
    data = Path(options.data or ".").resolve()
    needed = [data / "models" / f"{NETWORK}.pt2", data / "coco" / "calib", data / "coco" / "val"]
    missing = [str(path) for path in needed if not path.exists()]
    if missing:
        print(f"missing {', '.join(missing)}. Give --data or TVMQ_DATA.", file=sys.stderr)
        return 2
    os.environ["TVMQ_DATA"] = str(data)
    features = CpuFeatures.of(host_target())
    print(
        f"tvmq {__version__}, {platform.platform()}, {host_target().attrs['mcpu']}, "
        f"{features.cores} cores; powers of two, seed 0"
    )
    with tempfile.TemporaryDirectory() as room:
        table(Path(options.out or room), [options.only] if options.only else list(PRECISIONS))
    return 0


def table(out: Path, precisions: list[str]) -> None:
    """Print a row per build, and that of the float network."""
    print("| precision | method | AP50 |\n|---|---|---|", flush=True)
    for precision in precisions:
        for method in METHODS:
            folder = out / precision / method.replace(" ", "_")
            print(f"| {precision} | {method} | {measured(precision, method, folder):.4f} |")
            sys.stdout.flush()
    print(f"| float | | {evaluated(folder / 'artifact', 'float'):.4f} |", flush=True)


def measured(precision: str, method: str, folder: Path) -> float:
    """Average precision of one build, the same on all devices."""
    kept, artifact = folder / "row.json", folder / "artifact"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        model = Path(os.environ["TVMQ_DATA"]) / "models" / f"{NETWORK}.pt2"
        images = ("--calib-data", f"{HERE}:calibration", "--calib-samples", "128")
        options = ("--precision", precision, *images, *METHODS[method])
        tvmq("build", model, "-o", artifact, *options)
        agreed(artifact, ("npu", "cpu", "reference"), CHECKED)
        kept.write_text(json.dumps({"ap50": agreed(artifact, ("npu", "cpu"))}))
    return float(json.loads(kept.read_text())["ap50"])


def agreed(artifact: Path, devices: tuple[str, ...], samples: int | None = None) -> float:
    """Average precision that is the same on these devices."""
    found = {device: evaluated(artifact, device, samples) for device in devices}
    if len(set(found.values())) > 1:
        sys.exit(f"{artifact}: devices differ: {found}")
    return found[devices[0]]


def evaluated(artifact: Path, device: str, samples: int | None = None) -> float:
    """`tvmq eval` on the validation images, or the first of them."""
    metric = ("--metric", f"{HERE}:average_precision", "--device", device, "--json")
    limit = () if samples is None else ("--samples", samples)
    row = tvmq("eval", artifact, "--data", f"{HERE}:validation", *metric, *limit)
    return float(json.loads(row)["ap50"])


def tvmq(*arguments: object) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "tvmq", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def pictures(part: str) -> list[Path]:
    """The images of calib or val, in order."""
    return sorted((Path(os.environ["TVMQ_DATA"]) / "coco" / part / "images").glob("*.jpg"))


def pixels_of(path: Path) -> Floats:
    """An image as the network reads it: [1, 3, 352, 352], blue first, in [0, 1]."""
    image = Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    bgr = np.asarray(image, np.float32)[:, :, ::-1] / np.float32(255)
    return np.ascontiguousarray(bgr.transpose(2, 0, 1)[None])


def calibration() -> list[Floats]:
    """For `--calib-data`."""
    return [pixels_of(path) for path in pictures("calib")]


def validation() -> Iterator[tuple[Floats, list[Floats]]]:
    """For `--data`: images, each with its objects, float32[M, 5]."""
    for path in pictures("val"):
        yield pixels_of(path), [objects_of(path)]


def objects_of(path: Path) -> Floats:
    """Class, left, top, right and bottom of each object of an image, relative to it."""
    text = (path.parents[1] / "labels" / f"{path.stem}.txt").read_text()
    rows = np.array(text.split(), np.float32).reshape(-1, 5)
    half = rows[:, 3:] / 2
    return np.concatenate([rows[:, :1], rows[:, 1:3] - half, rows[:, 1:3] + half], 1)


def average_precision(batches: Iterable[tuple[dict[str, Floats], Any]]) -> dict[str, float]:
    """For `--metric`: AP50, the mean over the classes that occur."""
    found: list[Floats] = []
    objects: list[Floats] = []
    for outputs, targets in batches:
        found += boxes_of(*(torch.from_numpy(maps) for maps in outputs.values()))
        objects += list(targets)
    kinds = np.unique(np.concatenate(objects)[:, 0])
    return {"ap50": float(np.mean([precision_of(kind, found, objects) for kind in kinds]))}


def boxes_of(objectness: torch.Tensor, box: torch.Tensor, kinds: torch.Tensor) -> list[Floats]:
    """What is found in each image, the most certain first: class, four corners, score."""
    _, _, height, width = objectness.shape
    likely, kind = kinds.softmax(1).max(1)
    score = objectness.sigmoid()[:, 0] ** 0.6 * likely**0.4
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = (box[:, 0].tanh() + columns) / width, (box[:, 1].tanh() + rows) / height
    across, down = (box[:, i].sigmoid() / 2 for i in (2, 3))
    parts = [kind.float(), x - across, y - down, x + across, y + down, score]
    return [one_each(maps) for maps in torch.stack(parts, -1).flatten(1, 2).numpy()]


def one_each(boxes: Floats) -> Floats:
    """Of boxes of one class that overlap, the most certain."""
    boxes = boxes[boxes[:, 5] > LEAST_SCORE]
    boxes = boxes[np.argsort(-boxes[:, 5], kind="stable")][:MOST_BOXES]
    kept: list[int] = []
    for i, box in enumerate(boxes):
        others = boxes[kept][boxes[kept, 0] == box[0]]
        if not (overlaps(box[1:5], others[:, 1:5]) > SAME_OBJECT).any():
            kept.append(i)
    return boxes[kept]


def overlaps(box: Floats, others: Floats) -> Floats:
    """Intersection over union of a box with each of others, [M]."""
    size = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    both = size.clip(min=0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    result: Floats = both / (areas - both)
    return result


def precision_of(kind: float, found: list[Floats], objects: list[Floats]) -> float:
    """Precision of one class at 101 recalls, on average."""
    scores, right, wanted = [], [], 0
    for boxes, there in zip(found, objects, strict=True):
        left = there[there[:, 0] == kind][:, 1:]
        wanted += len(left)
        for box in boxes[boxes[:, 0] == kind]:
            overlap = overlaps(box[1:5], left)
            hit = len(left) > 0 and overlap.max() >= FOUND
            if hit:
                left = np.delete(left, overlap.argmax(), 0)
            scores.append(box[5])
            right.append(hit)
    if not scores:
        return 0.0
    hits = np.cumsum(np.array(right)[np.argsort(-np.array(scores), kind="stable")])
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    at = np.searchsorted(hits / wanted, np.linspace(0, 1, 101))
    return float(np.append(precision, 0)[at].mean())


if __name__ == "__main__":
    sys.exit(main())
