"""Steps of concatenations: shared where that costs nothing, a table where others would lose."""

import functools

import numpy as np
import pytest
import torch
from quantization_cases import calibration, float_model

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from relay_passes.read_layers import read_layers
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.plan.annotate import annotate
from tvmq.plan.joined_values import tied_values
from tvmq.plan.planner import make_plan
from tvmq.regions import find_regions
from tvmq.run.reference import run_reference
from tvmq.settings import Settings

SETTINGS = [Settings(), Settings(scales="free", granularity="channel"), Settings(4, 4)]


class _Branches(torch.nn.Module):
    """A narrow branch that is returned, too, joined with one that is ``size`` times as wide."""

    def __init__(self, size):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(3, 4, 1)
        self.c, self.size = torch.nn.Conv2d(8, 4, 1), size
        with torch.no_grad():
            self.b.weight *= size
            self.b.bias *= size

    def forward(self, x):
        narrow = torch.relu(self.a(x))
        return torch.relu(self.c(torch.cat([narrow, torch.relu(self.b(x))], 1))), narrow


@functools.cache
def _case(size):
    torch.manual_seed(0)
    batch = {0: torch.export.Dim("batch")}
    x = torch.randn(16, 3, 6, 6)
    program = torch.export.export(_Branches(size).eval(), (x,), dynamic_shapes=(batch,))
    model = capture_program(program)
    return model, x, calibrate(model, [x])


def _noise(exact, output):
    """Squared error relative to the squares of what is exact."""
    return float((output - exact).square().sum() / exact.square().sum())


@pytest.mark.parametrize("settings", SETTINGS, ids=["w8a8", "free", "w4a4"])
def test_a_narrow_branch_keeps_its_step_for_its_other_readers(settings):
    model, x, seen = _case(64.0)
    plan = make_plan(model, seen, settings)
    steps = {name: value.step for name, value in plan.values.items()}
    assert steps["relu_1"] == steps["cat"] > 16 * steps["relu"]
    assert plan.values["relu_1"].bits == plan.values["cat"].bits
    exact, outputs = model.graph_module(x), annotate(model, plan)(x.double())
    assert _noise(exact[1], outputs[1]) < 1e-3
    integer = lower_to_integer(import_torch(annotate(model, plan)))
    kinds = [layer.kind for layer in read_layers(integer).layers]
    assert kinds.count("lut") == kinds.count("move") == 1
    expected = run_reference(integer, {"x": x.numpy()})
    for one, other in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(one.float().numpy(), other)


def test_branches_of_like_size_share_a_step_and_need_no_table():
    model, _, seen = _case(1.5)
    plan = make_plan(model, seen)
    assert len({plan.values[name].step for name in ("relu", "relu_1", "cat")}) == 1
    layers = read_layers(lower_to_integer(import_torch(annotate(model, plan)))).layers
    assert "lut" not in [layer.kind for layer in layers]


def test_what_only_a_concatenation_reads_is_written_in_its_step():
    model = float_model("detector_small")
    plan = make_plan(model, calibration("detector_small"))
    groups = tied_values(find_regions(model), plan.values)
    assert ("conv2d_7", "relu_3", "cat") in groups
    assert ("relu_1",) in groups
    assert sorted(name for group in groups for name in group) == sorted(plan.values)


def test_paddings_of_a_joined_value_stay_zero():
    """A value that is never below 1, padded with 0, requantized in a concatenation."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Conv2d(3, 2, 1)
            self.b = torch.nn.Conv2d(3, 2, 3, padding=2)

        def forward(self, x):
            y = self.a(x).clamp(1, 2)
            padded = torch.nn.functional.pad(y, (1, 1, 1, 1))
            wide = (100 * self.b(x)).clamp(50, 90)
            return torch.tanh(torch.cat([padded, wide], 1)), y

    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, 4)
    batch = {0: torch.export.Dim("batch")}
    model = capture_program(torch.export.export(Net().eval(), (x,), dynamic_shapes=(batch,)))
    plan = make_plan(model, calibrate(model, [x]))
    outputs = annotate(model, plan)(x.double())
    integer = lower_to_integer(import_torch(annotate(model, plan)))
    for one, other in zip(outputs, run_reference(integer, {"x": x.numpy()}), strict=True):
        np.testing.assert_array_equal(one.float().numpy(), other)
    assert plan.values["cat"].step > 4 * plan.values["clamp"].step
    assert float(outputs[0][:, :2, 0].abs().max()) == 0.0


def test_without_data_too():
    """Ranges of a concatenation are those of what it joins."""
    from tvmq.calibrate.batch_norm_ranges import ranges_from_batch_norm

    model = float_model("densenet_small")
    found = ranges_from_batch_norm(model)
    assert list(found.histograms) == list(find_regions(model).values)
    assert found.histograms["cat"].high == max(
        found.histograms[name].high for name in ("relu", "relu_1")
    )
    make_plan(model, found)


class _Weighing(torch.nn.Module):
    """Values that are weighed by others of which none is negative, on the right."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        return self.c(self.a(x) @ torch.relu(self.b(x)).mT)


def test_what_values_are_multiplied_by_is_signed_as_weights_are():
    x = torch.rand(4, 6, 6)
    with torch.no_grad():
        model = capture_program(torch.export.export(_Weighing().eval(), (x,)))
    plan = make_plan(model, calibrate(model, [x]))
    regions = find_regions(model)
    (product,) = (layer for layer in regions.layers.values() if layer.kind == "matmul")
    right = plan.values[product.inputs[1]]
    assert (right.signed, right.zero_point) == (True, 0)
    assert "as weights are" in right.reason
