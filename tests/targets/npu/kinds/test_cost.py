"""Estimates against the timing model, and that deciding costs no TIR and grows with the layers."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from npu_layers import FLAT, LAYERS, conv, elements, matrices, norm, softmax

from targets.layers import (
    Add,
    Constant,
    Conv2d,
    Layer,
    Lut,
    MaxPool2d,
    Move,
    Operand,
    Pairing,
    Piece,
    Value,
)
from targets.npu.compiler import compile_layers
from targets.npu.constraints import refusal
from targets.npu.kinds.convolution import Convolution
from targets.npu.kinds.table import KINDS, kind_of, plan
from targets.npu.layer_plan import plan_layers
from targets.npu.machine.spec import load_spec
from targets.npu.price.layer_costs import BOUNDS, price
from targets.npu.schedule import loops
from targets.npu.schedule.job import Job
from targets.rounding import HALF_UP

MACHINES = {name: load_spec(name) for name in ("e256", "m2048")}
X, R, Y = (Value(name, (28, 28, 64), "uint8") for name in "xry")
WHOLE = {"start": (0, 0, 0), "step": (1, 1, 1), "size": X.shape}
ORDINARY: dict[str, Layer] = {
    "conv": conv((14, 14, 64), 96),
    "stem": conv((64, 64, 3), 32, strides=(2, 2)),
    "depthwise": conv((28, 28, 96), 96, groups=96),
    "pointwise with a residual": conv((28, 28, 96), 24, (1, 1), padding=FLAT, residual="uint8"),
    "dense": conv((1, 1, 512), 100, (1, 1), padding=FLAT, out="int32"),
    "scores of heads": matrices(64, 64, 256, 4, Pairing.ROWS),
    "sums of values": matrices(65, 65, 192, 4, Pairing.COLUMNS, dtype="uint8"),
    "sums of wide values": matrices(65, 65, 160, 4, Pairing.COLUMNS, dtype="uint8"),
    "scores of windows": matrices(49, 49, 96, 3, Pairing.ROWS, windows=16),
    "gates of channels": elements((28, 28, 64), (1, 1, 64)),
    "equal shapes": elements((28, 28, 64), (28, 28, 64), multiplier=40001),
    "constant": Constant("layer", "", X, np.zeros(X.shape, np.uint8)),
    "add": Add("layer", "", Operand(X, 3, 1, 2), Operand(R, 1, 1, 0), Y, 4, 0, 0, 255, HALF_UP),
    "lut": Lut("layer", "", X, Y, bytes(range(256))),
    "softmax": softmax((1, 64, 256), 4),
    "softmax of long rows": softmax((1, 197, 591), 3, multiplier=40001),
    "norm": norm((1, 64, 192)),
    "pool": MaxPool2d(
        "layer", "", X, Value("y", (14, 14, 64), "uint8"), (3, 3), (2, 2), (1, 1, 0, 0)
    ),
    "concatenation": Move(
        "layer",
        "",
        (Piece.box(X, **WHOLE, at=(0, 0, 0)), Piece.box(R, **WHOLE, at=(0, 0, 64))),
        Value("y", (28, 28, 128), "uint8"),
        fill=0,
    ),
    "padding": Move(
        "layer",
        "",
        (Piece.box(X, **WHOLE, at=(1, 1, 0)),),
        Value("y", (30, 30, 64), "uint8"),
        fill=7,
    ),
}
SMALL = Value("x", (14, 14, 16), "uint8")
SMALL_TABLE = Lut("layer", "", SMALL, SMALL, bytes(range(256)))


def test_every_kind_is_among_the_ordinary_layers() -> None:
    assert {type(layer) for layer in ORDINARY.values()} == set(KINDS)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ORDINARY)
def test_an_estimate_is_near_the_timing_model(name: str, machine: str) -> None:
    layer, spec = ORDINARY[name], MACHINES[machine]
    (planned,) = plan_layers([layer], layer.inputs, [layer.output], spec).layers
    priced = price(compile_layers([layer], layer.inputs, [layer.output], spec), spec)
    assert planned.cost.cycles == pytest.approx(priced.timeline.total, rel=0.15)
    assert planned.cost.bound in BOUNDS


def test_a_tensor_that_stays_in_act_costs_no_transfer() -> None:
    layer, spec = ORDINARY["pool"], MACHINES["e256"]
    far = Job.alone(layer, spec)
    near = replace(far, tensors={n: replace(t, border=(1,) * 4) for n, t in far.tensors.items()})
    assert plan(far).cost.data > 0
    assert plan(near).cost.data == 0
    assert plan(near).cost.cycles < plan(far).cost.cycles


def test_a_reshape_costs_nothing() -> None:
    layer = replace(LAYERS["concat_slice_and_fill"], reshape=True)
    planned = plan(Job.alone(layer, MACHINES["e256"]))
    assert planned.idle
    assert planned.cost.cycles == 0
    assert planned.cost.bound == ""


@pytest.mark.parametrize("name", ORDINARY)
def test_the_choice_is_one_of_the_choices(name: str) -> None:
    job = Job.alone(ORDINARY[name], MACHINES["e256"])
    choices = list(kind_of(job.layer).choices(job))
    assert len(choices) == len(set(choices)) > 1
    assert plan(job).choice in choices


def test_refusal_and_plan_make_no_tir(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> None:
        raise AssertionError("a function is built")

    monkeypatch.setattr(loops, "IRBuilder", build)
    for layer in ORDINARY.values():
        assert refusal(layer, MACHINES["e256"]) is None
        plan(Job.alone(layer, MACHINES["e256"]))


def test_planning_grows_with_the_number_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = []
    choose = Convolution.choose

    def counted(self: Convolution, job: Job[Conv2d]) -> object:
        cuts.append(job.layer.name)
        return choose(self, job)

    monkeypatch.setattr(Convolution, "choose", counted)
    counts = []
    for length in (20, 40, 80):
        cuts.clear()
        layers = chain(length, conv((8, 8, 16), 16))
        residents = plan_layers(layers, [layers[0].input], [layers[-1].output], MACHINES["e256"])
        assert len(residents.residents) == length - 1
        counts.append(len(cuts))
    # Alone, with either end in ACT, and in the cascades that are tried.
    assert np.diff(counts).tolist() == [160, 320]


@pytest.mark.parametrize("layer", [conv((8, 8, 16), 16), SMALL_TABLE], ids=["conv", "lut"])
def test_what_layers_add_is_near_the_total_of_their_program(layer: Conv2d | Lut) -> None:
    """Layers overlap: alone, these would take a fifth longer."""
    layers, spec = chain(12, layer), MACHINES["e256"]
    ends = [layers[0].input], [layers[-1].output]
    planned = plan_layers(layers, *ends, spec)
    total = price(compile_layers(layers, *ends, spec), spec).timeline.total
    assert sum(planned.cycles) == pytest.approx(total, rel=0.15)
    assert sum(each.cost.cycles for each in planned.layers) > 1.2 * total


def chain(length: int, layer: Conv2d | Lut) -> list[Conv2d | Lut]:
    values = [Value(f"v{n}", layer.output.shape, "uint8") for n in range(length + 1)]
    return [replace(layer, input=a, output=b) for a, b in pairwise(values)]
