"""Borders of activations: their gradient, how they are found, and the gate that they pass."""

from types import SimpleNamespace

import pytest
import torch
from quantization_cases import calibration, float_model

from targets.rounding import HALF_UP, RoundingMode
from tvmq.plan.plan_file import plan_from_json, plan_to_json
from tvmq.plan.planner import make_plan
from tvmq.reconstruct import border_search
from tvmq.reconstruct.border_search import cheapest_borders, rounding_costs
from tvmq.reconstruct.engine import reconstruct
from tvmq.reconstruct.learned_borders import BorderQuantize, LearnedBorders
from tvmq.settings import Settings

NAME = "resnet_small"
STEP = torch.tensor([0.5])


def _reals(low: int, high: int, count: int = 40000) -> torch.Tensor:
    """Numbers with uniform fractions, in steps, as an image of two channels."""
    numbers = torch.linspace(low, high, count + 1)[:-1] + 0.5 * (high - low) / count
    return torch.stack([numbers, numbers]).reshape(1, 2, 1, count)


def test_a_code_begins_at_its_border():
    borders = torch.tensor([[0.25, 0.5, 0.75], [0.5, 0.5, 0.5]])
    x = torch.tensor([0.2, 0.25, 1.4, 1.5, 2.7, 2.75, -3.0, 9.0]).expand(1, 2, 1, 8) * STEP
    y = BorderQuantize.apply(x, STEP, borders, 0, 3, None) / STEP
    assert y[0, 0, 0].tolist() == [0, 1, 1, 2, 2, 3, 0, 3]
    assert y[0, 1, 0].tolist() == [0, 0, 1, 2, 3, 3, 0, 3]


@pytest.mark.parametrize("border", [0.02, 0.3, 0.5, 0.95])
def test_the_gradient_of_a_border_is_that_of_the_mean_over_fractions(border):
    """How the mean output falls where the border rises: a code for each that it passes."""
    borders = torch.full((2, 3), border, requires_grad=True)
    x = _reals(-2, 5) * STEP
    BorderQuantize.apply(x, STEP, borders, 0, 3, None).sum().backward()
    each = x.numel() / 7 / 2  # numbers of a level and channel
    assert torch.allclose(borders.grad / each, -STEP.expand(2, 3), rtol=0.02)
    moved = [
        BorderQuantize.apply(x, STEP, borders.detach() + shift, 0, 3, None).sum()
        for shift in (-0.01, 0.01)
    ]
    difference = (moved[1] - moved[0]) / 0.02
    assert float(difference) == pytest.approx(float(borders.grad.sum()), rel=0.02)


def test_gradients_pass_as_half_up():
    borders = torch.full((1, 3), 0.5)
    x = torch.tensor([-1.0, 0.2, 1.4, 3.4, 3.6]).requires_grad_(True)
    BorderQuantize.apply(x, torch.tensor([1.0]), borders, 0, 3, None).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_learned_borders_end_as_bytes():
    borders = LearnedBorders.half_up(2, 3)
    assert borders.rounding(0) == HALF_UP
    curve = borders.learn(1)
    curve.data[0] = torch.tensor([-0.25, 0.0])
    curve.data[1] = torch.tensor([9.0, 0.0])
    borders.harden()
    assert borders.table.tolist() == [[64] * 3, [255] * 3]
    rounding = borders.rounding(-2)
    assert (rounding.mode, rounding.first) == (RoundingMode.BORDER, -2)
    assert rounding.borders == (bytes([64] * 3), bytes([255] * 3))


def test_a_planted_border_is_found():
    """By what should come out, which is rounded by it."""
    x = _reals(0, 3)
    planted = torch.tensor([[40, 128, 200], [128, 90, 128]])
    whole = x.floor()
    fraction = ((x - whole) * 256).floor()
    level = whole.long()
    target = whole + torch.stack(
        [fraction[0, k] >= planted[k][level[0, k]] for k in range(2)]
    ).reshape(x.shape)
    costs = rounding_costs(x, target, (0, 3), by_channel=True)
    assert cheapest_borders(costs).tolist() == planted.tolist()
    together = cheapest_borders(rounding_costs(x, target, (0, 3), by_channel=False))
    assert together.shape == (1, 3)


def test_where_nothing_was_seen_it_is_half_up():
    assert cheapest_borders(torch.zeros(2, 3, 256).double()).tolist() == [[128] * 3] * 2


def test_the_closed_form_by_hand():
    """A weight that became twice as large wants its activations rounded up later."""

    reader = SimpleNamespace(weight=torch.tensor([[1.0, 2.0]]), frozen=torch.tensor([[2.0, 2.0]]))
    step = SimpleNamespace(low=0, high=3)
    unit = SimpleNamespace(weights={"r": reader}, steps={"x": step}, spread=lambda layer: 1.0)
    table = border_search.derived_borders(unit, "x", ["r"])
    # rho is 1/2 and 1: the borders of levels 0 to 2 are 1/2 + (1 - rho) * (level + 1/2)
    assert table.tolist() == [[192, 255, 255], [128, 128, 128]]


def _start(method: tuple[str, ...], activation_bits: int = 2):
    settings = Settings(2, activation_bits, "free", "channel", method=method, iterations=20)
    return make_plan(float_model(NAME), calibration(NAME), settings)


def _run(*method: str, bits: int = 2):
    return reconstruct(float_model(NAME), calibration(NAME), _start(method, bits))


@pytest.fixture(scope="module")
def learned():
    return _run("qdrop", "aquant")


def test_borders_are_kept_where_held_out_images_agree(learned):
    for unit in learned.units:
        assert [c.name for c in unit.candidates] == ["nearest", "learned", "borders"]
        assert unit.held_out_loss == min(c.loss for c in unit.candidates)
    assert any(unit.kept == "borders" for unit in learned.units)
    modes = {value.rounding.mode for value in learned.plan.values.values()}
    assert modes == {RoundingMode.BORDER, RoundingMode.HALF_UP}
    for value in learned.plan.values.values():
        assert value.rounding == HALF_UP or value.bits <= 4


def test_a_plan_with_borders_comes_back(learned):
    assert plan_from_json(plan_to_json(learned.plan), float_model(NAME)) == learned.plan


def test_what_was_learned_before_stays_as_it_was(learned):
    """Up to the first unit that keeps its borders, the same as without."""
    alone = _run("qdrop")
    first, other = learned.units[0], alone.units[0]
    assert first.candidates[:2] == other.candidates


def test_borders_that_harm_are_refused(monkeypatch):
    def harmful(costs):
        return torch.full(costs.shape[:2], 255, dtype=torch.uint8)

    monkeypatch.setattr(border_search, "cheapest_borders", harmful)
    monkeypatch.setattr(border_search, "_readers", lambda *_: [])
    result = _run("aquant")
    assert {value.rounding for value in result.plan.values.values()} == {HALF_UP}


def test_activations_of_more_bits_have_none():
    result = _run("aquant", bits=8)
    assert {value.rounding for value in result.plan.values.values()} == {HALF_UP}
    assert not any(unit.accepted for unit in result.units)
