"""A built artifact with other choices for its NPU programs: the same integers, in fewer cycles.

What the network computes is read from ``integer.json``; only programs, ``model.so`` and what is
written of them are made anew. The outputs of ``golden.npz`` are the proof, as they are of a build.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from relay_passes.float_ends import HEAD, INTEGERS, join_ends
from relay_passes.place import PlacedModule, integer_layers, place, programs_of
from relay_passes.read_layers import IntegerNetwork, read_layers
from targets.cpu.cuts import Cut, cuts_from_json
from targets.cpu.host import CpuFeatures, cpu_target
from targets.cpu.instruction_sets import NATIVE
from targets.cpu.kernels import cuts_of
from targets.errors import GateError, InputError
from targets.linker import try_linker
from targets.npu.choices import Choices
from targets.npu.execute.compiled import made_meanwhile
from targets.npu.machine.spec import load_spec
from tvmq.artifact.artifact import Artifact, Manifest, write_manifest, writing
from tvmq.artifact.files import (
    CHOICES,
    CUTS,
    compile_library,
    cpu_entry,
    save_choices,
    save_placement,
)
from tvmq.progress import Progress
from tvmq.run.session import LibraryRunner
from tvmq.run.verify import same
from tvmq.tune.request import TuneRequest
from tvmq.tune.tuning import Tuned, tune


@dataclass(frozen=True)
class TuneResult:
    """What was tuned.

    Attributes:
        artifact: the folder that was written.
        manifest: its manifest.
        tuned: what was found.
    """

    artifact: Path
    manifest: Manifest
    tuned: Tuned

    def as_json(self) -> dict[str, Any]:
        """The output of `tvmq tune --json`."""
        facts = self.tuned.as_json()
        return {
            "artifact": str(self.artifact),
            "cycles_before": self.tuned.before,
            "cycles_after": self.tuned.after,
            "trials": facts["trials"],
            "failed_trials": facts["failed"],
            "seed": facts["seed"],
            "best": facts["best"],
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
                f"{self.artifact}: the tuned NPU programs give other outputs for golden.npz. "
                f"This is a fault of tvmq; don't deploy the artifact."
            )


def retune(
    source: Path, output: Path, request: TuneRequest, progress: Progress | None = None
) -> TuneResult:
    """Tune an artifact; nothing at its destination changes unless all stages succeed.

    Args:
        source: an artifact that was built for an NPU.
        output: the folder to write; it may be the same.
        request: what is asked for.
        progress: listens.

    Raises:
        InputError: it isn't one, is for another processor, or records can't be used.
        TvmqError: a stage can't do it.
    """
    progress = progress or Progress()
    artifact, asked, cpu = opened(source)
    if not artifact.has("npu.toml"):
        raise InputError(
            f"{source}: was built for the CPU, and has no NPU programs to tune. Build it with "
            f"--target npu, or tune its kernels with --device cpu."
        )
    before = artifact.manifest.cpu
    entry = cpu_entry(asked, cpu)
    if before is not None:  # cpu.so is still what it was
        entry = entry.model_copy(update={"needs": tuple(sorted({*before.needs, *entry.needs}))})
    spec = load_spec(str(artifact.path("npu.toml")))
    with writing(output) as folder, made_meanwhile(spec):
        with progress.stage("read"):
            integer = module_of(artifact, "integer.json")
            network = read_layers(integer, {e["name"]: e["source"] for e in artifact.layers()})
        with progress.stage("tune"):
            programs = programs_of(network, spec)
            tuned = tune(programs, spec, request, progress, choices_of(artifact))
        with progress.stage("place"):
            cuts = fitting_cuts(artifact, network, cpu, progress)
            placed = place(integer, network, spec, cpu, tuned.choices, cuts)
            placed = with_ends(artifact, placed)
            made = ("npu.toml", "layers.json", "ir/placed.py", "model.so", CHOICES)
            for name in artifact.manifest.files:
                if name not in made and not name.startswith("program_"):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(artifact.path(name), folder / name)
            save_placement(folder, placed, spec)
            save_choices(folder, tuned.choices)
        with progress.stage("compile"):
            compile_library(placed.mod, folder / "model.so", spec, cpu)
        with progress.stage("verify"):
            bit_exact = artifact.manifest.bit_exact and verified(folder, artifact)
        seconds = {"tune": 0.0, **artifact.manifest.seconds}
        manifest = artifact.manifest.model_copy(
            update={
                "cpu": entry,
                "bit_exact": bit_exact,
                "tuning": {**artifact.manifest.tuning, **tuned.as_json()},
                "seconds": {name: progress.seconds.get(name, s) for name, s in seconds.items()},
            }
        )
        write_manifest(folder, manifest)
    return TuneResult(output, manifest, tuned)


def opened(source: Path) -> tuple[Artifact, str, Target]:
    """An artifact that can be tuned here, what its processor was asked for by, and that.

    Raises:
        InputError: it isn't one, is older, or is for another processor.
    """
    artifact = Artifact.load(source)
    if artifact.manifest.float_ends is not None and not artifact.has("head.json"):
        raise InputError(f"{source}: has no head.json to tune it with. Build it again.")
    artifact.require_processor()  # the proof is that it gives the same outputs
    try_linker()
    asked = NATIVE if artifact.manifest.cpu is None else artifact.manifest.cpu.target
    return artifact, asked, cpu_target(asked)


def with_ends(artifact: Artifact, placed: PlacedModule) -> PlacedModule:
    """A network with the float ends that the artifact keeps around it, if it has some."""
    if artifact.manifest.float_ends is None:
        return placed
    head, tail = (module_of(artifact, f"{end}.json") for end in ("head", "tail"))
    return replace(placed, mod=join_ends(placed.mod, head, tail))


def choices_of(artifact: Artifact) -> list[Choices]:
    """The choices that its programs were compiled with; none if they are the rule's."""
    if not artifact.has(CHOICES):
        return []
    with artifact.reading(CHOICES) as path:
        return [Choices.from_json(each) for each in json.loads(path.read_bytes())]


def kept_cuts(artifact: Artifact) -> dict[str, Cut]:
    """The cuts that its kernels were compiled with, by tensor; none if they are the rules'."""
    if not artifact.has(CUTS):
        return {}
    with artifact.reading(CUTS) as path:
        return cuts_from_json(json.loads(path.read_bytes()))


def fitting_cuts(
    artifact: Artifact, network: IntegerNetwork, cpu: Target, progress: Progress
) -> dict[str, Cut]:
    """Of the cuts that its kernels were compiled with, those that they can have for a processor."""
    host, kept = CpuFeatures.of(cpu), kept_cuts(artifact)
    spaces = {layer.output.name: cuts_of(layer, host) for layer in integer_layers(network.layers)}
    found = {
        name: cut
        for name, cut in kept.items()
        if (space := spaces.get(name)) is not None and cut in space
    }
    if len(found) < len(kept):
        progress.note(
            f"note: {len(kept) - len(found)} of {len(kept)} kernels can't be cut here as they were "
            f"tuned, and are cut by rule."
        )
    return found


def module_of(artifact: Artifact, name: str) -> tvm.IRModule:
    """One that is kept as JSON."""
    with artifact.reading(name) as path:
        return tvm.ir.load_json(path.read_text())


def verified(folder: Path, artifact: Artifact, name: str = "model.so") -> bool:
    """Whether a library gives what golden.npz says, bit for bit."""
    with artifact.reading("golden.npz") as path, np.load(path) as file:
        golden = dict(file)
    manifest = artifact.manifest
    library = LibraryRunner(folder / name)
    arrays = [golden[f"input.{info.name}"] for info in manifest.inputs]
    expected = [golden[f"output.{info.name}"] for info in manifest.outputs]
    if not same(library(arrays), expected):
        return False
    between = [array for name, array in golden.items() if name.startswith("integers.")]
    if not between:
        return True
    read = library(arrays, HEAD)[: library.parameters_of(INTEGERS)]
    return same(library(read, INTEGERS), between)
