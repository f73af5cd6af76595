"""Tensors inside units: what can be scaled, the same function, steps that stay powers of two."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from quantization_cases import calibration, float_model, images

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from tvmq.execute_graph import GraphRun
from tvmq.float_model import TensorScaling
from tvmq.plan.annotate import annotate
from tvmq.plan.equalized_plan import Planned
from tvmq.plan.mix_channels import mix_as
from tvmq.plan.plan_file import plan_from_json, plan_to_json, planned_changes, write_plan
from tvmq.plan.plan_network import plan_network
from tvmq.plan.planner import make_plan
from tvmq.plan.scale_tensors import find_families, scale_as
from tvmq.reconstruct.engine import reconstruct
from tvmq.reconstruct.inner_scales import InnerScales, inner_families
from tvmq.reconstruct.unit_graph import QuantizedUnit, float_unit, network_steps
from tvmq.reconstruct.unit_state import apply_state, state_of
from tvmq.reconstruct.units import find_units
from tvmq.regions import find_regions
from tvmq.run.reference import run_reference
from tvmq.settings import Settings

NETWORKS = ("resnet_small", "mobilenet_small")
SETTINGS = Settings(2, 4, "pot", "channel", method=("rapq",), iterations=8)


def inner(model):
    families = find_families(model.graph_module)
    return inner_families(families, find_units(model), find_regions(model))


def scaled_unit(name):
    """The first unit of a network that has inner tensors, with scales of 1, and its float twin."""
    model = float_model(name)
    plan = make_plan(model, calibration(name), SETTINGS)
    index = min(index for index, _, _ in inner(model))
    families = {value: family for i, family, value in inner(model) if i == index}
    unit = QuantizedUnit(model, plan, find_units(model)[index], network_steps(model, plan))
    exact = float_unit(model, unit.unit)
    InnerScales(model, unit, exact, families)
    return unit, exact


def read_by(name, unit):
    """What a unit reads in the float network."""
    with torch.no_grad():
        run = GraphRun(float_model(name).graph_module).start(images(name)[:4])
        return tuple(run.result_of(node) for node in unit.unit.inputs)


def test_what_leaves_a_unit_is_not_inside():
    model = float_model("resnet_small")
    units = find_units(model)
    for index, family, value in inner(model):
        assert {*family.makers, *family.readers} <= {*units[index].layers}
        assert value in family.tensors
        assert not family.tensors & {*units[index].inputs, *units[index].outputs}
    streams = [f for f in find_families(model.graph_module) if len(f.makers) > 1]
    assert streams
    assert not {f.makers for f in streams} & {f.makers for _, f, _ in inner(model)}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_factors_leave_a_unit_the_same(name):
    unit, exact = scaled_unit(name)
    read = read_by(name, unit)
    before = exact(*read)
    for i, scale in enumerate(unit.scales.scales.values()):
        scale.factor = 1.7 ** (-1) ** i
    unit.scales.apply()
    for was, now in zip(before, exact(*read), strict=True):
        torch.testing.assert_close(now, was, rtol=1e-5, atol=1e-5)
    for layer in unit.unit.layers:
        own = unit.weights[layer].weight
        target = str(float_model(name).nodes[layer].args[1].target)
        assert torch.equal(own, getattr(exact, target))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_that_has_moved_is_a_tensor_that_is_scaled(name):
    """The same codes, the same outputs and the same powers of two, before and behind."""
    unit, _ = scaled_unit(name)
    read = read_by(name, unit)
    drifts = unit.scales.learn()
    for i, drift in enumerate(drifts):
        drift.data.fill_(0.3 * (-1) ** i)
    for bias in unit.biases.values():
        bias.correction.data.fill_(0.1)
    steps = {name: step.exact for name, step in unit.steps.items()}
    codes = {name: weight.codes.clone() for name, weight in unit.weights.items()}
    with torch.no_grad():
        moved = unit(*read)
        unit.scales.harden()
        scaled = unit(*read)
    assert {name: step.exact for name, step in unit.steps.items()} == steps
    assert all(torch.equal(unit.weights[name].codes, known) for name, known in codes.items())
    factors = [scale.factor for scale in unit.scales.scales.values()]
    assert factors == pytest.approx([2.0 ** -(0.3 * (-1) ** i) for i in range(len(drifts))])
    for before, after in zip(moved, scaled, strict=True):
        off = (before - after).abs()  # a rounding tie may fall to the other side
        assert float((off > 1e-5 * before.abs().max()).float().mean()) < 1e-3


def test_a_gradient_moves_steps_and_weights_together():
    unit, _ = scaled_unit("resnet_small")
    (drift,) = unit.scales.learn()
    (scale,) = unit.scales.scales.values()
    drift.data.fill_(1.0)
    for layer, ratio in [(scale.family.makers[0], 2.0), (scale.family.readers[0], 0.5)]:
        weight = unit.weights[layer]
        assert torch.equal(weight(), weight.frozen * ratio)
        assert bool(weight.frozen.any())
    unit(*read_by("resnet_small", unit))[0].square().sum().backward()
    assert float(drift.grad) != 0


def test_the_state_of_a_unit_has_its_scales():
    unit, exact = scaled_unit("resnet_small")
    before, read = state_of(unit), read_by("resnet_small", unit)
    unscaled = [weight.weight.clone() for weight in unit.weights.values()]
    (scale,) = unit.scales.scales.values()
    scale.factor = 1.3
    unit.scales.apply()
    after = state_of(unit)
    apply_state(unit, before)
    assert scale.factor == 1
    assert all(map(torch.equal, unscaled, (w.weight for w in unit.weights.values())))
    expected = exact(*read)[0]
    apply_state(unit, after)
    assert scale.factor == 1.3
    torch.testing.assert_close(exact(*read)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", params=[*NETWORKS, "mixed"])
def learned(request):
    name = "resnet_small" if request.param == "mixed" else request.param
    method = ("rapq", "waps") if request.param == "mixed" else ("rapq",)
    settings = replace(SETTINGS, method=method)
    planned = plan_network(float_model(name), calibration(name), settings)
    assert not planned.plan.scaling.left_out
    done = reconstruct(planned.model, planned.calibration, planned.plan)
    return SimpleNamespace(name=name, planned=planned, done=done)


def test_units_scale_what_is_inside(learned):
    factors = learned.done.plan.scaling.factors
    makers = [family.makers[0] for _, family, _ in inner(learned.planned.model)]
    assert makers
    assert set(makers) <= set(factors)
    assert not set(makers) & set(learned.planned.plan.scaling.factors)
    assert any(factors[maker] != 1 for maker in makers)


def test_the_float_network_computes_the_same(learned):
    x = images(learned.name)
    with torch.no_grad():
        before = float_model(learned.name).graph_module(x)[0]
        after = learned.done.model.graph_module(x)[0]
    assert float((before - after).abs().max()) <= 1e-5 * float(before.abs().max())


def test_all_steps_are_powers_of_two(learned):
    plan = learned.done.plan
    steps = [value.step for value in plan.values.values()]
    steps += [s for w in plan.weights.values() if w.codes for s in w.steps]
    assert all(math.frexp(step)[0] == 0.5 for step in steps)


def test_the_plan_brings_the_scaled_network_back(learned, tmp_path):
    plan = learned.done.plan
    write_plan(plan, tmp_path / "plan.json")
    *_, scaling, mixing = planned_changes(tmp_path / "plan.json")
    assert scaling == plan.scaling
    model = scale_as(float_model(learned.name), scaling)
    model = model if mixing is None else mix_as(model, mixing)
    assert model.fingerprint == learned.done.model.fingerprint
    assert plan_from_json(plan_to_json(plan), model) == plan


def test_what_is_learned_is_what_runs(learned):
    program = annotate(learned.done.model, learned.done.plan)
    x = images(learned.name)[:3]
    (want,) = run_reference(lower_to_integer(import_torch(program)), {"x": x.numpy()})
    np.testing.assert_array_equal(program(x.double())[0].float().numpy(), want)


def test_a_job_goes_on_with_the_scales_that_it_had(learned, tmp_path):
    planned = learned.planned
    given = planned.model, planned.calibration, planned.plan
    reconstruct(*given, checkpoints=tmp_path)
    said = []
    again = reconstruct(*given, checkpoints=tmp_path, note=said.append)
    assert "going on from there" in said[0]
    assert plan_to_json(again.plan) == plan_to_json(learned.done.plan)


def test_a_network_that_is_not_to_be_scaled_stays():
    model, seen = float_model("resnet_small"), calibration("resnet_small")
    plan = make_plan(model, seen, SETTINGS)
    planned = Planned(model, seen, plan)
    assert reconstruct(model, seen, plan).model is model
    left = planned.noted(scaling=TensorScaling({}, "left out", left_out=True))
    done = reconstruct(left.model, left.calibration, left.plan)
    assert done.model.fingerprint == model.fingerprint
    assert done.plan.scaling == left.plan.scaling
