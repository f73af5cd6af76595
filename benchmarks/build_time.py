"""Seconds and memory of `tvmq build` by stage beside ONNX Runtime's quantizer, and of `inspect`.

    pip install '.[bench]'
    python -m benchmarks.build_time [--data FOLDER] [--only CASE,...]

Builds the shipped digits (first with an empty cache of executors, then again), MobileNetV2 and
ResNet-18 at 224 x 224 with 256 images, w8a8, steps powers of two; ``quantize_static`` of ONNX
Runtime gets the same network and the same images, read by the same code, and its defaults
otherwise. Then ``tvmq inspect`` of four networks of 224 x 224.

With a folder (default: the environment variable TVMQ_DATA) that holds
models/mobilenet_v2_imagenet.pt2 and imagenet/calib, MobileNetV2 has trained weights and both
networks see these images; otherwise weights are random and images are noise.

Every case is a process of its own: wall and CPU seconds are of the whole process, imports included,
and the peak is its largest resident memory. CPU seconds beyond the wall ones are the second core.
"Up to the integers" is all that ONNX Runtime's quantizer does, too: from the file of the float
network to that of the integer one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SEED, IMAGES, PIXELS = 0, 256, 224
MEAN, STD = "0.485,0.456,0.406", "0.229,0.224,0.225"
DIGITS = Path(__file__).parent.parent / "examples" / "digits"
BUILT = ("mobilenet_v2", "resnet18")
INSPECTED = ("resnet18", "densenet121", "repvgg_a0", "mobileone_s0")
CASES = (
    *("build-digits-first", "build-digits"),
    *(f"{tool}-{name}" for name in BUILT for tool in ("onnxruntime", "build")),
    *(f"inspect-{name}" for name in INSPECTED),
)
TO_INTEGERS = ("capture", "calibrate", "plan", "annotate", "integer", "preprocess", "quantize")
"""Stages that both tools have in some form; behind them only tvmq goes on."""


def main() -> int:
    """Run the benchmark; or, in a process of its own, one of its cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TVMQ_DATA"), help="folder of the data")
    parser.add_argument("--only", default=",".join(CASES), help="default: " + ",".join(CASES))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--room", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        run_case(options.case, options.room)
        return 0
    wanted = options.only.split(",")
    if unknown := sorted(set(wanted) - set(CASES)):
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    data = Path(options.data) if options.data else None
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        images = prepare(room, wanted, data)
        print(f"{versions()}; {os.cpu_count()} cores; {images}, seed {SEED}\n")
        results = {case: measured(case, room) for case in wanted}
    print_summary(results)
    return 0


# --- what the cases share


def prepare(room: Path, cases: list[str], data: Path | None) -> str:
    """Write model.pt2, model.onnx and images into the room; say which images."""
    from benchmarks.branched_networks import densenet121, mobileone_s0, repvgg_a0
    from benchmarks.mobilenet_v2 import mobilenet_v2
    from benchmarks.resnet18 import resnet18

    makers = (mobilenet_v2, resnet18, densenet121, repvgg_a0, mobileone_s0)
    for make in makers:
        name = make.__name__
        if any(case.endswith(f"-{name}") for case in cases):
            source = data / "models" / "mobilenet_v2_imagenet.pt2" if data else None
            trained = source if name == "mobilenet_v2" else None
            _write_model(room, name, make, trained, f"onnxruntime-{name}" in cases)
    if data is not None:
        (room / "images").symlink_to((data / "imagenet" / "calib").resolve())
        return f"{IMAGES} images of {data / 'imagenet' / 'calib'}"
    noise = np.random.default_rng(SEED).integers(0, 256, (IMAGES, PIXELS, PIXELS, 3), np.uint8)
    np.savez(room / "images.npz", images=noise)
    return f"{IMAGES} images of noise"


def _write_model(
    room: Path, name: str, make: Callable[[int], Any], source: Path | None, for_peer: bool
) -> None:
    import torch

    program = make(SEED) if source is None else torch.export.load(source)
    if source is None:
        torch.export.save(program, room / f"{name}.pt2")
    else:
        (room / f"{name}.pt2").symlink_to(source.resolve())
    if for_peer:
        torch.onnx.export(program, (), room / f"{name}.onnx", external_data=False, verbose=False)


def measured(case: str, room: Path) -> dict[str, Any]:
    """Run a case in a process of its own and print its stages."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.build_time"]
    words += ["--case", case, "--room", str(room)]
    environment = os.environ | {"TVMQ_CACHE": str(room / "executors")}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{case} failed:\n{done.stdout}{done.stderr}")
    stages = json.loads(done.stdout.splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{case}\n\n| stage | wall s | CPU s | peak MB |\n|---|---|---|---|")
    for stage in stages:
        print("| {name} | {wall:.2f} | {cpu:.2f} | {peak:.0f} |".format_map(stage))
    peak = stages[-1]["peak"]
    print(f"| **whole process** | **{wall:.2f}** | **{cpu:.2f}** | **{peak:.0f}** |\n", flush=True)
    return {"wall": wall, "cpu": cpu, "peak": peak, "stages": stages}


def print_summary(results: dict[str, dict[str, Any]]) -> None:
    """A line per case, and how long both tools took up to the integers."""
    print("| case | wall s | CPU s | peak MB | up to the integers: wall s | CPU s |")
    print("|---|---|---|---|---|---|")
    for case, result in results.items():
        line = "| {} | {wall:.2f} | {cpu:.2f} | {peak:.0f} |".format(case, **result)
        if not case.startswith("inspect"):
            line += " {:.2f} | {:.2f} |".format(*_to_integers(result))
        else:
            line += " | |"
        print(line)
    for name in BUILT:
        mine, peer = (results.get(f"{tool}-{name}") for tool in ("build", "onnxruntime"))
        if mine and peer:
            wall, cpu = (a / b for a, b in zip(_to_integers(mine), _to_integers(peer), strict=True))
            print(f"\n{name}: up to the integers {wall:.2f} x ONNX Runtime (CPU {cpu:.2f} x)")


def _to_integers(result: dict[str, Any]) -> tuple[float, float]:
    stages = [stage for stage in result["stages"] if stage["name"] in TO_INTEGERS]
    return sum(stage["wall"] for stage in stages), sum(stage["cpu"] for stage in stages)


def versions() -> str:
    """Of everything that is compared, and of the machine."""
    from importlib.metadata import version

    from targets.cpu.host import host_target

    names = ("tvmq", "torch", "apache-tvm", "onnxruntime")
    tools = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{tools}; {platform.platform()}, {host_target().attrs['mcpu']}"


# --- one case, in its own process


class Clock:
    """What each stage took, of this process; ``stage`` has the form of ``Progress.stage``."""

    def __init__(self) -> None:
        self.stages: list[dict[str, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.add(name, time.perf_counter() - wall, time.process_time() - cpu)

    def add(self, name: str, wall: float, cpu: float) -> None:
        """Keep a time that ends now."""
        self.stages.append({"name": name, "wall": wall, "cpu": cpu, "peak": _peak()})


def run_case(case: str, room: Path) -> None:
    """Run one case and print its stages as JSON on the last line."""
    tool, _, name = case.partition("-")
    clock = Clock()
    {"build": _build, "onnxruntime": _onnxruntime, "inspect": _inspect}[tool](clock, room, name)
    print(json.dumps(clock.stages))


def _build(clock: Clock, room: Path, name: str) -> None:
    _listen(clock)
    words = [*f"build --target npu --seed {SEED} -q -o".split(), str(room / f"{name}.tvmq")]
    if name.startswith("digits"):
        words += ["--calib-data", str(DIGITS / "digits_calib.npz")]
        words += ["--mean", "0.3", "--std", "0.35", str(DIGITS / "digits.pt2")]
    else:
        words += ["--calib-data", str(_images(room)), "--calib-samples", str(IMAGES)]
        words += ["--mean", MEAN, "--std", STD, "--crop", str(PIXELS), str(room / f"{name}.pt2")]
    _tvmq(clock, words)


def _inspect(clock: Clock, room: Path, name: str) -> None:
    _listen(clock)
    _tvmq(clock, ["inspect", str(room / f"{name}.pt2"), "-q"])


def _listen(clock: Clock) -> None:
    """Have the stages of a command tell the clock, too."""
    from tvmq.progress import Progress

    tell = Progress.stage

    @contextmanager
    def stage(self: Progress, name: str) -> Iterator[None]:
        with clock.stage(name), tell(self, name):
            yield

    Progress.stage = stage  # type: ignore[method-assign]


def _tvmq(clock: Clock, words: list[str]) -> None:
    """Run the command; what is not in a stage (imports, reading, printing) is called so."""
    from tvmq.cli import main

    code = main(words)
    if code:
        sys.exit(f"exit code {code}")
    known = {unit: sum(stage[unit] for stage in clock.stages) for unit in ("wall", "cpu")}
    clock.add("imports, the rest", _age() - known["wall"], time.process_time() - known["cpu"])


def _onnxruntime(clock: Clock, room: Path, name: str) -> None:
    from onnx import load
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from tvmq.data.open import open_data
    from tvmq.data.preprocessing import Preprocessing
    from tvmq.float_model import TensorSpec

    clock.add("imports", _age(), time.process_time())
    (given,) = load(room / f"{name}.onnx").graph.input
    how = Preprocessing.from_flags(MEAN, STD, None, PIXELS)
    source = open_data(str(_images(room)), (TensorSpec(given.name, (1, 3, PIXELS, PIXELS)),), how)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.batches = source.samples(IMAGES, 1, seed=SEED)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else batch.inputs

    with clock.stage("preprocess"):
        quant_pre_process(room / f"{name}.onnx", room / f"{name}.ready.onnx")
    with clock.stage("quantize"):
        quantize_static(room / f"{name}.ready.onnx", room / f"{name}.int8.onnx", Reader())


def _images(room: Path) -> Path:
    folder = room / "images"
    return folder if folder.exists() else room / "images.npz"


def _peak() -> float:
    """Largest resident memory so far, MB; ``ru_maxrss`` would begin with that of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _age() -> float:
    """Seconds since this process began."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
