"""Equalized where held-out images say so, and then all the way into the plan file."""

from dataclasses import replace

import pytest
import torch
from quantization_cases import calibration, float_model, images
from torch import nn

from targets.errors import InputError
from tvmq.calibrate.batch_norm_ranges import ranges_from_batch_norm
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.float_model import Equalization
from tvmq.plan import equalized_plan
from tvmq.plan.annotate import annotate
from tvmq.plan.equalize import equalize_as
from tvmq.plan.equalized_plan import plan_equalized
from tvmq.plan.plan_file import plan_from_json, plan_to_json, planned_changes, write_plan
from tvmq.plan.planner import make_plan
from tvmq.settings import Settings

NAME = "mobilenet_rescaled"
SETTINGS = Settings(weight_bits=4, method=("equalize",))


def _noise(exact, planned, x):
    """Squared error of the first output, relative to its squares."""
    with torch.no_grad():
        wanted = exact.graph_module(x)[0]
        output = annotate(planned.model, planned.plan, torch.float32)(x)[0]
    return float((output - wanted).square().sum() / wanted.square().sum())


def test_kept_where_it_helps():
    model, seen = float_model(NAME), calibration(NAME)
    planned = plan_equalized(model, seen, SETTINGS)
    assert planned.plan.equalization.reason.startswith("kept: squared error ")
    assert "on 16 held-out images; channels of " in planned.plan.equalization.reason
    assert planned.plan.equalization == planned.model.equalization
    assert planned.plan.fingerprint == planned.model.fingerprint != model.fingerprint
    assert planned.calibration.source == seen.source
    left = replace(planned, model=model, plan=make_plan(model, seen, SETTINGS))
    x = images(NAME)
    assert _noise(model, planned, x) < 0.5 * _noise(model, left, x)


def test_left_out_where_it_does_not(monkeypatch):
    """With a rule that does harm, the network stays what it was."""
    model, seen = float_model("resnet_small"), calibration("resnet_small")
    wrong = Equalization({"conv2d_1": tuple(12 * (i % 2) for i in range(16))}, "half too small")
    monkeypatch.setattr(
        equalized_plan, "equalize", lambda given, *_, per_channel: equalize_as(given, wrong)
    )
    settings = Settings(method=("equalize",))
    planned = plan_equalized(model, seen, settings)
    assert planned.plan.equalization.reason.startswith("left out: squared error ")
    assert planned.plan.equalization.reason.endswith("; half too small")
    assert planned.plan.equalization.exponents == {}
    assert planned.model.fingerprint == model.fingerprint
    assert replace(planned.plan, equalization=None) == make_plan(model, seen, settings)


class _DeadChannels(nn.Module):
    """Channels of next to no weights whose bias is as large as the others get."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.c = nn.Conv2d(6, 6, 3, padding=1)
        with torch.no_grad():
            for i, size in enumerate((0.0, 1e-30, 1e-8)):
                self.a.weight[i] *= size
                self.a.bias[i] = 1.2

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


@pytest.mark.parametrize("precision", [(8, 8), (4, 8)])
def test_dead_channels_do_no_harm(precision):
    torch.manual_seed(0)
    batch = {0: torch.export.Dim("batch")}
    x = torch.randn(64, 3, 8, 8)
    program = torch.export.export(_DeadChannels().eval(), (x,), dynamic_shapes=(batch,))
    model = capture_program(program)
    seen = calibrate(model, [x])
    settings = Settings(*precision, method=("equalize",))
    planned = plan_equalized(model, seen, settings)
    nearest = replace(planned, model=model, plan=make_plan(model, seen, settings))
    assert _noise(model, planned, x) <= 1.001 * _noise(model, nearest, x)


def test_without_images_the_rule_stands_for_itself():
    model = float_model(NAME)
    planned = plan_equalized(model, ranges_from_batch_norm(model), SETTINGS)
    reason = planned.plan.equalization.reason
    assert reason.startswith("not compared, since no images are there: channels of ")
    assert planned.plan.equalization.exponents
    left = replace(
        planned, model=model, plan=make_plan(model, ranges_from_batch_norm(model), SETTINGS)
    )
    x = images(NAME)
    assert _noise(model, planned, x) < _noise(model, left, x)


def test_one_image_is_too_few_to_compare():
    model = float_model(NAME)
    planned = plan_equalized(model, calibrate(model, [images(NAME)[:1]]), SETTINGS)
    assert planned.plan.equalization.reason.startswith("not compared, since one image is there")


def test_nothing_to_do():
    model, seen = float_model("resnet_small"), calibration("resnet_small")
    planned = plan_equalized(model, seen, Settings(method=("equalize",)))
    assert planned.plan.equalization.exponents == {}
    assert planned.plan.equalization.reason == "no channels of 2 layers to change"
    assert planned.model.fingerprint == model.fingerprint


def test_a_plan_file_says_how_the_network_was_changed(tmp_path):
    model = float_model(NAME)
    planned = plan_equalized(model, calibration(NAME), SETTINGS)
    path = tmp_path / "plan.json"
    write_plan(planned.plan, path)
    equalization = planned_changes(path).equalization
    assert equalization == planned.plan.equalization
    again = plan_from_json(path.read_text(), equalize_as(model, equalization))
    assert again == planned.plan
    with pytest.raises(InputError, match="was made for another network"):
        plan_from_json(path.read_text(), model)


def test_a_plan_without_has_no_entry(tmp_path):
    plan = make_plan(float_model(NAME), calibration(NAME))
    write_plan(plan, tmp_path / "plan.json")
    assert "equalization" not in plan_to_json(plan)
    assert planned_changes(tmp_path / "plan.json") == (plan.settings, None, None, None)
