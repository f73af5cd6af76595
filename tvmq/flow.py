"""The whole flow on one page: from a model file to an artifact.

    capture -> calibrate -> plan -> annotate -> integer -> place -> compile -> verify -> artifact

With trials, or records of some, the choices of the NPU's compiler are tuned before it places; where
the target is the CPU, the cuts of its kernels.

``_build_into`` is that line in code; each stage is a function with a file of its own.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tvm import IRModule
from tvm.target import Target

from relay_passes.place import (
    PlacedModule,
    Placement,
    integer_layers,
    place,
    placements,
    programs_of,
)
from relay_passes.read_layers import IntegerNetwork, read_layers
from targets.cpu.cuts import NO_CUTS, Cut
from targets.cpu.host import cpu_target, foreign_architecture, host_target, runs_here
from targets.errors import GateError, InputError
from targets.linker import try_linker
from targets.npu.choices import Choices
from targets.npu.execute.compiled import made_meanwhile
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.refusal import listed
from tvmq.artifact.artifact import Manifest, write_manifest, writing
from tvmq.artifact.files import (
    compile_libraries,
    make_manifest,
    require_room_for,
    require_room_to_link,
    save_annotated,
    save_choices,
    save_cuts,
    save_ends,
    save_float,
    save_integer,
    save_placement,
)
from tvmq.build_request import BuildRequest
from tvmq.calibrate.batch_norm_ranges import ranges_from_batch_norm
from tvmq.calibrate.calibrate import Calibration, calibrate
from tvmq.capture.capture import FloatModel, capture
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.data.source import DataSource
from tvmq.float_ends import CompilableEnds, compilable_ends
from tvmq.float_islands import compilable_islands
from tvmq.lowering import lower
from tvmq.plan.annotate import annotate
from tvmq.plan.equalize import equalize_as
from tvmq.plan.mix_channels import mix_as
from tvmq.plan.plan import Plan
from tvmq.plan.plan_file import PlannedChanges, planned_changes, read_plan, write_plan
from tvmq.plan.plan_network import plan_network
from tvmq.plan.range_check import check_ranges
from tvmq.plan.round_reads import round_reads
from tvmq.plan.scale_tensors import scale_as
from tvmq.profile.border_cost import border_cost
from tvmq.profile.product_budget import within_cycles
from tvmq.profile.product_cost import product_cost
from tvmq.profile.residual_cost import residual_cost
from tvmq.progress import Progress
from tvmq.reconstruct.engine import Reconstruction, reconstruct
from tvmq.reconstruct.learn_device import learn_device
from tvmq.reconstruct.unit_state import checkpoints_of, forget_checkpoints
from tvmq.run.verify import CALIBRATION_IMAGES, golden_inputs, verify
from tvmq.tune.kernel_clock import LocalClock
from tvmq.tune.tune_kernels import check_kernel_records, tune_kernels, tuning_facts
from tvmq.tune.tuning import Tuned, check_records, tune

DEFAULT_SAMPLES = 256
LEARNING_SAMPLES = 1024


@dataclass(frozen=True)
class BuildResult:
    """What was built.

    Attributes:
        artifact: the folder.
        manifest: its manifest.
        placements: where each layer runs, in order.
    """

    artifact: Path
    manifest: Manifest
    placements: tuple[Placement, ...]

    def as_json(self) -> dict[str, Any]:
        """The output of `tvmq build --json`."""
        manifest = self.manifest
        return {
            "artifact": str(self.artifact),
            "target": manifest.target,
            "cpu": None if manifest.cpu is None else manifest.cpu.model_dump(mode="json"),
            "npu_operators": manifest.placement["npu"],
            "cpu_operators": manifest.placement["cpu"],
            "float_operators": manifest.placement.get("float", 0),
            "bit_exact": manifest.bit_exact,
            "calibration": manifest.calibration,
            "reconstruction": manifest.reconstruction,
            "residuals": manifest.residuals,
            "ranges": [entry.model_dump(mode="json") for entry in manifest.ranges],
            "tuning": manifest.tuning,
            "settings": manifest.settings,
            "seconds": manifest.seconds,
        }

    def check_gates(self) -> None:
        """Fail if the devices disagree; the artifact is kept, so that one can find out why.

        Raises:
            GateError: they do.
        """
        if not self.manifest.bit_exact:
            raise GateError(
                f"{self.artifact}: reference, CPU and NPU give different outputs for golden.npz. "
                f"This is a fault of tvmq; don't deploy the artifact."
            )


def build(request: BuildRequest, progress: Progress | None = None) -> BuildResult:
    """Build an artifact; nothing at its destination changes unless all stages succeed.

    Raises:
        TvmqError: a stage can't do it; the message says what, where and what to do.
    """
    spec, target = parse_target(request.target), cpu_target(request.cpu)
    learn_device(request.learn_device)  # an hour later it would be late
    try_linker(foreign_architecture(target))
    if request.tuning is not None:
        if spec is not None:
            check_records(request.tuning, spec)
        elif not runs_here(target):
            raise InputError(
                f"--trials, --tuning-records: this machine times kernels, and can't execute what "
                f"is built for --cpu {request.cpu}. Leave them out, or choose --cpu native."
            )
        else:
            check_kernel_records(request.tuning, LocalClock(target))
    own = target == host_target() or not runs_here(target)  # the machine is executed by our own CPU
    with writing(request.output) as folder, made_meanwhile(spec if own else None):
        manifest, placed = _build_into(folder, spec, target, request, progress or Progress())
        write_manifest(folder, manifest)
    if manifest.reconstruction:  # another build leaves alone what an interrupted one has learned
        forget_checkpoints(checkpoints_of(request.output))
    return BuildResult(request.output, manifest, placed.placements)


def parse_target(text: str) -> NpuSpec | None:
    """The machine of a ``--target``; None for the CPU.

    Raises:
        InputError: no such target; a SpecError where a description is wrong.
    """
    if text == "cpu":
        return None
    if text == "npu":
        return load_spec("e256")
    if text.startswith("npu:"):
        return load_spec(text.removeprefix("npu:"))
    if text.endswith(".toml"):
        return load_spec(text)
    raise InputError(
        f"--target {text}: expected npu, npu:PRESET, npu:FILE.toml or cpu. "
        f"`tvmq targets` lists the presets."
    )


def _build_into(
    folder: Path, spec: NpuSpec | None, target: Target, request: BuildRequest, progress: Progress
) -> tuple[Manifest, PlacedModule]:
    with progress.stage("capture"):
        model = _capture(request, progress)
        require_room_for(model, folder)
        require_room_to_link(model)
        ends, islands = compilable_ends(model), compilable_islands(model)
        data = _open_data(model, request)
    with progress.stage("calibrate"):
        calibration = _calibrate(model, data, request, progress)
    with progress.stage("plan"):
        model, calibration, plan = _plan(model, calibration, request, spec, progress)
    learned: Reconstruction | None = None
    if plan.settings.learned_method and request.plan is None:
        with progress.stage("reconstruct"):
            _refuse_early(model, plan, islands, spec, request)
            learned = _reconstruct(model, calibration, plan, request, progress)
            model, calibration, plan = learned.model, learned.calibration, learned.plan
    save_float(folder, model)
    write_plan(plan, folder / "plan.json")
    with progress.stage("annotate"):
        annotated = annotate(model, plan)
        save_annotated(folder, annotated)
    with progress.stage("integer"):
        integer = lower(model, annotated, islands, dump=folder / "ir" / "passes")
        save_integer(folder, integer)
        save_ends(folder, ends)
        network = read_layers(integer, _sources(model))
    tuned: Tuned | None = None
    if spec is not None and request.tuning is not None:
        with progress.stage("tune"):
            _check_fallback(placements(network, spec), request)
            tuned = tune(programs_of(network, spec), spec, request.tuning, progress)
            save_choices(folder, tuned.choices)
    choices = () if tuned is None else tuned.choices
    cuts, timed = NO_CUTS, {}
    if spec is None and request.tuning is not None:
        with progress.stage("tune"):
            clock = LocalClock(target)
            layers = integer_layers(network.layers)
            kernels = tune_kernels(layers, target, clock, request.tuning, progress)
            cuts, timed = kernels.cuts, {"cpu": tuning_facts(kernels, clock, request.tuning)}
            save_cuts(folder, cuts)
    with progress.stage("place"):
        placed, on_cpu = _placed(integer, network, spec, ends, target, choices, cuts)
        _check_fallback(placed.placements, request)
        save_placement(folder, placed, spec)
    with progress.stage("compile"):
        require_room_to_link(model)
        compile_libraries(folder, placed, on_cpu, spec, target)
    with progress.stage("verify"), contextlib.ExitStack() as stack:
        libraries = folder
        if not runs_here(target):
            progress.note(
                f"note: this machine can't execute what is built for --cpu {request.cpu}, so the "
                "same integers are compiled and compared for this machine."
            )
            libraries = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            own = _placed(integer, network, spec, ends, host_target(), choices)
            compile_libraries(libraries, *own, spec, host_target())
        golden = golden_inputs(model, _first_images(model, calibration, data), request.seed)
        bit_exact = verify(folder, model, golden, libraries)
    facts = {} if learned is None else learned.as_json()
    by_rule = None if any(choices) else placed.programs
    residuals = residual_cost(model, plan, by_rule, spec)
    if learned is not None:
        if cost := product_cost(model, plan, by_rule, spec):
            facts["products"] = cost.as_json()
        if borders := border_cost(model, plan, by_rule, spec):
            facts["borders"] = borders.as_json()
    ranges = check_ranges(model, plan, calibration)
    seconds = progress.seconds
    manifest = make_manifest(
        *(request, model, data, plan, network, placed),
        *(target, bit_exact, seconds, facts),
        *({} if residuals is None else residuals.as_json(), ranges),
        timed if tuned is None else tuned.as_json(),
    )
    return manifest, placed


def _placed(
    integer: IRModule,
    network: IntegerNetwork,
    spec: NpuSpec | None,
    ends: CompilableEnds | None,
    target: Target,
    choices: Sequence[Choices] = (),
    cuts: Mapping[str, Cut] = NO_CUTS,
) -> tuple[PlacedModule, PlacedModule]:
    """The whole network with the NPU, if there is one, and without."""
    placed = place(integer, network, spec, target, choices, cuts)
    on_cpu = placed if spec is None else place(integer, network, None, target)
    if ends is not None:
        placed = replace(placed, mod=ends.around(placed.mod))
        on_cpu = replace(on_cpu, mod=ends.around(on_cpu.mod))
    return placed, on_cpu


def _capture(request: BuildRequest, progress: Progress) -> FloatModel:
    model = capture(
        request.model_file,
        model_factory=request.model_factory,
        trust_pickle=request.trust_pickle,
        input_shapes=request.input_shapes,
        float_islands=request.float_islands,
    )
    planned = planned_changes(request.plan) if request.plan else PlannedChanges(request.settings)
    model = round_reads(model, planned.settings)
    if planned.equalization is not None:
        model = equalize_as(model, planned.equalization)
    if planned.scaling is not None:
        model = scale_as(model, planned.scaling)
    if planned.mixing is not None:
        model = mix_as(model, planned.mixing)
    for note in model.notes:
        progress.note(f"note: {note}")
    return model


def _open_data(model: FloatModel, request: BuildRequest) -> DataSource | None:
    if request.calib_data is None:
        return None
    return open_data(request.calib_data, model.network_inputs, request.preprocessing)


def _calibrate(
    model: FloatModel, data: DataSource | None, request: BuildRequest, progress: Progress
) -> Calibration:
    if request.plan is not None:
        return Calibration({}, f"plan {request.plan}")
    if data is None:
        known = None if request.preprocessing.mean is None else request.preprocessing
        calibration = ranges_from_batch_norm(model, known)
        progress.note(
            f"note: no calibration data, so ranges come from the {calibration.source}. "
            "--calib-data is usually more accurate."
        )
        return calibration
    for note in data.notes:
        progress.note(f"note: {note}")
    samples = _Samples(model, data, request)
    with progress.bar("calibrate") as report:
        calibration = calibrate(model, samples, samples.count, progress=report)
    if data.takes_images is False and request.preprocessing != Preprocessing():
        progress.note(
            f"note: {data.spec} holds floats, which are taken as they are; --mean, --std, --resize "
            "and --crop are kept for the images that `eval` and `run` get."
        )
    return calibration


def _plan(
    model: FloatModel,
    calibration: Calibration,
    request: BuildRequest,
    spec: NpuSpec | None,
    progress: Progress,
) -> tuple[FloatModel, Calibration, Plan]:
    """The plan, and the network and ranges that it is of, which methods may change."""
    settings = request.settings
    if "waps" in settings.method and spec is not None:
        # a group that leaves lanes of the array idle would cost more than its shift
        bits = max(settings.weight_bits, settings.activation_bits)
        stored = min((p for p in spec.array.precisions if p >= bits), default=bits)
        settings = replace(settings, product_unit=spec.array.lanes(stored))
    if request.plan is not None:
        return model, calibration, read_plan(request.plan, model)
    with progress.bar("correct biases") as report:
        known = None if request.preprocessing.mean is None else request.preprocessing
        found = plan_network(model, calibration, settings, known, report)
    plan = found.plan
    if "waps" in settings.method and spec is not None:
        plan = within_cycles(found.model, plan, spec)
        if (unit := plan.settings.product_unit) > settings.product_unit:
            progress.note(
                f"note: products: groups are multiples of {unit} channels, so that factors take at "
                f"most {settings.product_budget:g} % more cycles on {spec.name}"
            )
    changes = {
        "equalization": found.plan.equalization,
        "scaling": found.plan.scaling,
        "mixing": found.plan.mixing,
    }
    for name, change in changes.items():
        if change is not None:
            progress.note(f"note: {name}: {change.reason}")
    return found.model, found.calibration, plan


def _first_images(
    model: FloatModel, calibration: Calibration, data: DataSource | None
) -> list[Any]:
    """A few images as the network reads them, which is not what was calibrated with."""
    if model.ends is None or data is None:
        return list(next(iter(calibration.batches()), ())) if model.ends is None else []
    batch = next(iter(data.batches(CALIBRATION_IMAGES, limit=CALIBRATION_IMAGES)))
    return [torch.tensor(batch.inputs[spec.name]) for spec in model.network_inputs]


def _reconstruct(
    model: FloatModel,
    calibration: Calibration,
    start: Plan,
    request: BuildRequest,
    progress: Progress,
) -> Reconstruction:
    folder = checkpoints_of(request.output)
    try:
        with progress.bar("reconstruct") as report:
            return reconstruct(
                model,
                calibration,
                start,
                seed=request.seed,
                device=request.learn_device,
                checkpoints=folder,
                report=report,
                note=progress.note,
            )
    except KeyboardInterrupt:
        progress.note(f"finished units are kept in {folder}; the same command goes on from there.")
        raise


def _refuse_early(
    model: FloatModel,
    plan: Plan,
    islands: Mapping[str, IRModule],
    spec: NpuSpec | None,
    request: BuildRequest,
) -> None:
    """Raise what the stages behind would, before hours of learning; they do it again afterwards."""
    integer = lower(model, annotate(model, plan), islands)
    _check_fallback(placements(read_layers(integer, _sources(model)), spec), request)


def _sources(model: FloatModel) -> dict[str, str]:
    """Module and line of the user's model, by name of node."""
    return {name: str(origin) for name, origin in model.origins.items()}


class _Samples:
    """Calibration batches that can be read again and again."""

    def __init__(self, model: FloatModel, data: DataSource, request: BuildRequest) -> None:
        self.model, self.data = model, data
        self.batch, self.seed = request.batch, request.seed
        wanted = LEARNING_SAMPLES if request.settings.learned_method else DEFAULT_SAMPLES
        known = wanted if data.count is None else min(wanted, data.count)
        self.asked = request.calib_samples is not None
        self.count = request.calib_samples or known

    def __iter__(self) -> Iterator[Any]:
        if self.data.count is None and not self.asked:
            batches = self.data.batches(self.batch, limit=self.count)
        else:
            batches = self.data.samples(self.count, self.batch, seed=self.seed)
        return (self._quantized(batch.inputs) for batch in batches)

    def _quantized(self, inputs: dict[str, Any]) -> Any:
        """What the quantized part of the network reads."""
        if self.model.ends is None:
            return inputs
        given = [torch.tensor(inputs[spec.name]) for spec in self.model.network_inputs]
        return self.model.quantized_inputs(given)


def _check_fallback(placed: tuple[Placement, ...], request: BuildRequest) -> None:
    refused = [item for item in placed if item.device == "cpu"]
    if request.target == "cpu" or not refused:
        return
    percent = 100 * len(refused) / len(placed)
    limit = 0.0 if request.strict else request.max_fallback
    if limit is not None and not percent <= limit:  # NaN is below no limit
        reasons = listed(
            (f"{item.name} ({item.source})", item.refusal) for item in refused if item.refusal
        )
        flag = "--strict" if request.strict else f"--max-fallback {limit:g}"
        raise GateError(
            f"{flag}: {len(refused)} of {len(placed)} operators ({percent:.0f} %) would run on "
            f"the CPU: {reasons} Change these layers or relax the flag."
        )
