"""Residuals are rounded in front of the convolutions that read them, and nowhere else."""

from dataclasses import replace

import pytest
import torch
from models import export
from quantization_cases import calibration, float_model, images
from torch import nn
from torch.nn import functional

from targets.errors import InputError
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.plan.plan_file import plan_from_json, plan_to_json, planned_changes, write_plan
from tvmq.plan.planner import make_plan
from tvmq.plan.round_reads import round_reads, whole_reads
from tvmq.plan.value_bits import residuals
from tvmq.regions import find_regions, is_rounding
from tvmq.settings import Settings

SETTINGS = Settings(2, 2, "pot", "channel", residual_bits=8)
WHOLE = replace(SETTINGS, residual_reads="whole")


def _roundings(model) -> dict[str, list[str]]:
    """What is rounded, and who reads it."""
    return {
        node.args[0].name: [user.name for user in node.users]
        for node in model.graph_module.graph.nodes
        if is_rounding(node)
    }


@pytest.mark.parametrize(
    ("name", "roundings"),
    [
        # the strided slice of the second block's shortcut is added with all its bits
        ("resnet_small", {"relu": ["conv2d_1"], "relu_2": ["conv2d_3"]}),
        # a shortcut's 1 x 1 convolution, conv2d_5, reads all bits
        ("resnet_projection", {"relu": ["conv2d_1"], "relu_2": ["conv2d_3"]}),
        # a batch norm in front of a block is depthwise; the first block reads its ReLU
        ("preact", {"relu": ["conv2d_1"]}),
        # norms read residuals, linear layers read norms
        ("vit_small", {}),
    ],
)
def test_convolutions_inside_of_blocks_read_a_rounded_copy(name, roundings):
    model = float_model(name)
    rounded = round_reads(model, SETTINGS)
    assert _roundings(rounded) == roundings
    x = images(name)[:3]
    for got, want in zip(rounded.graph_module(x), model.graph_module(x), strict=True):
        assert torch.equal(got, want)
    assert _roundings(round_reads(rounded, SETTINGS)) == roundings  # once is enough
    assert not roundings or rounded.fingerprint != model.fingerprint
    assert whole_reads(rounded).fingerprint == model.fingerprint


class _Depthwise(nn.Module):
    """A block that begins with a depthwise convolution, and one that begins with a dense one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.depthwise, self.point = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 8, 1)
        self.dense, self.head = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.point(self.depthwise(x).relu())
        return self.head(x + self.dense(x).relu())


def test_depthwise_convolutions_read_all_bits_since_they_would_be_no_faster():
    model = capture_program(export((_Depthwise().eval(), torch.randn(2, 3, 8, 8))))
    assert _roundings(round_reads(model, SETTINGS)) == {"add": ["conv2d_3"]}


class _OwnPooling(nn.Module):
    """A shortcut with an average of single elements, as some networks have in their first stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dense = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 1, 1)
        self.shortcut, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        x = functional.avg_pool2d(x, 1) + self.dense(x).relu()
        return self.head(self.shortcut(functional.avg_pool2d(x, 1)) + self.dense(x).relu())


def test_averages_of_the_network_itself_are_no_copies():
    model = capture_program(export((_OwnPooling().eval(), torch.randn(2, 3, 8, 8))))
    rounded = round_reads(model, SETTINGS)
    assert _roundings(rounded) == {"add": ["conv2d_3"]}
    assert whole_reads(rounded).fingerprint == model.fingerprint
    assert {"avg_pool2d", "avg_pool2d_1"} <= residuals(rounded, find_regions(rounded))


class _AddedInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.last(x + self.first(x))


def test_the_first_layer_keeps_its_bits():
    model = capture_program(export((_AddedInput().eval(), torch.randn(2, 3, 8, 8))))
    assert _roundings(round_reads(model, replace(SETTINGS, first_last_bits=4))) == {}


def test_a_copy_has_the_bits_of_activations_and_a_step_of_its_own():
    rounded = round_reads(float_model("resnet_small"), SETTINGS)
    values = make_plan(rounded, calibrate(rounded, [images("resnet_small")]), SETTINGS).values
    assert (values["relu"].bits, values["relu_rounded"].bits) == (8, 2)
    assert values["relu"].step < values["relu_rounded"].step


def test_all_bits_are_read_where_that_is_asked_for():
    model = float_model("resnet_small")
    assert round_reads(model, WHOLE) is model
    assert make_plan(model, calibration("resnet_small"), WHOLE).values["relu"].bits == 8
    assert round_reads(model, Settings(2, 2)) is model


@pytest.mark.parametrize("settings", [SETTINGS, WHOLE])
def test_a_network_without_residuals_is_refused(settings):
    with pytest.raises(InputError, match="residual_bits is 8, and this network has no residual"):
        round_reads(float_model("vgg_small"), settings)


def test_a_plan_says_which_network_it_is_of(tmp_path):
    """The network that its settings make of the captured one."""
    model = round_reads(float_model("resnet_small"), SETTINGS)
    plan = make_plan(model, calibrate(model, [images("resnet_small")]), SETTINGS)
    write_plan(plan, tmp_path / "plan.json")
    settings = planned_changes(tmp_path / "plan.json").settings
    again = round_reads(float_model("resnet_small"), settings)
    assert plan_to_json(plan_from_json(plan_to_json(plan), again)) == plan_to_json(plan)
