"""Equalization: the same bits in float, channels balanced, clamps left alone, and it settles."""

import copy
from dataclasses import replace

import pytest
import torch
from quantization_cases import float_model, images

from tvmq.calibrate.batch_norm_ranges import ranges_from_batch_norm
from tvmq.float_model import constant_of
from tvmq.plan.equalize import _balance, _find_pairs, _readers, equalize
from tvmq.regions import PRODUCTS, op_of


def _rescaled(model, seed):
    """With weights of channels made up to 2**5 times larger or smaller: another function."""
    changed = replace(model, graph_module=copy.deepcopy(model.graph_module))
    generator = torch.Generator().manual_seed(seed)
    for node in changed.graph_module.graph.nodes:
        if op_of(node) in PRODUCTS:
            weight = constant_of(changed.graph_module, node.args[1])
            sizes = torch.exp2(10 * torch.rand(len(weight), generator=generator) - 5)
            weight.mul_(sizes.reshape(-1, *[1] * (weight.ndim - 1)))
    return changed


def _outputs(model, x):
    with torch.no_grad():
        return model.graph_module(x)[0]


@pytest.mark.parametrize("name", ["mobilenet_rescaled", "vgg_small", "resnet_small", "mlp"])
def test_outputs_are_equal_to_the_bit(name):
    model, x = _rescaled(float_model(name), 2), images(name)
    changed = equalize(model)
    assert changed.fingerprint != model.fingerprint
    assert torch.equal(_outputs(changed, x), _outputs(model, x))
    assert changed.notes[-1].startswith("equalized channels between ")


def test_the_model_that_is_given_stays_as_it_is():
    model = float_model("mobilenet_rescaled")
    before = {name: value.clone() for name, value in model.graph_module.state_dict().items()}
    equalize(model)
    after = model.graph_module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_channels_are_balanced():
    """Largest weights that write and read a channel are within a factor of two of each other."""
    before, after = float_model("mobilenet_rescaled"), equalize(float_model("mobilenet_rescaled"))
    spreads = []
    for model in (before, after):
        pairs, _ = _find_pairs(model.graph_module)
        worst = 0.0
        for pair in pairs:
            first = model.weight_of(pair.first).flatten(1).abs().amax(dim=1)
            parts = _readers(model.graph_module, pair.second)
            second = torch.stack([part.abs().max() for part in parts])
            worst = max(worst, float((first / second).log2().abs().max()))
        spreads.append(worst)
    assert spreads[1] <= 1.0 < 6 < spreads[0]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["vgg_small", "mobilenet_rescaled"])
def test_it_settles(name, seed):
    """A second run finds nothing to do, wherever it starts."""
    settled = equalize(_rescaled(float_model(name), seed))
    pairs, _ = _find_pairs(settled.graph_module)
    assert pairs
    assert not any(_balance(settled.graph_module, pair).any() for pair in pairs)
    assert equalize(settled).fingerprint == settled.fingerprint


def test_a_factor_of_two_stays_and_a_dead_channel_too():
    model = float_model("mlp")
    model = replace(model, graph_module=copy.deepcopy(model.graph_module))
    pairs, _ = _find_pairs(model.graph_module)
    first, second = (
        constant_of(model.graph_module, node.args[1]) for node in (pairs[0].first, pairs[0].second)
    )
    first[:], second[:] = 1.0, 1.0
    first[1], first[2], first[3], second[:, 4] = 2.0, 0.5, 8.0, 0.0
    assert _balance(model.graph_module, pairs[0])[:5].tolist() == [0, 0, 0, 2, 0]


def test_a_clamp_forbids_it():
    model = float_model("mobilenet_small")
    changed = equalize(model)
    pairs, clamped = _find_pairs(model.graph_module)
    assert (len(pairs), clamped) == (1, 5)
    assert "5 more have a clamp such as ReLU6 between them, which forbids it" in changed.notes[-1]
    touched = {pair.first.name for pair in pairs} | {pair.second.name for pair in pairs}
    for node, other in zip(
        model.graph_module.graph.nodes, changed.graph_module.graph.nodes, strict=True
    ):
        if op_of(node) in PRODUCTS and node.name not in touched:
            assert torch.equal(model.weight_of(node), changed.weight_of(other))


def test_values_with_several_readers_are_left_alone():
    pairs, _ = _find_pairs(float_model("resnet_small").graph_module)
    assert [(pair.first.name, pair.second.name) for pair in pairs] == [
        ("conv2d_1", "conv2d_2"),
        ("conv2d_3", "conv2d_4"),
    ]


def test_grouped_readers_follow_their_channels():
    model, x = float_model("grouped"), images("grouped")
    assert torch.equal(_outputs(equalize(_rescaled(model, 1)), x), _outputs(_rescaled(model, 1), x))


def test_batch_norm_statistics_move_along():
    """Data-free ranges of a channel shrink by what the channel was divided by."""
    model = float_model("mobilenet_rescaled")
    changed = equalize(model)
    for name, stats in model.batch_norms.items():
        node = next(n for n in model.graph_module.graph.nodes if n.name == name)
        other = next(n for n in changed.graph_module.graph.nodes if n.name == name)
        scale = changed.weight_of(other).flatten(1).norm(dim=1) / model.weight_of(node).flatten(
            1
        ).norm(dim=1)
        pairs, _ = _find_pairs(model.graph_module)
        if node in [pair.first for pair in pairs] and node not in [p.second for p in pairs]:
            torch.testing.assert_close(changed.batch_norms[name].gamma, stats.gamma * scale)
    assert ranges_from_batch_norm(changed).histograms.keys() == (
        ranges_from_batch_norm(model).histograms.keys()
    )
