"""Networks of every shape reconstruct, whatever batch they were exported with."""

import models
import pytest
import torch
from quantization_cases import calibration, float_model, images

from tvmq.calibrate import calibrate
from tvmq.capture import capture_program
from tvmq.planner import make_plan
from tvmq.reconstruct.engine import Reconstruction, reconstruct
from tvmq.scheme import Settings

SETTINGS = Settings(4, 4, "pot", "channel", method=("rapq",), iterations=3)


def _rapq(model, data) -> Reconstruction:
    return reconstruct(model, data, make_plan(model, data, SETTINGS))


@pytest.mark.parametrize("name", [name for name in models.ZOO if name != "resnet_small"])
def test_reconstructs(name):
    done = _rapq(float_model(name), calibration(name))
    assert all(unit.iterations == 3 for unit in done.units)
    learned = {layer for unit in done.units for layer in unit.layers}
    weights = {layer for layer, weight in done.plan.weights.items() if weight.codes}
    assert learned == weights


def test_a_batch_of_1_is_no_special_case():
    """The usual export has a fixed batch of 1; training takes its own batch size all the same."""
    module, example = models.ZOO["resnet_small"]()
    with torch.no_grad():
        fixed = torch.export.export(module, (example[:1],))
    model = capture_program(fixed)
    done = _rapq(model, calibrate(model, list(images("resnet_small").split(16))))
    dynamic = _rapq(float_model("resnet_small"), calibration("resnet_small"))
    for name, weight in dynamic.plan.weights.items():
        assert done.plan.weights[name].codes == weight.codes
        assert done.plan.weights[name].steps == weight.steps
