"""Soft rounding starts at the float weight, and hardening leaves nothing but codes."""

import pytest
import torch

from tvmq.plan.plan import WeightPlan
from tvmq.reconstruct.soft_rounding import BETA_FIRST, BETA_LAST, SoftWeight, annealed_beta

STEPS = (0.25, 0.5, 0.125)


@pytest.fixture
def soft() -> SoftWeight:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 0.2
    return SoftWeight(weight, WeightPlan(STEPS, 4, ""))


def test_starts_at_the_float_weight(soft):
    soft.soft = True
    torch.testing.assert_close(soft(), soft.weight, atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_starts_at_the_float_weight_behind_factors(soft, share):
    """What is multiplied by factors lies between the float weight and the codes times these."""
    spread = torch.tensor([0.75, 1.0, 1.5, 1.0625])
    codes = torch.floor(soft.weight / torch.tensor(STEPS)[:, None] / spread + 0.5).clamp(-8, 7)
    soft.start_from(codes, share, spread)
    soft.soft = True
    held = codes * torch.tensor(STEPS)[:, None] * spread
    wanted = torch.lerp(soft.weight, held, share)
    torch.testing.assert_close(soft() * spread, wanted, atol=1e-4, rtol=0)
    soft.start_at_weight(spread)
    torch.testing.assert_close(soft() * spread, soft.weight, atol=1e-4, rtol=0)


def test_frozen_at_the_nearest_codes(soft):
    nearest = torch.floor(soft.weight / torch.tensor(STEPS)[:, None] + 0.5)
    assert torch.equal(soft.codes.float(), nearest)
    assert torch.equal(soft(), nearest * torch.tensor(STEPS)[:, None])


def test_hard_codes_are_the_side_of_each_decision(soft):
    with torch.no_grad():
        soft.alpha.copy_(torch.where(torch.arange(4) % 2 == 0, 5.0, -5.0).expand(3, 4))
    codes = soft.hard_codes()
    assert torch.equal(codes - soft.floor, (torch.arange(4) % 2 == 0).float().expand(3, 4))
    soft.soft = True
    assert torch.equal(soft(), codes * soft.steps)  # h is exactly 0 or 1 there
    assert float(soft.regularizer(2.0).detach()) == 0.0


def test_codes_stay_in_range_of_their_bits():
    weight = torch.linspace(-9, 9, 12).reshape(2, 6)
    soft = SoftWeight(weight, WeightPlan((1.0,), 2, ""))
    soft.soft = True
    assert soft.codes.min() == -2
    assert soft.codes.max() == 1
    assert float(soft().detach().min()) >= -2
    assert float(soft().detach().max()) <= 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_starts_part_of_the_way_to_given_codes(soft, share):
    given = soft.codes.float() + torch.tensor([1.0, 0.0, -1.0, 0.0])
    soft.start_from(given, share)
    scaled = soft.weight / soft.steps
    soft.soft = True
    reached = soft() / soft.steps
    apart = torch.where((scaled - given).abs() <= 1, share * given + (1 - share) * scaled, reached)
    torch.testing.assert_close(reached, apart, atol=1e-3, rtol=0)
    if share == 1.0:
        assert torch.equal(soft.hard_codes(), given)


def test_beta_falls_behind_the_warm_up():
    assert annealed_beta(0.1, 0.2) is None
    assert annealed_beta(0.2, 0.2) == BETA_FIRST
    assert annealed_beta(1.0, 0.2) == BETA_LAST
    assert annealed_beta(0.6, 0.2) == pytest.approx((BETA_FIRST + BETA_LAST) / 2)


def test_gradients_are_those_of_the_formulas(soft):
    alpha = torch.linspace(-4, 4, 12).reshape(3, 4)
    gradients = []
    for written_out in (False, True):
        with torch.no_grad():
            soft.alpha.copy_(alpha)
        soft.soft, soft.alpha.grad = True, None
        weight = soft()
        if written_out:
            h = (1.2 * torch.sigmoid(soft.alpha) - 0.1).clamp(0, 1)
            weight = (soft.floor + h).clamp(soft.low, soft.high) * soft.steps
            undecided = (1 - (2 * h - 1).abs() ** 3.5).sum()
        else:
            undecided = soft.regularizer(3.5)
        (weight.square().sum() + 0.1 * undecided).backward()
        gradients.append((undecided.detach(), soft.alpha.grad))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert float(gradients[0][1].abs().max()) > 0.01


def test_channels_may_have_ranges_of_their_own(soft):
    soft.low, soft.high = torch.tensor([[-1.0], [0.0], [-8.0]]), torch.tensor([[0.0], [2.0], [7.0]])
    codes = soft.nearest_codes()
    assert torch.equal(codes[2], torch.floor(soft.weight[2].double() / STEPS[2] + 0.5))
    assert torch.all((codes[:2] >= soft.low[:2]) & (codes[:2] <= soft.high[:2]))
    assert torch.all((soft.hard_codes() >= soft.low) & (soft.hard_codes() <= soft.high))


def test_steps_that_were_learned_are_kept_with_the_codes():
    plan = WeightPlan(steps=(0.5, 0.25), bits=2, reason="")
    weight = SoftWeight(torch.tensor([[0.4, -0.9], [0.1, 0.3]]), plan)
    codes = weight.codes.clone()
    weight.move()
    weight.resize(alike=False)
    weight.size.data.copy_(torch.tensor([[1.0], [-1.0]]))
    before = weight().detach()
    weight.settle()
    assert weight.exact_steps.tolist() == [1.0, 0.125]
    assert torch.equal(weight.codes, codes)
    assert torch.equal(weight(), before)
