"""What has been decided about one unit, and files of it: where an interrupted job goes on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from targets.errors import InputError
from tvmq import __version__
from tvmq.plan.plan import Plan
from tvmq.plan.plan_file import plan_to_json
from tvmq.reconstruct.unit_graph import QuantizedUnit


@dataclass(frozen=True)
class UnitResult:
    """What reconstruction did for a unit.

    Attributes:
        unit: its name.
        layers: its layers with weights.
        kept: "nearest", "compensated" or "learned", whichever has the smallest held-out loss.
        nearest_loss: on held-out images, weights rounded to nearest and biases corrected.
        compensated_loss: on the same images, with compensating codes and searched exponents, before
            anything is learned; None for methods that don't search.
        learned_loss: on the same images, as learned.
        power: of the loss.
        iterations: of the optimizer.
        seconds: for all of it.
    """

    unit: str
    layers: tuple[str, ...]
    kept: str
    nearest_loss: float
    compensated_loss: float | None
    learned_loss: float
    power: float
    iterations: int
    seconds: float

    @property
    def accepted(self) -> bool:
        """Whether anything but rounding to nearest is used."""
        return self.kept != "nearest"

    @property
    def held_out_loss(self) -> float:
        """Of what is used."""
        losses = {
            "nearest": self.nearest_loss,
            "compensated": self.compensated_loss,
            "learned": self.learned_loss,
        }
        loss = losses[self.kept]
        assert loss is not None
        return loss


@dataclass(frozen=True)
class UnitState:
    """Codes, steps and corrections of one unit.

    Attributes:
        codes: int8, by layer.
        weight_steps: float64[K or 1], by layer.
        corrections: float32[K], by layer.
        steps: by value.
    """

    codes: Mapping[str, torch.Tensor]
    weight_steps: Mapping[str, torch.Tensor]
    corrections: Mapping[str, torch.Tensor]
    steps: Mapping[str, float]


def state_of(unit: QuantizedUnit) -> UnitState:
    """A copy of what a unit holds now."""
    return UnitState(
        {name: weight.codes.clone() for name, weight in unit.weights.items()},
        {name: weight.exact_steps.clone() for name, weight in unit.weights.items()},
        {name: bias.correction.detach().clone() for name, bias in unit.biases.items()},
        {name: step.exact for name, step in unit.steps.items()},
    )


def apply_state(unit: QuantizedUnit, state: UnitState) -> None:
    """Make a unit hold what was decided."""
    for name, weight in unit.weights.items():
        if not torch.equal(weight.exact_steps, state.weight_steps[name]):
            weight.use_steps(state.weight_steps[name])
        weight.freeze(state.codes[name])
    for name, bias in unit.biases.items():
        bias.correction.data.copy_(state.corrections[name])
    for name, step in unit.steps.items():
        step.fix(state.steps[name])


def checkpoints_of(output: Path) -> Path:
    """The folder beside an artifact-to-be that holds finished units until it is built."""
    return output.absolute().with_name(f"{output.name}.units")


def forget_checkpoints(folder: Path) -> None:
    """Remove a folder of finished units; one that holds anything else is not ours and stays."""
    if folder.is_dir() and not _others(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _others(folder: Path) -> list[str]:
    """Names in a folder that Checkpoints did not write."""
    ours = re.compile(r"unit_\d+\.npz|\d+\.partial\.npz")
    return sorted(path.name for path in folder.iterdir() if not ours.fullmatch(path.name))


class Checkpoints:
    """A folder with a file per finished unit; each says of which job it is.

    What another job (network, settings, images, seed, version of tvmq) left is as good as nothing.
    """

    def __init__(self, folder: Path, start: Plan, seed: int, images: str) -> None:
        """Use a folder, which is made if there is none.

        Args:
            folder: for nothing else.
            start: the plan that is learned from.
            seed: of the job.
            images: a digest of them: two sets can lead to the same plan.

        Raises:
            InputError: the folder holds something else, or is a file.
        """
        self.folder = folder
        job = f"{__version__} {seed} {images}\n{plan_to_json(start)}"
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
        if found is None:
            return None
        facts, arrays = found
        parts: dict[str, dict[str, torch.Tensor]] = {"codes": {}, "weight": {}, "bias": {}}
        for name, array in arrays.items():
            kind, layer = name.split(":", 1)
            parts[kind][layer] = torch.from_numpy(array)
        facts["result"]["layers"] = tuple(facts["result"]["layers"])
        state = UnitState(parts["codes"], parts["weight"], parts["bias"], facts["steps"])
        return state, UnitResult(**facts["result"])

    def save(self, index: int, state: UnitState, result: UnitResult) -> None:
        """Write a finished unit; a file that is there is whole."""
        facts = {"job": self.job, "steps": dict(state.steps), "result": asdict(result)}
        arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts))}
        arrays |= {f"codes:{name}": tensor.numpy() for name, tensor in state.codes.items()}
        arrays |= {f"weight:{name}": tensor.numpy() for name, tensor in state.weight_steps.items()}
        arrays |= {f"bias:{name}": tensor.numpy() for name, tensor in state.corrections.items()}
        # Another build of the same output may work beside this one, or have just ended.
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{os.getpid()}.partial.npz"
        np.savez(partial, **arrays)
        partial.rename(self._path(index))

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Facts and arrays of a file; None if it isn't of this job or not whole."""
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError):
            return None
        facts = json.loads(str(arrays.pop("facts", "{}")))
        return (facts, arrays) if facts.get("job") == self.job else None

    def _path(self, index: int) -> Path:
        return self.folder / f"unit_{index}.npz"
