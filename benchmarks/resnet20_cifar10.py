"""ResNet-20 on CIFAR-10: accuracy of three builds on all devices, speed, build time.

    python benchmarks/resnet20_cifar10.py [--data FOLDER] [--samples N]

The folder (default: the environment variable TVMQ_DATA) holds resnet20.pt2, cifar10_calib.npz and
cifar10_eval.npz. Prints a Markdown table, and fails if two devices give different logits.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from targets.cpu.host import CpuFeatures, host_target
from tvmq import __version__
from tvmq.artifact.artifact import Artifact
from tvmq.build_request import BuildRequest
from tvmq.data.preprocessing import Preprocessing
from tvmq.flow import build
from tvmq.run.execute import open_for
from tvmq.run.metrics import Accuracy
from tvmq.run.session import Session
from tvmq.settings import Settings

FILES = ("resnet20.pt2", "cifar10_calib.npz", "cifar10_eval.npz")
IMAGES = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SEED = 0
BATCH = 64
DEVICES = ("npu", "cpu", "reference")
BUILDS = {
    "w8a8 power of two, per tensor": (Settings(), True),
    "w8a8 free, per channel": (Settings(scales="free", granularity="channel"), True),
    "w8a8 power of two, per tensor, data-free": (Settings(), False),
}


def main() -> int:
    """Run the benchmark; 1 if two devices differ, 2 if the data isn't there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TVMQ_DATA"), help="folder of the data")
    parser.add_argument("--samples", type=int, help="only the first images")
    options = parser.parse_args()
    missing = [name for name in FILES if not (Path(options.data or ".") / name).is_file()]
    if options.data is None or missing:
        where = options.data or "no folder given"
        print(
            f"{where}: missing {', '.join(missing or FILES)}. "
            f"Give the folder with --data or in TVMQ_DATA.",
            file=sys.stderr,
        )
        return 2
    print(describe(Path(options.data)))
    print("| build | top-1 npu = cpu = reference | float | npu img/s | cpu img/s | build s |")
    print("|---|---|---|---|---|---|")
    equal = [row(name, Path(options.data), options.samples) for name in BUILDS]
    return 0 if all(equal) else 1


def describe(data: Path) -> str:
    """What the figures depend on."""
    features = CpuFeatures.of(host_target())
    machine = (
        f"{host_target().attrs['mcpu']}, {features.cores} cores, {features.instructions.title}"
    )
    return (
        f"tvmq {__version__}, {platform.platform()}, {machine}; {', '.join(FILES)} of {data.name}, "
        f"seed {SEED}, 256 calibration images, batch {BATCH}, symmetric weights, first and last "
        f"layer 8 bits\n"
    )


def row(name: str, data: Path, samples: int | None) -> bool:
    """Build, evaluate on all devices, print a line; whether the logits are identical."""
    settings, with_data = BUILDS[name]
    with tempfile.TemporaryDirectory() as room:
        request = BuildRequest(
            data / "resnet20.pt2",
            Path(room) / "resnet20.tvmq",
            target="npu:e256",
            settings=settings,
            calib_data=str(data / "cifar10_calib.npz") if with_data else None,
            preprocessing=IMAGES,
            seed=SEED,
        )
        start = time.perf_counter()
        build(request)
        seconds = time.perf_counter() - start
        artifact = Artifact.load(request.output)
        results = {
            device: evaluate(artifact, device, data, samples) for device in (*DEVICES, "float")
        }
    logits = [results[device][0] for device in DEVICES]
    equal = all(np.array_equal(logits[0], other) for other in logits[1:])
    top1 = {device: result[1] for device, result in results.items()}
    verdict = f"{top1['npu']:.4f}" if equal else f"DIFFERENT: {top1}"
    speeds = " | ".join(f"{results[device][2]:.0f}" for device in ("npu", "cpu"))
    print(f"| {name} | {verdict} | {top1['float']:.4f} | {speeds} | {seconds:.1f} |", flush=True)
    return equal


def evaluate(
    artifact: Artifact, device: str, data: Path, samples: int | None
) -> tuple[np.ndarray, float, float]:
    """Logits [N, 10], top-1, and images per second of the device alone."""
    session, accuracy, seconds = Session(artifact, device), Accuracy(), 0.0
    logits = []
    source = open_for(artifact, str(data / "cifar10_eval.npz"))
    for batch in source.batches(BATCH, limit=samples):
        start = time.perf_counter()
        (outputs,) = session.run(batch.inputs).values()
        seconds += time.perf_counter() - start
        assert batch.labels is not None
        accuracy.add(outputs, batch.labels)
        logits.append(outputs)
    return np.concatenate(logits), accuracy.top1, accuracy.n / seconds


if __name__ == "__main__":
    sys.exit(main())
