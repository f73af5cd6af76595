"""The artifact: a folder that every verb accepts, and its manifest.

    manifest.json      what was built from what, how, with which result; sha256 of every other file
    plan.json          the quantization plan: every step and its reason
    npu.toml           the machine it was built for, resolved (only for an NPU target)
    model.so           NPU programs, CPU fallback and float ends; needs `tvm` and `numpy` alone
    cpu.so             the same integers without the NPU
    program_<i>.bin    the encoded NPU programs that model.so executes
    integer.json       the integer Relax module, which the reference interpreter reads
    float.pt2          the captured float network
    head.json          the float ends as Relax modules, head and tail; only where there are some
    layers.json        layers of the integer network and where each runs, with the reason
    choices.json       what a tuning chose for each NPU program; only of a tuned artifact
    cuts.json          what a tuning chose for kernels of the CPU, by tensor; likewise
    golden.npz         inputs and the outputs that every device gives for them, bit for bit; where
                       the integers end, too, if that is elsewhere
    ir/                text of the stages, to read

An artifact is built in a hidden folder beside its destination and exchanged with what stands there
at the end: what stands at the destination is always whole, and who reads it reads one artifact to
the end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from targets.errors import InputError
from targets.npu.machine.program import Program
from targets.reading import reading, what_is
from targets.schema_errors import in_words
from targets.whole_files import Held, whole_folder

FORMAT = 2
"""Version of the folder's layout and of the manifest's fields, ``reconstruction`` included.

Raised by any change that the tvmq before it, or after it, would misread.
"""

MANIFEST = "manifest.json"

OURS = re.compile(
    r"(manifest|plan|integer|layers|head|tail|choices|cuts)\.json|npu\.toml|(model|cpu)\.so"
    r"|program_\d+\.bin"
    r"|float\.pt2|golden\.npz|ir/(passes/)?[^/]+\.py"
)
"""What an artifact's files are called, for one whose manifest can't be read."""


_BUILD_AGAIN = "Build it again."


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


def _below(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != name or "\0" in name:
        raise ValueError(f"{name!r} is no file of the folder")
    return name


FileName = Annotated[str, AfterValidator(_below)]
"""A path below the artifact."""


class TensorInfo(_Entry):
    """An input or output of the network; ``shape[0]`` is "N", any batch."""

    name: str
    shape: Annotated[tuple[Literal["N"] | Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    dtype: str

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape without the batch."""
        return tuple(int(size) for size in self.shape[1:])


class _SettingsRead(_Entry):
    """What is read of the settings in a manifest, which holds more."""

    precision: str
    method: tuple[str, ...] | list[str]
    scales: str
    granularity: str
    first_last_bits: int


class _CalibrationRead(_Entry):
    source: str


class _ModelRead(_Entry):
    file: str
    kind: str


class _PlacementRead(_Entry):
    npu: int
    cpu: int


def _holds(wanted: type[_Entry]) -> AfterValidator:
    """Check entries of a mapping, which stays one."""

    def check(value: Any) -> Any:
        wanted.model_validate(value)
        return value

    return AfterValidator(check)


class LayerEntry(_Entry):
    """A layer in layers.json; ``relay_passes/place.py`` says what its fields mean."""

    name: str
    source: str
    kind: str
    device: Literal["npu", "cpu", "float"]
    reason: str
    macs: int
    program: int | None


class RangeEntry(_Entry):
    """Something too narrow for its step; ``tvmq/plan/range_check.py`` says what its fields mean."""

    kind: Literal["features", "channels", "joined", "weights"]
    name: str
    source: str
    channels: tuple[int, ...]
    count: int
    steps: tuple[float, float]
    layer: str
    lost: float
    remedy: str


class FloatEntry(_Entry):
    """An operator in float; ``tvmq/float_model.py`` says what its fields mean."""

    name: str
    kind: str
    source: str
    reason: str
    macs: int = 0


class FloatEndsEntry(_Entry):
    """What runs in float before the integers and behind them, in order."""

    head: tuple[FloatEntry, ...]
    tail: tuple[FloatEntry, ...]

    @property
    def operators(self) -> tuple[FloatEntry, ...]:
        """Of both."""
        return self.head + self.tail


class FloatIslandEntry(_Entry):
    """What runs in float between integers.

    Attributes:
        name: of the island, and of the library's function that computes it.
        operators: in order.
        reads: bytes of each tensor of codes, or of sums, that it is given, of one image, by name.
        makes: bytes of each tensor of codes that is made of its results.
    """

    name: str
    operators: tuple[FloatEntry, ...]
    reads: dict[str, int]
    makes: dict[str, int]

    @property
    def bytes(self) -> int:
        """That cross between integers and floats for one image."""
        return sum(self.reads.values()) + sum(self.makes.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(operator.macs for operator in self.operators)


class CpuEntry(_Entry):
    """The processor that model.so and cpu.so are for.

    Attributes:
        target: as asked for: "native", or an instruction set of `tvmq targets`.
        instructions: the instruction set that kernels are made of.
        processor: LLVM's name of what the rest was compiled for.
        architecture: "x86_64", "aarch64".
        needs: features that a processor must have, by LLVM's names.
        executed: whether the build executed the libraries themselves. Where it can't, it compiled
            and compared the same integers for its own processor.
    """

    target: str
    instructions: str
    processor: str
    architecture: str
    needs: tuple[str, ...]
    executed: bool


class Manifest(_Entry):
    """The contents of manifest.json.

    Attributes:
        format: ``FORMAT`` of the tvmq that built it.
        versions: of tvmq, tvm, torch, numpy and Python.
        model: file, kind and fingerprint of the model.
        target: as asked for, such as "npu:e256".
        cpu: the processor that the libraries are for; None in an artifact that doesn't say.
        settings: everything that was asked for, the seed included; weights are always symmetric.
        calibration: "source" (a path, or "data-free"), "fingerprint", "samples".
        preprocessing: what turns images into the input, repeated by `run` and `eval`; or None.
        placement: operators on each device; "float" are those on the host that aren't quantized.
        float_ends: these at the network's ends, where there are any.
        float_islands: those in its middle, in the order of the network.
        bit_exact: whether reference, CPU and NPU gave identical outputs for golden.npz.
        reconstruction: what a method that learns did: the "units" with the held-out losses of their
            "candidates" and which was "kept", what refinements of the whole "network" moved, and
            "power_of_two_cost" by layer; {} without one.
        residuals: what residuals of more bits cost, with the fields of
            ``tvmq/profile/residual_cost.py``; {} where they have as many as all activations.
        ranges: what is too narrow for the step that it has, in the order of the network.
        tuning: "trials" and how many of them "failed", the "seed", "cycles" of each program
            "before" (by rule) and "after", and the "best" after how many trials; under "cpu" what
            was found for the CPU's kernels, in nanoseconds; {} without one.
        seconds: of each stage.
        files: sha256 of every other file.
        sha256: of all fields above.
    """

    format: int
    versions: dict[str, str]
    model: Annotated[dict[str, str], _holds(_ModelRead)]
    target: str
    cpu: CpuEntry | None = None
    settings: Annotated[dict[str, Any], _holds(_SettingsRead)]
    calibration: Annotated[dict[str, Any], _holds(_CalibrationRead)]
    preprocessing: dict[str, Any] | None
    inputs: Annotated[tuple[TensorInfo, ...], Field(min_length=1)]
    outputs: Annotated[tuple[TensorInfo, ...], Field(min_length=1)]
    placement: Annotated[dict[str, int], _holds(_PlacementRead)]
    float_ends: FloatEndsEntry | None = None
    float_islands: tuple[FloatIslandEntry, ...] = ()
    bit_exact: bool
    reconstruction: dict[str, Any] = {}
    residuals: dict[str, Any] = {}
    ranges: tuple[RangeEntry, ...] = ()
    tuning: dict[str, Any] = {}
    seconds: dict[str, float]
    files: dict[FileName, str] = {}
    sha256: str = ""


@dataclass(frozen=True)
class Artifact:
    """A folder that was checked: known format, nothing missing, nothing changed.

    Attributes:
        folder: as it was given.
        manifest: of it.
        held: keeps the files that were checked, even if a build replaces the artifact.
    """

    folder: Path
    manifest: Manifest
    held: Held

    @classmethod
    def load(cls, folder: str | Path) -> Artifact:
        """Read and check an artifact.

        Raises:
            InputError: not an artifact, another format, or a file missing or changed.
        """
        folder = Path(folder)
        with reading(folder, "an artifact", _BUILD_AGAIN):
            held = _held(folder)
        if not is_artifact(held.path):
            raise _no_artifact(folder, f"it has no {MANIFEST}")
        manifest = _read_manifest(held.path / MANIFEST, folder / MANIFEST)
        for name, digest in manifest.files.items():
            with reading(folder / name, "a file of an artifact", _BUILD_AGAIN):
                if what_is(held.path / name) != "file":
                    raise InputError(f"{folder / name}: missing from the artifact. {_BUILD_AGAIN}")
                found = _sha256(held.path / name)
            if found != digest:
                raise _changed(folder / name)
        return cls(folder, manifest, held)

    def path(self, name: str) -> Path:
        """Where one of its files lies.

        Raises:
            InputError: this artifact has no such file.
        """
        if name not in self.manifest.files:
            raise InputError(f"{self.folder}: has no {name}. Build it again for a target that has.")
        return self.held.file(name)

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """The path of one of its files, to be read in the block.

        Raises:
            InputError: this artifact has no such file, or the block can't read what is in it.
        """
        path = self.path(name)
        with reading(self.folder / name, "what tvmq writes", _BUILD_AGAIN):
            yield path

    @contextmanager
    def library(self, name: str) -> Iterator[Path]:
        """The path of one of its libraries, to be loaded in the block.

        Raises:
            InputError: this artifact has no such file, it is for another processor than this one,
                or the block can't read what is in it.
        """
        self.require_processor()
        with self.reading(name) as path:
            yield path

    def require_processor(self) -> None:
        """Check that this machine executes its libraries.

        Raises:
            InputError: they are for another processor.
        """
        if (cpu := self.manifest.cpu) is not None:
            _require_processor(self.folder, cpu)

    def has(self, name: str) -> bool:
        """Whether it has a file of that name."""
        return name in self.manifest.files

    def programs(self) -> dict[str, Program]:
        """The NPU programs by file name, in the order in which model.so executes them."""
        names = [name for name in self.manifest.files if re.fullmatch(r"program_\d+\.bin", name)]
        names.sort(key=lambda name: int(name[8:-4]))
        programs = {}
        for name in names:
            with self.reading(name) as path:
                programs[name] = Program.from_bytes(path.read_bytes(), name)
        return programs

    def stages(self) -> list[str]:
        """Names of the stages whose text it keeps, in the order of the flow."""
        texts = [Path(name) for name in self.manifest.files if name.startswith("ir/")]
        passes = sorted(path.stem for path in texts if path.parent.name == "passes")
        own = {path.stem for path in texts if path.parent.name == "ir"}
        return [
            *(name for name in ("float", "head", "tail", "annotated") if name in own),
            *(name.split("-", 1)[1] for name in passes),
            *(name for name in ("integer", "placed") if name in own),
        ]

    def stage_text(self, stage: str) -> str:
        """The text of a stage, by a name of ``stages``, in any case.

        Raises:
            InputError: no such stage.
        """
        for name in self.manifest.files:
            if (
                name.startswith("ir/")
                and Path(name).stem.split("-", 1)[-1].lower() == stage.lower()
            ):
                with self.reading(name) as path:
                    return path.read_text()
        raise InputError(
            f"{self.folder}: has no stage {stage!r}. Choose one of {', '.join(self.stages())}."
        )

    def read_json(self, name: str) -> Any:
        """Parse one of its JSON files."""
        with self.reading(name) as path:
            return json.loads(path.read_bytes())

    def layers(self) -> list[dict[str, Any]]:
        """The layers of the integer network, in order; fields as ``LayerEntry`` names them."""
        with self.reading("layers.json") as path:
            entries = _LAYERS.validate_json(path.read_bytes())
        return [entry.model_dump() for entry in entries]


def _require_processor(folder: Path, cpu: CpuEntry) -> None:
    """Refuse what this processor can't execute; it would end the process.

    Raises:
        InputError: it can't.
    """
    from targets.cpu.host import host_architecture, host_sets, lacking

    here = host_architecture()
    if cpu.architecture != here:
        why = f"this machine is {here}"
    elif missing := lacking(cpu.needs):
        why = f"this processor has no {', '.join(missing)}"
    else:
        return
    sets = ", ".join(each.name for each in host_sets())
    raise InputError(
        f"{folder}: was built for another processor ({cpu.architecture} {cpu.processor}, --cpu "
        f"{cpu.target}); {why}. Run it there, or build it again here with --cpu native, or for "
        f"any machine like this with --cpu NAME ({sets})."
    )


_LAYERS = TypeAdapter(list[LayerEntry])


def is_artifact(folder: Path) -> bool:
    """Whether a folder is one of ours, possibly damaged."""
    return (folder / MANIFEST).is_file()


def check_destination(destination: Path) -> None:
    """Refuse to replace anything that is not an artifact.

    Raises:
        InputError: a file, or a folder with other things in it, stands there.
    """
    if not destination.exists():
        return
    if not destination.is_dir():
        raise InputError(f"{destination}: is a file. Give another folder with -o.")
    if others := _others(destination):
        what = "holds other things, too" if is_artifact(destination) else "not an artifact"
        raise InputError(
            f"{destination}: is not empty and {what} ({others[0]}), so it is left alone. "
            f"Give another folder with -o."
        )


def writing(destination: Path) -> AbstractContextManager[Path]:
    """A folder that becomes ``destination`` when the block ends without an error.

    Raises:
        InputError: the destination must not be replaced or can't be written.
    """
    return whole_folder(destination.absolute(), check_destination)


def _others(folder: Path) -> list[str]:
    """Files and empty folders that no build wrote: not in the manifest, and not called like it."""
    try:
        listed = set(json.loads((folder / MANIFEST).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        listed = set()
    names = (
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    )
    return [name for name in names if name not in listed and not OURS.fullmatch(name)]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json with its own digest and that of every file that is in the folder now."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}
    fields = manifest.model_dump(mode="json") | {"files": files}
    complete = fields | {"sha256": _sha256_of_fields(fields)}
    (folder / MANIFEST).write_text(_text_of(complete))


def _held(folder: Path) -> Held:
    try:
        return Held(folder)
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no such artifact. Build one with `tvmq build MODEL -o DIR`."
        ) from None
    except NotADirectoryError:
        raise _no_artifact(folder, "it is a file") from None


def _no_artifact(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder}: not an artifact ({why}). Give the folder that `tvmq build` wrote."
    )


def _read_manifest(file: Path, path: Path) -> Manifest:
    """Read a manifest from ``file``, which the user knows as ``path``."""
    with reading(path, "a manifest of tvmq", _BUILD_AGAIN):
        text = file.read_bytes().decode("utf-8")
        data = json.loads(text)
        found = data["format"]
    if found != FORMAT:
        raise InputError(
            f"{path}: has format {found!r}, this tvmq reads format {FORMAT}. "
            f"Build it again, or use the tvmq that built it."
        )
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"{path}: {in_words(error.errors()[0])}. {_BUILD_AGAIN}") from error
    # The digest is of what the text says: that the text is the one that says it, byte for byte, is
    # another question.
    if manifest.sha256 != _sha256_of_fields(data) or text != _text_of(data):
        raise _changed(path)
    return manifest


def _changed(path: Path) -> InputError:
    return InputError(f"{path}: changed since it was built (sha256 differs). {_BUILD_AGAIN}")


def _text_of(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=2) + "\n"


def _sha256_of_fields(fields: Mapping[str, Any]) -> str:
    """Of the fields of a manifest, its own digest left out."""
    others = {name: value for name, value in fields.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
