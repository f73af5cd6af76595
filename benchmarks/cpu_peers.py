"""CPU kernels beside ONNX Runtime and OpenVINO: the same networks in 8 bits, timed by turns.

    python -m benchmarks.cpu_peers [--networks resnet18,...] [--threads 1,2] [--batch 1,8]
                                   [--instruction-set native] [--precision w8a8] [--results FILE]

Random weights, 224 x 224 pixels. tvmq builds for the CPU with free steps. The peers run one int8
file: ONNX Runtime's static quantization, weights signed by channel, activations unsigned. At w7a8
its weights have 7 bits, too (``reduce_range``), what its documentation advises where AVX2 sums
products in 16 bits.
Each runs in a process of its own, and they take turns in one run, so that load hits all alike.
A turn's time is the least of some runs: CPU time of the process with one thread, else that on the
clock. A row has the median over the turns, and the median of the ratios within a turn. With several
threads other work on the same cores makes one wait for another: `chrt -r 1` in front keeps it away.

``--instruction-set avx2`` has everybody keep to AVX2: OpenVINO by ONEDNN_MAX_CPU_ISA, ONNX Runtime,
which has no such option, by ``benchmarks/masked_cpuid.py``.

ONNX Runtime is in the extra `bench`, OpenVINO must be installed beside it; the networks that torch
alone doesn't make are timm's and torchvision's (the extra `zoo`). What is missing is said and left
out. ``--results`` collects rows in a file of JSON lines, one for each measurement, the last one
replacing those before; ``--table FILE`` prints them as Markdown.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cpu_peer_files import quantize_for_peers
from benchmarks.masked_cpuid import masked_environment
from benchmarks.mobilenet_v2 import mobilenet_v2
from benchmarks.resnet18 import PIXELS, resnet18
from benchmarks.zoo import made
from targets.cpu.instruction_sets import NATIVE
from targets.whole_files import whole_file
from tvmq import __version__
from tvmq.build_request import BuildRequest
from tvmq.flow import build
from tvmq.settings import Settings, parse_precision

OWN = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2}
FROM_PACKAGES = ("resnet50", "efficientnet_lite0", "vit_tiny_patch16_224")
NAMES = {"tvmq": "tvmq", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
SEED, IMAGES = 0, 4
KEY = ("network", "precision", "instruction_set", "batch", "threads")
PRECISIONS = ("w8a8", "w7a8")
HEAD = "| network | precision | instructions | batch | threads | " + " | ".join(
    [*(f"{name}, ms" for name in NAMES.values()), "/ ONNX Runtime", "/ OpenVINO"]
)


@dataclass(frozen=True)
class Files:
    """What runs one network.

    Attributes:
        library: of tvmq.
        peers: the int8 file; None where nothing can make it.
    """

    library: Path
    peers: Path | None

    def of(self, name: str) -> Path | None:
        """What one of them runs."""
        return self.library if name == "tvmq" else self.peers


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join([*OWN, *FROM_PACKAGES]))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--instruction-set", default=NATIVE, choices=[NATIVE, "avx2"])
    parser.add_argument("--precision", default="w8a8", choices=PRECISIONS)
    parser.add_argument("--folder", type=Path, help="keeps what is built; default: nothing is kept")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--table", type=Path, metavar="FILE", help="print it and measure nothing")
    options = parser.parse_args()
    if options.table:
        print("\n".join(table(read(options.table))))
        return 0
    print(f"tvmq {__version__}, {machine()}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as room:
        folder = options.folder or Path(room)
        folder.mkdir(parents=True, exist_ok=True)
        environments = _environments(options.instruction_set, Path(room))
        for network in options.networks.split(","):
            try:
                files = prepare(network, options.precision, options.instruction_set, folder)
            except ImportError as error:
                print(f"{network} is left out: {error}", file=sys.stderr)
                continue
            for batch in map(int, options.batch.split(",")):
                for threads in map(int, options.threads.split(",")):
                    times = by_turns(files, environments, batch, threads, options.turns)
                    how = (options.precision, options.instruction_set, batch, threads)
                    key = dict(zip(KEY, (network, *how), strict=True))
                    fact = {**key, **figures(times), "turns": options.turns}
                    fact |= {"versions": _versions(times), "machine": machine()}
                    print("\n".join(list(table([fact]))[2:]), flush=True)
                    if options.results:
                        write(options.results, [*read(options.results), fact])
    return 0


def prepare(network: str, precision: str, instruction_set: str, folder: Path) -> Files:
    """Build a network for everybody; what is in the folder is taken as it is.

    Raises:
        ImportError: no package here makes it.
    """
    weight_bits, activation_bits = parse_precision(precision)
    artifact = folder / f"{network}.{precision}.{instruction_set}"
    peers = folder / f"{network}.{precision}.onnx"
    noise = folder / "noise.npz"
    if not noise.exists():
        images = np.random.default_rng(SEED).standard_normal((IMAGES, 3, PIXELS, PIXELS))
        np.savez(noise, x=images.astype(np.float32))
    if not artifact.exists() or not peers.exists():
        program = exported(network)
        if not artifact.exists():
            torch.export.save(program, folder / f"{network}.pt2")
            build(
                BuildRequest(
                    folder / f"{network}.pt2",
                    artifact,
                    target="cpu",
                    cpu=instruction_set,
                    settings=Settings(
                        *(weight_bits, activation_bits),
                        first_last_bits=weight_bits,
                        bias_correction=False,
                    ),
                    calib_data=str(noise),
                    seed=SEED,
                )
            ).check_gates()
        try:
            quantize_for_peers(program, np.load(noise)["x"], weight_bits, peers)
        except ImportError as error:
            print(f"no peers: {error}; pip install '.[bench]' openvino", file=sys.stderr)
    return Files(artifact / "cpu.so", peers if peers.exists() else None)


def exported(network: str) -> torch.export.ExportedProgram:
    """A network for any batch."""
    if network in OWN:
        return OWN[network](SEED)
    torch.manual_seed(SEED)
    module, shape = made(network, PIXELS)
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(module.eval(), (torch.randn(2, *shape),), dynamic_shapes=(batch,))


def by_turns(
    files: Files,
    environments: dict[str, dict[str, str]],
    batch: int,
    threads: int,
    turns: int,
) -> dict[str, list[float]]:
    """Milliseconds of each turn, by whose they are.

    A process that can't start, or ends before the last turn, is said and left out.
    Processes wait while it isn't their turn: idle threads would spin on the others' cores.
    """
    workers: dict[str, subprocess.Popen[str]] = {}
    for name, environment in environments.items():
        if (file := files.of(name)) is None:
            continue
        worker = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cpu_peer", name, str(file), str(batch)],
            env={**os.environ, **environment, **_threads(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdout is not None
        if worker.stdout.readline() == "ready\n":
            workers[name] = worker
            worker.send_signal(signal.SIGSTOP)
        else:
            print(f"{NAMES[name]} is left out: it can't run {file.name}", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(turns):
        for name, worker in list(workers.items()):
            if (seconds := _turn(worker)) is None:
                print(f"{NAMES[name]} is left out: it ended in turn {turn + 1}", file=sys.stderr)
                del workers[name], times[name]
                worker.kill()
                worker.wait()
                continue
            times[name].append(1e3 * seconds)
            worker.send_signal(signal.SIGSTOP)
    for worker in workers.values():
        worker.send_signal(signal.SIGCONT)
        worker.communicate()
    return times


def _turn(worker: subprocess.Popen[str]) -> float | None:
    """Seconds of a turn; None where the process ends."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.send_signal(signal.SIGCONT)
    try:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return None
    line = worker.stdout.readline()
    return float(line) if line else None


def figures(times: dict[str, list[float]]) -> dict[str, Any]:
    """Median and least milliseconds, and the median of tvmq's ratios to each peer if it ran."""
    ratios = {
        name: statistics.median(own / other for own, other in zip(times["tvmq"], each, strict=True))
        for name, each in times.items()
        if name != "tvmq" and "tvmq" in times
    }
    return {
        "median_ms": {name: round(statistics.median(each), 3) for name, each in times.items()},
        "least_ms": {name: round(min(each), 3) for name, each in times.items()},
        "ratio": {name: round(ratio, 3) for name, ratio in ratios.items()},
    }


def read(results: Path) -> list[dict[str, Any]]:
    """What was measured so far, each once."""
    lines = results.read_text().splitlines() if results.exists() else []
    facts = [json.loads(line) for line in lines]
    return list({tuple(fact[key] for key in KEY): fact for fact in facts}.values())


def write(results: Path, facts: Iterable[dict[str, Any]]) -> None:
    """Replace the results; a reader never sees half a file."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(results) as file:
        file.write("".join(json.dumps(fact) + "\n" for fact in facts).encode())


def table(facts: Iterable[dict[str, Any]]) -> Iterable[str]:
    """A row per measurement; a ratio below 1 is less time than the peer's."""
    yield f"{HEAD} |"
    yield "|---" * (HEAD.count(" |") + 1) + "|"
    for fact in facts:
        cells = [str(fact[key]) for key in KEY]
        cells += [_number(fact["median_ms"], name, 2) for name in NAMES]
        cells += [_number(fact["ratio"], name, 2) for name in NAMES if name != "tvmq"]
        yield f"| {' | '.join(cells)} |"


def machine() -> str:
    """Processor, cores, and the load of the last minute."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)
        name = found[1] if found else name
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def _number(numbers: dict[str, float], name: str, places: int) -> str:
    return f"{numbers[name]:.{places}f}" if name in numbers else "–"


def _versions(names: Iterable[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}


def _threads(threads: int) -> dict[str, str]:
    return {"TVM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}


def _environments(instruction_set: str, room: Path) -> dict[str, dict[str, str]]:
    """What has each keep to the instruction set; without those that can't be run."""
    found: dict[str, dict[str, str]] = {"tvmq": {}}
    for name in NAMES:
        if name == "tvmq":
            continue
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"{NAMES[name]} is left out: {name} is not installed", file=sys.stderr)
            continue
        found[name] = {}
    if instruction_set != NATIVE:
        if "onnxruntime" in found:
            found["onnxruntime"] = masked_environment("onnxruntime", room / "masked")
        if "openvino" in found:
            found["openvino"] = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    return found


if __name__ == "__main__":
    sys.exit(main())
