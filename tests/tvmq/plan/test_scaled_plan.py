"""Whether tensors are scaled: by what images show, and what the plan says of it."""

from dataclasses import replace

import pytest
import torch
from quantization_cases import calibration, float_model

from tvmq.execute_graph import GraphRun
from tvmq.float_model import TensorScaling
from tvmq.plan import scaled_plan
from tvmq.plan.equalized_plan import Planned
from tvmq.plan.plan_file import plan_from_json, plan_to_json, planned_changes, write_plan
from tvmq.plan.planner import make_plan
from tvmq.plan.scale_tensors import find_families, scale_as
from tvmq.plan.scaled_plan import plan_scaled
from tvmq.settings import Settings

NAME = "resnet_small"
SETTINGS = Settings(2, 2, "pot", "channel", method=("rapq", "waps"))


def planned(**changes):
    seen = replace(calibration(NAME), **changes)
    return Planned(float_model(NAME), seen, make_plan(float_model(NAME), seen, SETTINGS))


@pytest.fixture
def judged(monkeypatch):
    """Lets a test say what the two errors are; those of ``before`` and of ``after``."""

    def judge(before, after):
        errors = iter([before, after])
        monkeypatch.setattr(scaled_plan, "_error", lambda *_: next(errors))

    return judge


def test_streams_are_scaled_where_outputs_come_closer(judged):
    judged(2.0, 1.0)
    found = plan_scaled(planned())
    streams = {f.makers[0] for f in find_families(float_model(NAME).graph_module) if f.makers[1:]}
    assert found.plan.scaling == found.model.scaling
    assert set(found.plan.scaling.factors) == streams
    assert found.plan.scaling.reason.startswith("kept: squared error 2 -> 1 on 16 held-out images")
    assert found.plan.fingerprint == found.model.fingerprint != float_model(NAME).fingerprint


@pytest.mark.parametrize("after", [2.0, 3.0])
def test_streams_stay_where_outputs_do_not_come_closer(judged, after):
    judged(2.0, after)
    found = plan_scaled(planned())
    assert found.model.fingerprint == float_model(NAME).fingerprint
    reason = f"left out: squared error 2 -> {after:g} on 16 held-out images"
    assert found.plan.scaling == TensorScaling({}, reason)


def test_images_that_decide_are_not_those_that_showed_the_ranges(monkeypatch):
    seen = []
    real = scaled_plan._error

    def watched(model, shown, settings, parts, names):
        (first,) = next(iter(shown.batches()))
        (held_out,) = parts[0]
        seen.append((shown.samples, len(held_out), torch.equal(first[:16], held_out[:16])))
        assert names == next(f.tensors for f in find_families(model.graph_module) if f.makers[1:])
        return real(model, shown, settings, parts, names)

    monkeypatch.setattr(scaled_plan, "_error", watched)
    plan_scaled(planned())
    assert seen == [(16, 16, False), (16, 16, False)]


def test_errors_are_those_of_rounding_to_the_plan_s_steps():
    model, seen = float_model(NAME), calibration(NAME)
    images = next(seen.batches())
    plan = make_plan(model, seen, SETTINGS)
    found = scaled_plan._error(model, seen, SETTINGS, [images], {"relu", "relu_1"})
    expected = 0.0
    for name in ("relu", "relu_1"):
        x, value = GraphRun(model.graph_module).start(*images).result_of(name), plan.values[name]
        codes = (x / value.step + 0.5).floor().clamp(0, 2**value.bits - 1)
        expected += float((codes * value.step - x).square().sum() / x.square().sum())
    assert found == pytest.approx(expected, rel=0.01)  # of bins


def test_without_images_nothing_is_scaled():
    found = plan_scaled(planned(samples=0, batches=lambda: iter(())))
    assert found.model.fingerprint == float_model(NAME).fingerprint
    assert found.plan.scaling.left_out
    assert found.plan.scaling.reason.startswith("left out, since no images are there")


def test_a_network_that_would_change_stays(monkeypatch):
    monkeypatch.setattr(scaled_plan, "same_outputs", lambda *_: False)
    found = plan_scaled(planned())
    assert found.model.fingerprint == float_model(NAME).fingerprint
    assert found.plan.scaling.left_out


@pytest.mark.parametrize("left_out", [False, True])
def test_a_plan_file_says_how_the_network_was_scaled(judged, left_out, tmp_path):
    judged(2.0, 1.0)
    found = plan_scaled(planned(samples=0, batches=lambda: iter(())) if left_out else planned())
    write_plan(found.plan, tmp_path / "plan.json")
    scaling = planned_changes(tmp_path / "plan.json").scaling
    assert scaling == found.plan.scaling
    assert scaling.left_out == left_out
    again = scale_as(float_model(NAME), scaling)
    assert again.fingerprint == found.model.fingerprint
    assert plan_from_json(plan_to_json(found.plan), again) == found.plan
