"""What has been decided about one unit, and files of it: where an interrupted job goes on."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from pydantic import TypeAdapter

from targets.errors import InputError
from targets.whole_files import whole_file
from tvmq import __version__
from tvmq.plan.plan import Plan
from tvmq.plan.plan_file import plan_to_json
from tvmq.reconstruct.methods import Method
from tvmq.reconstruct.network_work import NetworkPass
from tvmq.reconstruct.unit_graph import QuantizedUnit

TRAINING = "training"
"""The only array of a file that says where training was."""

NEAREST = "nearest"
"""The candidate that all refinements are compared with: rounding to nearest, biases corrected."""

FORM = 4
"""Of the files; those of another form are of another job."""


@dataclass(frozen=True)
class Candidate:
    """A state of a unit that was measured.

    Attributes:
        name: of the refinement that proposed it, or NEAREST.
        loss: on held-out images.
        accepted: it was better than all before it.
    """

    name: str
    loss: float
    accepted: bool


@dataclass(frozen=True)
class UnitResult:
    """What reconstruction did for a unit.

    Attributes:
        unit: its name.
        layers: its layers with weights.
        candidates: NEAREST, then what the refinements proposed, in order.
        kept: name of the last one that was accepted; it has the smallest loss.
        loss: by which candidates were compared, in words.
        iterations: of the optimizer.
        seconds: for all of it.
    """

    unit: str
    layers: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    kept: str
    loss: str
    iterations: int
    seconds: float

    @property
    def accepted(self) -> bool:
        """Whether anything but rounding to nearest is used."""
        return any(candidate.accepted for candidate in self.candidates[1:])

    @property
    def held_out_loss(self) -> float:
        """Of what is used."""
        return [candidate.loss for candidate in self.candidates if candidate.accepted][-1]


UnitState: TypeAlias = Mapping[str, Mapping[str, torch.Tensor]]
"""What the modules of a unit hold, by their names (``QuantizedUnit.modules``)."""


def state_of(unit: QuantizedUnit) -> UnitState:
    """A copy of what a unit holds now."""
    return {name: module.held() for name, module in unit.modules.items()}


def apply_state(unit: QuantizedUnit, state: UnitState) -> None:
    """Make a unit hold what was decided."""
    for name, module in unit.modules.items():
        module.hold(state[name])


def checkpoints_of(output: Path) -> Path:
    """The folder beside an artifact-to-be that holds finished units until it is built."""
    return output.absolute().with_name(f"{output.name}.units")


def forget_checkpoints(folder: Path) -> None:
    """Remove a folder of finished units; one that holds anything else is not ours and stays."""
    if folder.is_dir() and not _others(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _others(folder: Path) -> list[str]:
    """Names in a folder that Checkpoints did not write."""
    ours = re.compile(r"(unit|network|training)_\d+\.npz|\.(unit|network|training)_\d+\.npz\..{8}")
    return sorted(path.name for path in folder.iterdir() if not ours.fullmatch(path.name))


@dataclass(frozen=True)
class _Facts:
    """What a file says beside its arrays."""

    job: str
    result: UnitResult | NetworkPass | None
    digest: str


_FACTS = TypeAdapter(_Facts)


def _digest(arrays: Mapping[str, Any]) -> str:
    """Of arrays, their names and forms: what was changed or misread by others is not used."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _arrays(states: Mapping[str, UnitState]) -> dict[str, Any]:
    """By ``OF/MODULE/NAME``, as in the files."""
    return {
        f"{of}/{module}/{name}": tensor.numpy()
        for of, state in states.items()
        for module, held in state.items()
        for name, tensor in held.items()
    }


def _states(arrays: Mapping[str, Any]) -> list[UnitState]:
    """What was saved, of each unit in turn."""
    states: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    for path, array in arrays.items():
        of, module, name = path.split("/")
        states.setdefault(of, {}).setdefault(module, {})[name] = torch.from_numpy(array)
    return [*states.values()]


class Checkpoints:
    """A folder with a file per unit, pass over the network, and training of all of it.

    Each says of which job it is.

    What another job (network, settings, images, seed, version of tvmq) left is as good as nothing.
    """

    def __init__(self, folder: Path, start: Plan, method: Method, seed: int, images: str) -> None:
        """Use a folder, which is made if there is none.

        Args:
            folder: for nothing else.
            start: the plan that is learned from.
            method: how.
            seed: of the job.
            images: a digest of them: two sets can lead to the same plan.

        Raises:
            InputError: the folder holds something else, or is a file.
        """
        self.folder = folder
        job = f"{FORM} {__version__} {seed} {images}\n{method}\n{plan_to_json(start)}"
        self.job = hashlib.sha256(job.encode()).hexdigest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            others = ["it is a file"]
        else:
            others = _others(folder)
        if others:
            raise InputError(
                f"{folder}: finished units would be kept here, but there is something else "
                f"({others[0]}). Move it away, or choose another --output."
            )

    def found(self) -> str:
        """What an earlier job left, in words; "" where it left nothing."""
        left = [self._read(path) for path in self.folder.glob("unit_*.npz")]
        own = sum(job is not None for job in left)
        if own:
            units = f"{own} finished unit{'s' if own > 1 else ''}"
            return f"{units} in {self.folder}; going on from there."
        if left:
            return (
                f"{self.folder} holds units of another network, settings, images, seed or version "
                "of tvmq; starting anew."
            )
        return ""

    def load(self, index: int) -> tuple[UnitState, UnitResult] | None:
        """What was decided about a unit; None if this job has not finished it."""
        found = self._read(self._path(index))
        if found is None or not isinstance(found[0].result, UnitResult):
            return None
        (state,) = _states(found[1])
        return state, found[0].result

    def save(self, index: int, state: UnitState, result: UnitResult) -> None:
        """Write a finished unit; a file that is there is whole.

        Its arrays are called ``REFINEMENT/MODULE/NAME``, after the refinement whose state was kept.
        """
        self._write(self._path(index), result, _arrays({result.kept: state}))

    def load_network(self, index: int) -> tuple[list[UnitState], NetworkPass] | None:
        """All units behind a refinement of the network; None if this job has not finished it."""
        found = self._read(self._network_path(index))
        if found is None or not isinstance(found[0].result, NetworkPass):
            return None
        return _states(found[1]), found[0].result

    def save_network(self, index: int, states: Sequence[UnitState], result: NetworkPass) -> None:
        """Write all units behind a refinement of the network; arrays are ``UNIT/MODULE/NAME``."""
        units = {str(unit): state for unit, state in enumerate(states)}
        self._write(self._network_path(index), result, _arrays(units))

    def load_training(self, index: int) -> dict[str, Any] | None:
        """Where training for a refinement of the network was; None if this job has not begun it."""
        found = self._read(self._training_path(index))
        if found is None or found[0].result is not None:
            return None
        state: dict[str, Any] = torch.load(
            io.BytesIO(found[1][TRAINING].tobytes()), map_location="cpu", weights_only=True
        )
        return state

    def save_training(self, index: int, state: Mapping[str, Any]) -> None:
        """Write where training for a refinement of the network is, over where it was."""
        file = io.BytesIO()
        torch.save(dict(state), file)
        written = np.frombuffer(file.getbuffer(), np.uint8)
        self._write(self._training_path(index), None, {TRAINING: written})

    def _write(
        self,
        path: Path,
        result: UnitResult | NetworkPass | None,
        arrays: Mapping[str, Any],
    ) -> None:
        facts = json.dumps(asdict(_Facts(self.job, result, _digest(arrays))))
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with whole_file(path) as file:
                    np.savez(file, facts=np.array(facts), **arrays)
                return
            except InputError as error:
                # another build of the same output has just ended, and removed the folder
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise

    def _read(self, path: Path) -> tuple[_Facts, dict[str, Any]] | None:
        """Facts and arrays of a file; None if it isn't of this job or not whole."""
        try:
            with zipfile.ZipFile(path) as archive:
                # Stored as they are, arrays are no larger than the file.
                if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                    return None
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
            facts = _FACTS.validate_json(str(arrays.pop("facts")))
        except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError, MemoryError):
            return None
        whole = facts.job == self.job and facts.digest == _digest(arrays)
        return (facts, arrays) if whole else None

    def _path(self, index: int) -> Path:
        return self.folder / f"unit_{index}.npz"

    def _network_path(self, index: int) -> Path:
        return self.folder / f"network_{index}.npz"

    def _training_path(self, index: int) -> Path:
        return self.folder / f"training_{index}.npz"
