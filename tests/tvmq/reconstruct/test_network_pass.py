"""The pass over the network finds a wrong exponent, and leaves right ones alone."""

import pytest
import torch
from quantization_cases import calibration, float_model

from tvmq.plan.planner import make_plan
from tvmq.reconstruct import network_pass, network_work
from tvmq.reconstruct.network_pass import SURE, search_network
from tvmq.reconstruct.network_work import NetworkOutputs, NetworkWork, distance, surely_smaller
from tvmq.reconstruct.unit_graph import QuantizedUnit, network_steps
from tvmq.reconstruct.units import find_units
from tvmq.settings import Settings

NAME = "resnet_small"
SETTINGS = Settings(8, 4, "pot", "channel", method=("rapq",))


def _network(name: str = NAME):
    model = float_model(name)
    plan = make_plan(model, calibration(name), SETTINGS)
    steps = network_steps(model, plan)
    units = [QuantizedUnit(model, plan, unit, steps) for unit in find_units(model)]
    return model, units, steps


def test_a_wrong_exponent_is_found():
    model, units, steps = _network()
    right = steps["relu_1"].exact
    steps["relu_1"].fix(right / 2)  # codes that clip half of the range
    done = search_network(
        NetworkWork(model, calibration(NAME), units, steps, 24, SETTINGS, torch.Generator())
    )
    assert steps["relu_1"].exact == right
    (move,) = [move for move in done.moves if "relu_1" in move.values]
    assert move.after == move.before + 1
    assert done.loss_after < done.loss_before


@pytest.mark.parametrize("name", [NAME, "densenet_small", "silu_net"])
def test_losses_are_those_of_the_whole_network(name):
    """Running from a unit on, behind a remembered prefix, is running the network."""
    model, units, steps = _network(name)
    done = search_network(
        NetworkWork(model, calibration(name), units, steps, 24, SETTINGS, torch.Generator())
    )
    again = search_network(
        NetworkWork(model, calibration(name), units, steps, 24, SETTINGS, torch.Generator())
    )
    assert again.loss_before == done.loss_after
    images = torch.cat([batch[0] for batch in calibration(name).batches()])[24:]
    tensors = {"x": images} | {
        node.name: steps[node.name](images)
        for node in model.graph_module.graph.nodes
        if node.op == "placeholder"
    }
    with torch.no_grad():
        for unit in units:
            outputs = unit(*(tensors[n] for n in unit.unit.inputs))
            tensors |= dict(zip(unit.unit.outputs, outputs, strict=True))
        exact = model.graph_module(images)[0]
    found = tensors[units[-1].unit.outputs[-1]]
    assert float(distance(found, exact).mean()) == pytest.approx(again.loss_after, rel=1e-4)


@pytest.mark.parametrize("name", [NAME, "densenet_small", "silu_net"])
def test_a_trial_is_the_network_with_another_step(monkeypatch, name):
    """Only units whose inputs change are run, some images at a time; all else is remembered."""
    monkeypatch.setattr(network_work, "ENOUGH", 5)
    model, units, steps = _network(name)
    images = torch.cat([batch[0] for batch in calibration(name).batches()])[:12]
    outputs = NetworkOutputs(model, units, steps, (images,))
    before = outputs.losses()
    for owners, names in network_pass._movable(steps, units):
        start = steps[names[0]].exact
        steps[names[0]].fix(start * 2)
        expected = NetworkOutputs(model, units, steps, (images,)).losses()
        found = outputs.tried(owners, torch.full((12,), torch.inf))
        torch.testing.assert_close(found, expected)
        assert not torch.equal(found, before)
        steps[names[0]].fix(start)
        assert torch.equal(outputs.losses(), before)
    steps[names[0]].fix(start * 2)
    outputs.accept(owners)
    torch.testing.assert_close(outputs.losses(), expected)


def test_a_trial_ends_once_the_outputs_move_away(monkeypatch):
    monkeypatch.setattr(network_work, "ENOUGH", 6)
    model, units, steps = _network()
    images = torch.cat([batch[0] for batch in calibration(NAME).batches()])[:24]
    outputs = NetworkOutputs(model, units, steps, (images,))
    seen = []
    units[-1].graph_module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    (owners,) = (
        owners for owners, names in network_pass._movable(steps, units) if "relu_1" in names
    )
    before = outputs.losses()
    steps["relu_1"].fix(steps["relu_1"].exact / 8)
    assert outputs.tried(owners, before) is None
    assert seen == [6]
    assert outputs.tried(owners, before + 1e3) is not None
    assert seen == [6] * 5


def test_chance_moves_nothing():
    before = torch.full((100,), 1.0)
    noise = torch.randn(100, generator=torch.Generator().manual_seed(1))
    noise = 0.1 * (noise - noise.mean()) / noise.std()  # its standard error is 0.01
    shares = torch.tensor([0.031, 0.029])[:, None] + noise
    sure, unsure = before * (1 - shares) / (1 + shares)
    assert surely_smaller(sure, before, SURE)
    assert not surely_smaller(unsure, before, SURE)
    assert not surely_smaller(before, before, SURE)
    assert not surely_smaller(before[:1] / 2, before[:1], SURE)


def test_a_few_images_decide_nothing():
    before = torch.full((100,), 0.1)
    before[:5] = 8.0
    after = before * 0.7
    after[0] = 12.0  # it loses a third of what all others gain
    assert surely_smaller(after, before, 2.0)
    after[0] = 30.0
    assert not surely_smaller(after, before, 2.0)
    after[0], after[1:] = 0.0, before[1:] * 1.01
    assert not surely_smaller(after, before, 2.0)
    assert not surely_smaller(torch.zeros(9), torch.zeros(9), 2.0)


def test_the_input_of_the_network_stays():
    model, units, steps = _network()
    done = search_network(
        NetworkWork(model, calibration(NAME), units, steps, 24, SETTINGS, torch.Generator())
    )
    inputs = {spec.name for spec in model.inputs}
    assert not inputs.intersection(name for move in done.moves for name in move.values)


def test_logits_are_compared_by_their_probabilities():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.0]])
    p, q = logits.softmax(1), (2 * logits).softmax(1)
    by_hand = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(distance(2 * logits, logits), by_hand)
    assert distance(logits + 3, logits).tolist() == pytest.approx([0, 0], abs=1e-6)
    many = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))
    assert float(distance(many + 1, many).min()) >= 0  # rounding would leave less
    assert distance(logits[:, :1] + 3, logits[:, :1]).tolist() == pytest.approx([9, 9])
