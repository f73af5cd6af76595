"""Whole tensors scaled to powers of two: what can be, by how much, and the same function."""

import copy
import math

import models
import pytest
import torch
from quantization_cases import calibration, float_model, images

from targets.errors import InputError
from tvmq.calibrate.calibrate import calibrate_again
from tvmq.float_model import TensorScaling
from tvmq.plan.planner import make_plan
from tvmq.plan.scale_tensors import (
    best_factor,
    find_families,
    scale_as,
    scale_further,
    scale_tensors,
)
from tvmq.settings import Settings

SETTINGS = Settings(2, 2, "pot", "channel", method=("rapq", "waps"))
FREE = SETTINGS.with_free_steps("channel")


def families(name):
    return find_families(float_model(name).graph_module)


@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_any_factors_leave_the_function_the_same(name):
    """All families at once, each by another factor, float64 so that nothing is lost."""
    model = float_model(name)
    found = [family for family in families(name) if family.makers]
    factors = {f.makers[0]: 1.9 ** (-1) ** i * (1 + i / 50) for i, f in enumerate(found)}
    factors = {maker: min(max(factor, 0.5), 2.0) for maker, factor in factors.items()}
    changed = scale_as(model, TensorScaling(factors, "for a test"))
    x = images(name)[:2].double()
    pairs = zip(double(model.graph_module)(x), double(changed.graph_module)(x), strict=True)
    for before, after in pairs:
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
        assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    assert (changed.fingerprint != model.fingerprint) == bool(factors)


def double(graph_module):
    return copy.deepcopy(graph_module).double()


def test_a_stream_of_additions_is_one_family():
    stream, *inner = families("resnet_small")
    assert len(stream.makers) > 2
    assert all(len(family.makers) == len(family.readers) == 1 for family in inner)
    model = float_model("resnet_small")
    ends = {n.name for n in model.graph_module.graph.find_nodes(op="placeholder")}
    ends |= {n.name for n in model.graph_module.graph.output_node().all_input_nodes}
    assert not any(ends & family.tensors for family in families("resnet_small"))


def test_bounds_are_scaled_along():
    model = float_model("mobilenet_small")
    clamped = next(f for f in families("mobilenet_small") if f.clamps)
    changed = scale_as(model, TensorScaling({clamped.makers[0]: 1.25}, ""))
    for name in clamped.clamps:
        before, after = model.nodes[name].args, changed.nodes[name].args
        assert after[1:] == tuple(1.25 * bound for bound in before[1:])


@pytest.mark.parametrize("shift", [-0.5, -0.25, 0.0, 0.25])
def test_one_step_becomes_a_power_of_two(shift):
    factor = best_factor([(2.0 ** (3 - shift), 4)])
    assert factor == pytest.approx(2.0**shift)


def test_steps_of_few_bits_count_more():
    fine, coarse = (2.0**-0.25, 8), (2.0**0.25, 2)
    assert best_factor([fine, coarse]) == pytest.approx(2.0**-0.25)
    assert best_factor([fine] * 1000 + [coarse]) == pytest.approx(2.0**-0.25, abs=0.1)


def test_steps_come_closer_to_powers_of_two():
    model, seen = float_model("resnet_small"), calibration("resnet_small")
    scaled = scale_tensors(model, make_plan(model, seen, FREE).values)
    assert scaled.scaling.factors

    def off(of, calibrated):
        values = make_plan(of, calibrated, FREE).values
        inner = [f for f in find_families(of.graph_module) if len(f.makers) == 1]
        logs = [math.log2(v.step) for f in inner for n, v in values.items() if n in f.tensors]
        return max(abs(x - round(x)) for x in logs)

    assert off(model, seen) > 0.2
    assert off(scaled, calibrate_again(scaled, seen)) < 0.1


def test_what_is_left_is_not_scaled():
    model, seen = float_model("resnet_small"), calibration("resnet_small")
    free = make_plan(model, seen, FREE).values
    every = scale_tensors(model, free).scaling.factors
    (first, *others) = [f for f in find_families(model.graph_module) if f.makers[0] in every]
    assert scale_tensors(model, free, others).scaling.factors.keys() == {first.makers[0]}
    assert scale_tensors(model, free, [first, *others]).fingerprint == model.fingerprint


def test_scaling_further_is_scaling_all_in_this_order():
    model = float_model("resnet_small")
    first, second, *_ = (f.makers[0] for f in find_families(model.graph_module) if f.makers)
    one = scale_as(model, TensorScaling({first: 1.3}, "one"))
    both = scale_further(one, {second: 0.7}, ", two")
    assert both.scaling == TensorScaling({first: 1.3, second: 0.7}, "one, two")
    assert both.fingerprint == scale_as(model, both.scaling).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    "factors", [{"nothing": 1.5}, {"conv2d": 5.0}, {"conv2d": 0.2}, {"linear": 1.5}]
)
def test_factors_that_do_not_fit_are_named(factors):
    (name,) = factors
    with pytest.raises(InputError, match=rf"scaling.factors.{name} does not fit the network"):
        scale_as(float_model("resnet_small"), TensorScaling(factors, ""))


def test_weights_that_others_use_pin_their_tensors():
    model = float_model("resnet_small")
    graph_module = double(model.graph_module).float()
    first, second = graph_module.graph.find_nodes(
        op="call_function", target=torch.ops.aten.conv2d.default
    )[1:3]
    shape = [n.args[1].meta["val"].shape for n in (first, second)]
    assert shape[0] == shape[1]
    before = {f.makers for f in find_families(graph_module)}
    second.args = (second.args[0], first.args[1], *second.args[2:])
    after = {f.makers for f in find_families(graph_module)}
    assert (first.name,) in before
    assert (first.name,) not in after
