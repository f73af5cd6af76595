"""Whether tensors are scaled: by what images show, and what the plan says of it."""

from dataclasses import replace

import pytest
from quantization_cases import calibration, float_model

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
        monkeypatch.setattr(scaled_plan, "output_error", lambda *_: next(errors))

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
    real = scaled_plan.output_error

    def watched(exact, candidate, images):
        seen.append((candidate.calibration.samples, sum(len(part[0]) for part in images)))
        return real(exact, candidate, images)

    monkeypatch.setattr(scaled_plan, "output_error", watched)
    plan_scaled(planned())
    assert seen == [(16, 16), (16, 16)]


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
    _, scaling, _ = planned_changes(tmp_path / "plan.json")
    assert scaling == found.plan.scaling
    assert scaling.left_out == left_out
    again = scale_as(float_model(NAME), scaling)
    assert again.fingerprint == found.model.fingerprint
    assert plan_from_json(plan_to_json(found.plan), again) == found.plan
