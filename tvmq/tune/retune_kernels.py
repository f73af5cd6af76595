"""A built artifact with other cuts for the CPU's kernels: the same integers, in less time.

As ``retune`` does for NPU programs: what is computed is read from ``integer.json``, libraries are
made anew, and the outputs of ``golden.npz`` are the proof. At the end the whole network is timed,
by turns with what it was, and the cuts are kept only if it isn't slower.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from relay_passes.place import PlacedModule, integer_layers, place
from relay_passes.read_layers import read_layers
from targets.cpu.cuts import Cut
from targets.errors import GateError
from targets.npu.machine.spec import load_spec
from tvmq.artifact.artifact import Artifact, Manifest, write_manifest, writing
from tvmq.artifact.files import CUTS, compile_libraries, cpu_entry, save_cuts, save_placement
from tvmq.progress import Progress
from tvmq.tune.kernel_clock import Clock, LocalClock, network_seconds
from tvmq.tune.request import TuneRequest
from tvmq.tune.retune import choices_of, fitting_cuts, module_of, opened, verified, with_ends
from tvmq.tune.servers_clock import ServersClock
from tvmq.tune.tune_kernels import tune_kernels, tuning_facts

TURNS = 9
"""Of the whole network, before and after."""


@dataclass(frozen=True)
class KernelTuneResult:
    """What was tuned.

    Attributes:
        artifact: the folder that was written.
        manifest: its manifest.
    """

    artifact: Path
    manifest: Manifest

    def as_json(self) -> dict[str, Any]:
        """The output of `tvmq tune --device cpu --json`."""
        facts = self.manifest.tuning["cpu"]
        return {
            "artifact": str(self.artifact),
            **facts,
            "bit_exact": self.manifest.bit_exact,
            "seconds": self.manifest.seconds,
        }

    def check_gates(self) -> None:
        """Fail if the devices disagree.

        Raises:
            GateError: they do.
        """
        if not self.manifest.bit_exact:
            raise GateError(
                f"{self.artifact}: the tuned kernels give other outputs for golden.npz. "
                f"This is a fault of tvmq; don't deploy the artifact."
            )


def retune_kernels(
    source: Path,
    output: Path,
    request: TuneRequest,
    progress: Progress | None = None,
) -> KernelTuneResult:
    """Tune the CPU's kernels of an artifact; nothing changes unless all stages succeed.

    Args:
        source: an artifact.
        output: the folder to write; it may be the same.
        request: what is asked for.
        progress: listens.

    Raises:
        InputError: it isn't one, is for another processor, records can't be used, or the tracker
            has no server.
        TvmqError: a stage can't do it.
    """
    progress = progress or Progress()
    artifact, asked, cpu = opened(source)
    spec = load_spec(str(artifact.path("npu.toml"))) if artifact.has("npu.toml") else None
    with writing(output) as folder, ExitStack() as servers:
        clock: Clock = (
            LocalClock(cpu)
            if request.tracker is None
            else servers.enter_context(ServersClock(cpu, request.tracker))
        )
        with progress.stage("read"):
            integer = module_of(artifact, "integer.json")
            network = read_layers(integer, {e["name"]: e["source"] for e in artifact.layers()})
        with progress.stage("tune"), servers:  # which others may have from then on
            before = fitting_cuts(artifact, network, cpu, progress)
            layers = integer_layers(network.layers)
            tuned = tune_kernels(layers, cpu, clock, request, progress, before)

        def placed(with_npu: bool, cuts: Mapping[str, Cut]) -> PlacedModule:
            found = place(
                *(integer, network, spec if with_npu else None, cpu),
                *(choices_of(artifact) if with_npu else (), cuts),
            )
            return with_ends(artifact, found)

        for name in artifact.manifest.files:
            if name not in ("model.so", "cpu.so", "ir/placed.py", CUTS):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(artifact.path(name), folder / name)

        def compiled(cuts: Mapping[str, Cut]) -> None:
            on_cpu = placed(False, cuts)
            both = on_cpu if spec is None else placed(True, cuts)
            save_placement(folder, both, spec)
            save_cuts(folder, cuts)
            compile_libraries(folder, both, on_cpu, spec, cpu)

        with progress.stage("compile"):
            compiled(tuned.cuts)
        seconds, kept = None, True
        if request.tracker is None and tuned.cuts != before:
            with progress.stage("compare"):
                seconds = _compared(artifact, folder)
                if seconds[1] > seconds[0]:
                    progress.note(
                        f"note: kernels that are faster by themselves make the network slower "
                        f"({1e3 * seconds[0]:.3f} ms before, {1e3 * seconds[1]:.3f} ms after), so "
                        f"they stay as they were."
                    )
                    compiled(before)
                    seconds, kept = (seconds[0], seconds[0]), False
        with progress.stage("verify"):
            bit_exact = artifact.manifest.bit_exact and all(
                verified(folder, artifact, name) for name in ("model.so", "cpu.so")
            )
        known = artifact.manifest.seconds
        facts = tuning_facts(tuned, clock, request, seconds, kept)
        manifest = artifact.manifest.model_copy(
            update={
                "bit_exact": bit_exact,
                "cpu": cpu_entry(asked, cpu),  # both libraries are new
                "tuning": {**artifact.manifest.tuning, "cpu": facts},
                "seconds": {"tune": 0.0, **known, **progress.seconds},
            }
        )
        write_manifest(folder, manifest)
    return KernelTuneResult(output, manifest)


def _compared(artifact: Artifact, folder: Path) -> tuple[float, float]:
    """Seconds of an image before and after."""
    with artifact.reading("golden.npz") as path, np.load(path) as file:
        arrays = [file[f"input.{info.name}"][:1] for info in artifact.manifest.inputs]
    with artifact.reading("cpu.so") as path:
        before, after = network_seconds([path, folder / "cpu.so"], arrays, TURNS)
    ratio = median(a / b for a, b in zip(after, before, strict=True))
    return median(before), ratio * median(before)
