"""How tvmq loads each kind of file, and an honest file of each kind to start from."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from targets.npu.machine.spec import load_spec
from tvmq.calibrate.batch_norm_ranges import ranges_from_batch_norm
from tvmq.capture.capture import FloatModel, capture, capture_program
from tvmq.capture.load_model import load_model
from tvmq.cli import main
from tvmq.data.labels import Labelling
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.plan.plan import Plan
from tvmq.plan.plan_file import planned_changes, read_plan, write_plan
from tvmq.plan.planner import make_plan
from tvmq.reconstruct.methods import METHODS
from tvmq.reconstruct.unit_state import Candidate, Checkpoints, UnitResult
from tvmq.settings import Settings

FACTORY = f"{__name__}:network"
SHAPES = "x:2x3x8x8"
PLAIN, RICH, OLD = "plain.pt2", "rich.pt2", "old.pt2"
HONEST = (
    ("model", PLAIN), ("model", OLD), ("state dict", "state.pt"), ("state dict", "legacy.pt"),
    ("data", "data.npz"), ("plan", "plan.json"), ("machine", "machine.toml"),
    ("config", "config.toml"),
)  # fmt: skip
"""Ways to load, and the honest files that must load that way."""

SUFFIXES = {
    "model": ".pt2", "state dict": ".pt", "data": ".npz", "images": ".png", "plan": ".json",
    "labels": ".csv", "classes": ".txt", "machine": ".toml", "config": ".toml",
    "checkpoint": ".npz",
}  # fmt: skip


class Plain(nn.Module):
    """A network that is captured and planned."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classes of images."""
        return self.fc(self.net(x).mean((2, 3)))


class Rich(nn.Module):
    """A network whose program has entries of every kind: constants, inner graphs, sizes, trees."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Plain()
        self.constant = torch.tensor([0.5, 1.0, 2.0]).reshape(1, 3, 1, 1)

    def forward(self, x: torch.Tensor, scale: float = 2.0) -> dict[str, object]:
        """Some of each."""
        with torch.no_grad():
            y = torch.relu(x * self.constant)
        n, c, h, w = y.shape
        rows = nn.functional.gelu(y.reshape(n * c, h * w), approximate="tanh")
        pad = torch.zeros(1, 2, device="cpu") + rows.masked_fill(rows < 0, float("inf"))[:1, :2]
        return {"classes": self.net(y), "rows": [rows * scale, (pad,)]}


def network() -> nn.Module:
    """The network of the state dicts."""
    return Plain().eval()


def make_honest(folder: Path) -> None:
    """Write an honest file of each kind."""
    torch.manual_seed(0)
    x, n = torch.randn(2, 3, 8, 8), torch.export.Dim("n", max=64)
    plain = torch.export.export(network(), (x,), dynamic_shapes=({0: n},))
    torch.export.save(plain, folder / PLAIN)
    rich = torch.export.export(Rich().eval(), (x,), dynamic_shapes=({0: n},))
    torch.export.save(rich, folder / RICH)
    _save_old_form(folder, plain)
    torch.save(network().state_dict(), folder / "state.pt")
    torch.save(network().state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    images = np.zeros((6, 3, 8, 8), np.float32)
    np.savez(folder / "data.npz", x=images, labels=np.arange(6) % 4)
    write_plan(_plan(capture_program(plain)), folder / "plan.json")
    machine = Path(str(load_spec.__code__.co_filename)).parents[1] / "specs" / "e256.toml"
    (folder / "machine.toml").write_text(machine.read_text())
    (folder / "config.toml").write_text('seed = 3\n[build]\ntarget = "npu"\n')
    _save_checkpoint(folder)


def make_loads(room: Path) -> dict[str, Callable[[Path], None]]:
    """The ways to load a file, from honest files in ``room``."""
    torch.set_num_threads(1)
    model = capture(room / PLAIN)
    plan = _plan(model)
    return {
        "model": _load_model,
        "state dict": _load_state_dict,
        "data": lambda path: _read_data(path, model),
        "images": lambda path: _read_images(path, model),
        "labels": lambda path: _read_labels(path, model, table=path),
        "classes": lambda path: _read_labels(path, model, names=path),
        "plan": lambda path: _read_plan(path, model),
        "machine": lambda path: _run(load_spec, str(path)),
        "config": lambda path: _command("build", path, "--config"),
        "checkpoint": lambda path: _read_checkpoint(path, plan),
    }


def _run(function: Callable[..., object], *arguments: object) -> None:
    function(*arguments)


def _load_model(path: Path) -> None:
    program = load_model(path).program
    with suppress(Exception):  # torch may refuse what tvmq never asks for
        program.module()(torch.zeros(2, 3, 8, 8))
    capture(path)


def _load_state_dict(path: Path) -> None:
    capture(path, model_factory=FACTORY, input_shapes=SHAPES)


def _read_data(path: Path, model: FloatModel) -> None:
    source = open_data(str(path), model.inputs, None, Labelling("classes", 4))
    source.fingerprint()
    for batch in source.batches(2, limit=4):
        assert len(batch) <= 2


def _read_images(path: Path, model: FloatModel) -> None:
    folder = path.with_suffix(".images")
    folder.mkdir()
    path.rename(folder / "image.png")
    how = Preprocessing((0.5,) * 3, (0.5,) * 3, resize=8, crop=8)
    for batch in open_data(str(folder), model.inputs, how).batches(2):
        assert len(batch) == 1


def _read_labels(path: Path, model: FloatModel, **where: Path) -> None:
    folder = path.with_suffix(".images")
    (folder / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "a" / "a.png")
    how = Preprocessing((0.5,) * 3, (0.5,) * 3)
    source = open_data(str(folder), model.inputs, how, Labelling("classes", 4, **where))
    (batch,) = source.batches(2)
    assert 0 <= batch.labels[0] < 4


def _read_plan(path: Path, model: FloatModel) -> None:
    planned_changes(path)
    read_plan(path, model)


def _command(verb: str, path: Path, option: str) -> None:
    from targets.errors import InputError

    code = main([verb, option, str(path), "no model", "-o", "nowhere", "--help"])
    if code == 2:
        raise InputError("refused")
    assert code == 0


def _plan(model: FloatModel) -> Plan:
    plan = make_plan(model, ranges_from_batch_norm(model), Settings(scales="pot"))
    weights = {
        name: replace(weight, codes=bytes(model.weight_of(model.nodes[name]).numel()))
        if model.nodes[name].target is not torch.ops.aten.avg_pool2d.default
        else weight
        for name, weight in plan.weights.items()
    }
    return replace(plan, weights=weights)


def _checkpoints(folder: Path, plan: Plan) -> Checkpoints:
    return Checkpoints(folder, plan, METHODS["rapq"], 0, "of these")


def _save_checkpoint(folder: Path) -> None:
    result = UnitResult(
        "u", ("conv2d",), (Candidate("nearest", 2.0, True),), "nearest", "|error|^2", 5, 0.1
    )
    state = {"conv2d_weight": {"steps": torch.ones(1), "codes": torch.zeros(8, dtype=torch.int8)}}
    plan = _plan(capture(folder / PLAIN))
    _checkpoints(folder / "units", plan).save(0, state, result)


def _read_checkpoint(path: Path, plan: Plan) -> None:
    folder = path.with_name(f"{path.stem}.units")
    folder.mkdir(exist_ok=True)
    path.rename(folder / "unit_0.npz")
    files = _checkpoints(folder, plan)
    files.found()
    files.load(0)


def _save_old_form(folder: Path, program: torch.export.ExportedProgram) -> None:
    """The archive of torch 2.6 and 2.7."""
    with zipfile.ZipFile(folder / PLAIN) as new, zipfile.ZipFile(folder / OLD, "w") as old:
        root = new.namelist()[0].split("/")[0]
        text = new.read(f"{root}/models/model.json")
        version = json.loads(text)["schema_version"]
        old.writestr("serialized_exported_program.json", text)
        for name, content in (
            ("state_dict", dict(program.state_dict)),
            ("constants", dict(program.constants)),
            ("example_inputs", ((torch.zeros(2, 3, 8, 8),), {})),
        ):
            torch.save(content, folder / "part.pt")
            old.writestr(f"serialized_{name}.pt", (folder / "part.pt").read_bytes())
        old.writestr("version", f"{version['major']}.{version['minor']}")
