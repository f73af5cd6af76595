"""The files of an artifact, one function each; ``tvmq/artifact/artifact.py`` says what they are."""

from __future__ import annotations

import json
import math
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
import tvm
from torch.fx import GraphModule
from tvm import IRModule
from tvm.support import cc
from tvm.target import Target

from relay_passes.host_pipeline import host_pipeline
from relay_passes.place import PlacedModule
from relay_passes.read_layers import IntegerNetwork, IslandLayer
from targets.cpu.cuts import Cut, cuts_as_json
from targets.cpu.host import features_needed, foreign_architecture, host_target, runs_here
from targets.cpu.instruction_sets import architecture_of, best_of
from targets.disk_space import require_room
from targets.linker import find_linker, linking
from targets.npu.choices import Choices
from targets.npu.execute.compiled import executor_object
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.storage import host_bytes
from tvmq import __version__
from tvmq.artifact.artifact import (
    FORMAT,
    CpuEntry,
    FloatEndsEntry,
    FloatEntry,
    FloatIslandEntry,
    Manifest,
    RangeEntry,
    TensorInfo,
)
from tvmq.build_request import BuildRequest
from tvmq.data.source import DataSource, sha256_of_file
from tvmq.float_ends import CompilableEnds, whole_program
from tvmq.float_model import FloatEnd, FloatModel, TensorSpec
from tvmq.plan.plan import Plan
from tvmq.plan.range_check import Finding
from tvmq.run.verify import CALIBRATION_IMAGES, NOISE_IMAGES

DATA_FREE = "data-free: batch-norm statistics of the network"


PER_PARAMETER, FIXED = 16, 2_000_000
"""Bytes of an artifact at most, from those of networks of 46 thousand to 3.5 million parameters: of
these, 4 are in float.pt2, 3 in integer.json, the rest in the libraries and programs."""

CHOICES = "choices.json"
"""What takes the place of the compiler's own choices, for each program: of a tuned artifact."""

CUTS = "cuts.json"
"""What takes the place of the rules' cuts of the CPU's kernels, by tensor: of a tuned artifact."""

OBJECTS_PER_PARAMETER = 8
"""Bytes of what lies in temporary files while a library is linked or loaded."""


def require_room_for(model: FloatModel, folder: Path) -> None:
    """Refuse to begin where the disk is too full for an artifact.

    Raises:
        InputError: it is.
    """
    values = sum(
        math.prod(spec.shape[1:]) for spec in (*model.network_inputs, *model.network_outputs)
    )
    golden = (CALIBRATION_IMAGES + NOISE_IMAGES) * 4 * values
    need = PER_PARAMETER * _parameters(model) + FIXED + golden
    require_room(folder.parents[1], need, "the artifact of this network")


def require_room_to_link(model: FloatModel) -> None:
    """Refuse to begin, or to go on, where there is no room for objects: LLVM ends the process then.

    Raises:
        InputError: there is none.
    """
    need = OBJECTS_PER_PARAMETER * _parameters(model) + FIXED
    require_room(Path(tempfile.gettempdir()), need, "linking the libraries of this network")


def _parameters(model: FloatModel) -> int:
    return sum(value.numel() for value in model.graph_module.state_dict().values())


def save_float(folder: Path, model: FloatModel) -> None:
    """float.pt2 and its text."""
    program = whole_program(model)
    for node in program.graph.nodes:  # addresses of this process and counts of its graphs
        for volatile in ("from_node", "stack_trace"):
            node.meta.pop(volatile, None)
    torch.export.save(program, folder / "float.pt2")
    _write_text(folder, "float", model.graph_module.code)
    if model.ends is not None:
        _write_text(folder, "head", model.ends.head.graph_module.code)
        _write_text(folder, "tail", model.ends.tail.graph_module.code)
    for name, island in model.islands.items():
        _write_text(folder, name, island.graph_module.code)


def save_annotated(folder: Path, graph_module: GraphModule) -> None:
    """The text of the fake-quantized graph."""
    _write_text(folder, "annotated", graph_module.code)


def save_integer(folder: Path, integer: IRModule) -> None:
    """integer.json and its text."""
    (folder / "integer.json").write_text(tvm.ir.save_json(integer))
    _write_text(folder, "integer", integer.script(show_meta=False))


def save_placement(folder: Path, placed: PlacedModule, spec: NpuSpec | None) -> None:
    """layers.json, npu.toml, the programs, and the text of the placed module."""
    layers = [placement.as_json() for placement in placed.placements]
    (folder / "layers.json").write_text(json.dumps(layers, indent=1) + "\n")
    if spec is not None:
        (folder / "npu.toml").write_text(tomli_w.dumps(spec.model_dump()))
    for index, program in enumerate(placed.programs):
        (folder / f"program_{index}.bin").write_bytes(program.to_bytes())
    _write_text(folder, "placed", placed.mod.script(show_meta=False))


def save_ends(folder: Path, ends: CompilableEnds | None) -> None:
    """head.json and tail.json, where the network has float ends."""
    if ends is not None:
        (folder / "head.json").write_text(tvm.ir.save_json(ends.head))
        (folder / "tail.json").write_text(tvm.ir.save_json(ends.tail))


def save_choices(folder: Path, choices: Sequence[Choices]) -> None:
    """choices.json: a list, an entry for each program."""
    text = json.dumps([each.as_json() for each in choices], indent=1)
    (folder / CHOICES).write_text(text + "\n")


def save_cuts(folder: Path, cuts: Mapping[str, Cut]) -> None:
    """cuts.json: an entry for each tensor whose kernel isn't cut by rule."""
    (folder / CUTS).write_text(json.dumps(cuts_as_json(cuts), indent=1) + "\n")


def compile_libraries(
    folder: Path, placed: PlacedModule, on_cpu: PlacedModule, spec: NpuSpec | None, target: Target
) -> None:
    """cpu.so and model.so.

    Args:
        folder: to write them to.
        placed: with the NPU, if there is one.
        on_cpu: without.
        spec: the NPU, or None.
        target: the CPU that both modules are of.

    Raises:
        InputError: there is no room for them.
        MissingDependencyError: they can't be linked.
    """
    compile_library(on_cpu.mod, folder / "cpu.so", None, target)
    if spec is None:
        shutil.copy(folder / "cpu.so", folder / "model.so")
    else:  # one after the other: in two threads they took as long
        compile_library(placed.mod, folder / "model.so", spec, target)


def compile_library(
    mod: IRModule, path: Path, spec: NpuSpec | None, target: Target | None = None
) -> None:
    """Compile a placed module and link it, with the executor of its machine.

    Args:
        mod: the module.
        path: of the library.
        spec: the NPU in it, or None.
        target: the CPU that the module is of; None is this machine.

    Raises:
        InputError: there is no room for it.
        MissingDependencyError: it can't be linked.
    """
    target = target or host_target()
    executable = tvm.compile(mod, target=target, relax_pipeline=host_pipeline())
    objects = [] if spec is None else [str(executor_object(spec, target))]
    link = None
    if (foreign := foreign_architecture(target)) is not None:
        link = cc.cross_compiler(find_linker(foreign))
    with linking(path.name, path.parent):
        executable.export_library(str(path), fcompile=link, addons=objects)


def make_manifest(
    request: BuildRequest,
    model: FloatModel,
    data: DataSource | None,
    plan: Plan,
    network: IntegerNetwork,
    placed: PlacedModule,
    target: Target,
    bit_exact: bool,
    seconds: dict[str, float],
    reconstruction: dict[str, Any],
    residuals: dict[str, Any],
    ranges: Sequence[Finding],
    tuning: dict[str, Any],
) -> Manifest:
    """Say what was built from what, how, and with which result."""
    devices = [item.device for item in placed.placements]
    placement = {device: devices.count(device) for device in ("npu", "cpu")}
    in_float = [*(() if model.ends is None else (model.ends.head, model.ends.tail))]
    in_float += model.islands.values()
    if in_float:
        placement["float"] = sum(len(part.operators) for part in in_float)
    settings = asdict(plan.settings) | {
        "precision": plan.settings.precision,
        "weights": "symmetric",
        "activations": "per tensor",
        "seed": request.seed,
    }
    return Manifest(
        format=FORMAT,
        versions={
            "tvmq": __version__,
            "tvm": version("apache-tvm"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        model={
            "file": request.model_file.name,
            "kind": model.kind,
            "sha256": sha256_of_file(request.model_file),
            "fingerprint": model.fingerprint,
        },
        target=request.target,
        cpu=cpu_entry(request.cpu, target),
        settings=settings,
        calibration=_calibration(request, data, plan),
        preprocessing=request.preprocessing.to_manifest(),
        inputs=tuple(_tensor(spec) for spec in model.network_inputs),
        outputs=tuple(_tensor(spec) for spec in model.network_outputs),
        placement=placement,
        float_ends=_float_ends(model),
        float_islands=tuple(_float_islands(model, network)),
        bit_exact=bit_exact,
        reconstruction=reconstruction,
        residuals=residuals,
        ranges=tuple(RangeEntry(**finding.as_json()) for finding in ranges),
        tuning=tuning,
        seconds=seconds,
    )


def cpu_entry(asked: str, target: Target) -> CpuEntry:
    """What libraries for a target need, which was asked for by a name."""
    return CpuEntry(
        target=asked,
        instructions=best_of(target).name,
        processor=str(target.attrs["mcpu"]),
        architecture=architecture_of(target),
        needs=features_needed(target),
        executed=runs_here(target),
    )


def _float_ends(model: FloatModel) -> FloatEndsEntry | None:
    if model.ends is None:
        return None
    return FloatEndsEntry(head=_entries(model.ends.head), tail=_entries(model.ends.tail))


def _float_islands(model: FloatModel, network: IntegerNetwork) -> Iterator[FloatIslandEntry]:
    for layer in network.layers:
        if isinstance(layer, IslandLayer):
            yield FloatIslandEntry(
                name=layer.name,
                operators=_entries(model.islands[layer.name]),
                reads={value.name: host_bytes(value) for value in layer.inputs},
                makes={value.name: host_bytes(value) for value in layer.outputs},
            )


def _entries(end: FloatEnd) -> tuple[FloatEntry, ...]:
    return tuple(FloatEntry(**asdict(operator)) for operator in end.operators)


def _calibration(request: BuildRequest, data: DataSource | None, plan: Plan) -> dict[str, Any]:
    if request.plan is not None:
        source = f"plan {request.plan.name}: {plan.calibration}"
        return {"source": source, "fingerprint": sha256_of_file(request.plan)}
    if data is None:
        return {"source": DATA_FREE, "samples": 0, "ranges": plan.calibration}
    return {
        "source": Path(data.spec).name,
        "fingerprint": data.fingerprint(),
        "ranges": plan.calibration,
    }


def _tensor(spec: TensorSpec) -> TensorInfo:
    return TensorInfo(name=spec.name, shape=("N", *spec.shape[1:]), dtype=spec.dtype)


def _write_text(folder: Path, stage: str, text: str) -> None:
    (folder / "ir").mkdir(exist_ok=True)
    (folder / "ir" / f"{stage}.py").write_text(text)
