"""Bits and steps of all weights: which rule each layer gets, and what limits its shifts."""

import torch
from quantization_cases import float_model, plan

from tvmq.plan.layer_weights import choose_weights
from tvmq.plan.weight_steps import choose_weight_steps
from tvmq.plan.wess import choose_shifted_steps
from tvmq.regions import find_regions
from tvmq.settings import Settings

NAME = "resnet_small"
WESS = Settings(weight_bits=4, scales="free", method=("wess",))


def _chosen(settings):
    model = float_model(NAME)
    values = plan(NAME, settings).values
    return values, choose_weights(model, find_regions(model), values, settings)


def test_every_layer_with_weights_has_a_plan_and_pools_their_divisor():
    _, plans = _chosen(Settings())
    assert plans.keys() == {"conv2d", *(f"conv2d_{n}" for n in range(1, 5)), "linear", "avg_pool2d"}
    assert plans["avg_pool2d"].steps == (1 / 36,)
    assert plans["avg_pool2d"].reason == "average over 36"


def test_bits_and_their_reasons():
    _, plans = _chosen(Settings(weight_bits=4, exclude=("layer1.conv1",)))
    assert {name: plan.bits for name, plan in plans.items() if name != "avg_pool2d"} == {
        "conv2d": 8,
        "conv2d_1": 8,
        "conv2d_2": 4,
        "conv2d_3": 4,
        "conv2d_4": 4,
        "linear": 8,
    }
    assert plans["conv2d"].reason.endswith(", first or last layer")
    assert plans["conv2d_1"].reason.endswith(", excluded from fewer bits")


def test_without_wess_it_is_the_plain_rule():
    model = float_model(NAME)
    settings = Settings(weight_bits=4, granularity="channel")
    _, plans = _chosen(settings)
    for name in ("conv2d_1", "conv2d_2"):
        weight = model.weight_of(model.nodes[name])
        assert plans[name] == choose_weight_steps(weight, 4, settings)


def test_shifts_know_what_a_layer_reads_makes_and_adds(monkeypatch):
    seen = []

    def record(weight, bits, settings, around):
        seen.append(around)
        return choose_shifted_steps(weight, bits, settings, around)

    monkeypatch.setattr("tvmq.plan.layer_weights.choose_shifted_steps", record)
    values, plans = _chosen(WESS)
    layers = find_regions(float_model(NAME)).layers
    names = [name for name in plans if layers[name].kind != "pool"]
    for name, around in zip(names, seen[-len(names) :], strict=True):
        layer = layers[name]
        assert around.source == values[layer.inputs[0]].step
        assert around.output == (values[layer.output].step if layer.output else None)
        assert around.residual == (values[layer.residual].step if layer.residual else None)
        assert torch.equal(
            around.bias, float_model(NAME).bias_of(float_model(NAME).nodes[name]).double()
        )
    assert {(a.output is None, a.residual is None) for a in seen} == {
        (False, True),
        (False, False),
        (True, True),
    }


def test_a_layer_without_bias_is_not_held_back():
    model = float_model("preact")
    regions = find_regions(model)
    values = plan("preact", WESS).values
    plans = choose_weights(model, regions, values, WESS)
    bare = [n for n in plans if regions.layers[n].kind == "conv"]
    assert any(model.bias_of(model.nodes[name]) is None for name in bare)
    assert all("held back" not in plans[name].reason for name in bare)
    assert all(torch.tensor(plans[name].steps).min() > 0 for name in bare)


def test_a_dead_channel_gets_the_coarsest_step():
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    weight[1], weight[2] = 0.0, weight[2] * 1e-6
    for scales in ("pot", "free"):
        steps = choose_weight_steps(weight, 8, Settings(scales=scales, granularity="channel")).steps
        assert steps[1] == steps[2] == max(steps[0], steps[3])
