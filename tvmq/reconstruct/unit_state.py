"""What has been decided about one unit, and files of it: where an interrupted job goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tvmq.plan import Plan
from tvmq.plan_file import plan_to_json
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


class Checkpoints:
    """A folder with a file per finished unit, and of which job they are.

    A folder of another job (network, settings, images, seed) is emptied.
    """

    def __init__(self, folder: Path, start: Plan, seed: int) -> None:
        self.folder = folder
        key = hashlib.sha256(f"{seed}\n{plan_to_json(start)}".encode()).hexdigest()
        marker = folder / "job.json"
        if not marker.is_file() or json.loads(marker.read_text()).get("key") != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            marker.write_text(json.dumps({"key": key, "model": start.fingerprint}) + "\n")

    def load(self, index: int) -> tuple[UnitState, UnitResult] | None:
        """What was decided about a unit; None if it was not finished."""
        try:
            with np.load(self._path(index)) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError):
            return None
        facts = json.loads(str(arrays.pop("facts")))
        parts: dict[str, dict[str, torch.Tensor]] = {"codes": {}, "weight": {}, "bias": {}}
        for name, array in arrays.items():
            kind, layer = name.split(":", 1)
            parts[kind][layer] = torch.from_numpy(array)
        facts["result"]["layers"] = tuple(facts["result"]["layers"])
        state = UnitState(parts["codes"], parts["weight"], parts["bias"], facts["steps"])
        return state, UnitResult(**facts["result"])

    def save(self, index: int, state: UnitState, result: UnitResult) -> None:
        """Write a finished unit; a file that is there is whole."""
        facts = {"steps": dict(state.steps), "result": asdict(result)}
        arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts))}
        arrays |= {f"codes:{name}": tensor.numpy() for name, tensor in state.codes.items()}
        arrays |= {f"weight:{name}": tensor.numpy() for name, tensor in state.weight_steps.items()}
        arrays |= {f"bias:{name}": tensor.numpy() for name, tensor in state.corrections.items()}
        partial = self.folder / "partial.npz"
        np.savez(partial, **arrays)
        partial.rename(self._path(index))

    def _path(self, index: int) -> Path:
        return self.folder / f"unit_{index}.npz"
