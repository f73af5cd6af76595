"""Channels in another order: those that can change places, and the same outputs to the bit."""

from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from quantization_cases import float_model, images, plan

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from targets.errors import InputError
from tvmq.calibrate.calibrate import calibrate
from tvmq.float_model import Mixing, copy_of
from tvmq.plan.annotate import annotate
from tvmq.plan.channel_classes import find_classes
from tvmq.plan.mix_channels import _rewritten, mix_as, mix_channels, mixed_calibration
from tvmq.plan.planner import make_plan
from tvmq.run.reference import run_reference
from tvmq.settings import Settings

W4A4 = Settings(4, 4, granularity="channel")
INEXACT = ("vit_small", "excitation_small", "silu_net", "preact")
"""Networks whose numbers no number of bits makes exact: norms, softmax and other functions."""
aten = torch.ops.aten


def shuffled(model, seed=0):
    """The model with all classes permuted at random, and what was moved."""
    classes, rng = find_classes(model.graph_module), np.random.default_rng(seed)
    moved = {}
    for labels in classes.classes:
        moved |= dict(zip(labels.tolist(), rng.permutation(labels).tolist(), strict=True))
    orders = {
        name: tuple(classes.order_of(use.labels, moved, use.groups).tolist())
        for name, use in classes.makers.items()
    }
    return mix_as(model, Mixing(orders, "at random"))


def coarse(model):
    """The model with weights of few bits and averages that divide by powers of two.

    So float64 adds exactly, in any order.
    """
    graph_module = copy_of(model.graph_module)
    for node in graph_module.graph.find_nodes(op="get_attr"):
        tensor = getattr(graph_module, str(node.target))
        setattr(graph_module, str(node.target), torch.round(tensor.detach() * 8) / 8)
    pools = graph_module.graph.find_nodes(op="call_function", target=aten.avg_pool2d.default)
    for node in pools:
        x, kernel, *rest = node.args
        strides, padding = [*rest, None, None][:2]
        node.args = (x, kernel, strides or kernel, padding or 0, False, True, 16)
    graph_module.recompile()
    return replace(model, graph_module=graph_module)


@pytest.mark.parametrize("name", sorted(models.ZOO))
def test_the_float_network_computes_the_same(name):
    model = coarse(float_model(name))
    mixed = shuffled(model)
    x = (torch.round(images(name)[:3] * 4) / 4).double()
    with torch.no_grad():
        before = copy_of(model.graph_module).double()(x)
        after = copy_of(mixed.graph_module).double()(x)
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
        assert name in INEXACT or torch.equal(a, b)


@pytest.mark.parametrize(
    "name", ["resnet_small", "mobilenet_small", "shufflenet_small", "densenet_small", "grouped"]
)
def test_the_integer_network_computes_the_same(name):
    """Steps are those of the plan, one per channel, and move with their channels."""
    model = float_model(name)
    mixed = shuffled(model)
    assert mixed.fingerprint != model.fingerprint
    before = plan(name, W4A4)
    calibration = calibrate(mixed, list(images(name).split(16)))
    after = make_plan(mixed, calibration, W4A4)
    classes = find_classes(model.graph_module)
    moved = {}
    for layer, order in mixed.mixing.orders.items():
        labels = classes.makers[layer].labels
        moved |= dict(zip(labels.tolist(), labels[list(order)].tolist(), strict=True))
    weights, biases = {}, {}
    for layer, each in before.weights.items():
        row = classes.rows[layer]
        order = classes.order_of(row, moved, np.zeros_like(row))
        steps = each.steps if len(each.steps) == 1 else tuple(np.array(each.steps)[order].tolist())
        weights[layer] = replace(each, steps=steps)
        if layer in before.biases:
            added = before.biases[layer].correction
            added = tuple(np.array(added)[order].tolist()) if added else ()
            biases[layer] = replace(before.biases[layer], correction=added)
    after = replace(after, values=before.values, weights=weights, biases=biases)
    x = {model.inputs[0].name: images(name)[:4].numpy()}
    for got, want in zip(
        run_reference(lower_to_integer(import_torch(annotate(mixed, after))), x),
        run_reference(lower_to_integer(import_torch(annotate(model, before))), x),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("name", "layer", "tied"),
    [
        ("mobilenet_small", "conv2d_1", "conv2d_2"),  # a depthwise layer behind it
        ("resnet_small", "conv2d", "conv2d_2"),  # what a block adds
    ],
)
def test_what_is_tied_is_permuted_alike(name, layer, tied):
    mixed = shuffled(float_model(name))
    classes = find_classes(float_model(name).graph_module)
    both = [classes.rows[n].tolist() for n in (layer, tied)]
    assert both[0] == both[1]
    orders = mixed.mixing.orders
    assert orders.get(layer) != tuple(range(len(both[0])))


def test_inputs_and_outputs_stay():
    classes = find_classes(float_model("mlp").graph_module)
    first, *_, last = classes.makers.values()
    free = {label for labels in classes.classes for label in labels.tolist()}
    assert free.issuperset(first.labels.tolist())
    assert not free.intersection(last.labels.tolist())


def test_channels_are_sorted_by_the_factor_that_they_want():
    name = "mlp"
    model, before = float_model(name), plan(name, W4A4)
    mixed = mix_channels(model, before.weights)
    assert set(mixed.mixing.orders) == {"linear", "linear_1"}
    again = mix_channels(mixed, make_plan(mixed, _calibration(mixed, name), W4A4).weights)
    assert not again.mixing.orders
    assert "2 of 3 layers" in mixed.mixing.reason


def test_ranges_move_with_their_channels():
    name = "resnet_small"
    model = float_model(name)
    mixed = shuffled(model)
    known = _calibration(model, name)
    moved = mixed_calibration(model, known, mixed.mixing).channels
    found = _calibration(mixed, name).channels
    assert found.keys() == moved.keys()
    for node in found:
        torch.testing.assert_close(found[node].high, moved[node].high, rtol=1e-4, atol=1e-4)


def test_an_order_that_does_not_fit_is_refused():
    model = float_model("resnet_small")
    with pytest.raises(InputError, match=r"mixing.orders.nobody does not fit .* no such layer"):
        mix_as(model, Mixing({"nobody": (0,)}, ""))
    with pytest.raises(InputError, match=r"has 16 channels, and an order names each channel once"):
        mix_as(model, Mixing({"conv2d": (0, 0)}, ""))
    orders = dict(shuffled(model).mixing.orders)
    alone = next(iter(orders))
    swapped = {alone: (*range(1, len(orders[alone])), 0)}
    last = list(find_classes(model.graph_module).makers)[-1]
    count = len(find_classes(model.graph_module).makers[last].labels)
    with pytest.raises(InputError, match="moves channels that others are tied to"):
        mix_as(model, Mixing({last: (*range(1, count), 0)}, ""))
    assert mix_as(model, Mixing(swapped, "")).fingerprint != model.fingerprint


def _calibration(model, name):
    return calibrate(model, list(images(name).split(16)))


def test_nothing_moves_where_nothing_is_asked():
    model = float_model("resnet_small")
    classes = find_classes(model.graph_module)
    assert _rewritten(model, classes, {}, Mixing({}, "")).fingerprint == model.fingerprint
