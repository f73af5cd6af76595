"""Learned steps: LSQ and TQT gradients by hand, powers of two that are, dropping elements."""

import math

import pytest
import torch

from targets.errors import UnsupportedError
from targets.rounding import FLOOR
from tvmq.plan.plan import ValuePlan
from tvmq.reconstruct import pieces
from tvmq.reconstruct.learned_steps import DropMasks, LearnedStep


def _step(step: float, *, pot: bool, signed: bool = True) -> LearnedStep:
    return LearnedStep(ValuePlan(step, 0, -8, 7, signed, 4, ""), pot=pot)


def _theta_gradient(x: torch.Tensor, step: float, *, pot: bool) -> float:
    learned = _step(step, pot=pot)
    learned.learn()
    learned(x).sum().backward()
    return float(learned.theta.grad)


def test_gradient_of_a_free_step_is_that_of_lsq():
    x = torch.tensor([0.1, 0.33, -0.6, 5.0, -7.0])
    step = 0.25
    slopes = [0 - 0.4, 1 - 1.32, -2 + 2.4, 7, -8]  # code - x / step inside, code outside
    scale = 1 / math.sqrt(len(x) * 7)
    expected = sum(slopes) * scale * step * math.log(2)  # theta is log2 of the step
    assert _theta_gradient(x, step, pot=False) == pytest.approx(expected, rel=1e-5)


def test_gradient_of_a_power_of_two_is_that_of_tqt():
    x = torch.tensor([0.1, 0.33, -0.6, 5.0, -7.0])
    assert _theta_gradient(x, 0.25, pot=True) == pytest.approx(
        _theta_gradient(x, 0.25, pot=False), rel=1e-6
    )


def test_power_of_two_is_one_at_every_moment():
    learned = _step(0.25, pot=True)
    learned.learn()
    for theta in (-2.4, -1.6, -1.5, 0.2):
        learned.theta.data.fill_(theta)
        assert math.log2(float(learned.step().detach())) == math.floor(theta + 0.5)
    assert learned.harden() == 1.0


def test_a_free_step_hardens_where_it_is():
    learned = _step(0.25, pot=False)
    learned.learn()
    learned.theta.data.fill_(-1.6)
    assert learned.harden() == pytest.approx(2**-1.6, rel=1e-6)
    assert not learned.theta.requires_grad


def test_dropped_elements_stay_float():
    learned = _step(1.0, pot=False)
    learned.drop = DropMasks(0.5, torch.Generator().manual_seed(0))
    x = torch.full((100, 100), 0.3)
    y = learned(x)
    kept = (y == 0.3).float().mean()
    assert 0.47 < float(kept) < 0.53
    assert torch.equal(y[y != 0.3], torch.zeros_like(y[y != 0.3]))


def test_gradient_passes_inside_the_range_and_where_an_element_is_dropped():
    x = torch.tensor([0.1, 3.6, 9.0, -9.0] * 500, requires_grad=True)
    learned = _step(0.5, pot=False)  # codes of -8..7: the values in [-4, 3.5] are inside
    learned.drop = DropMasks(0.5, torch.Generator().manual_seed(0))
    y = learned(x)
    y.sum().backward()
    dropped = (y == x).detach()
    inside = torch.tensor([True, True, False, False] * 500)  # 3.6 rounds to the highest code
    assert torch.equal(x.grad.bool(), inside | dropped)
    assert 0.45 < float(dropped.float().mean()) < 0.55


@pytest.mark.parametrize("drop", [None, 0.5])
@pytest.mark.parametrize("last", [False, True])
def test_pieces_of_a_tensor_give_what_it_gives_as_a_whole(monkeypatch, drop, last):
    order = torch.channels_last if last else torch.contiguous_format
    found = []
    for size in (97, 2**18):
        monkeypatch.setattr(pieces, "PIECE", size)
        generator = torch.Generator().manual_seed(0)
        x = (4 * torch.randn(3, 5, 7, 4, generator=generator)).contiguous(memory_format=order)
        grad = torch.randn(3, 5, 7, 4, generator=generator)  # never in the order of channels_last
        learned = _step(0.25, pot=False)
        learned.learn()
        learned.drop = drop and DropMasks(drop, generator)
        y = learned(x.requires_grad_(True))
        y.backward(grad)
        assert y.is_contiguous(memory_format=order)
        found.append((y.detach(), x.grad, learned.theta.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    if drop is None:
        rounded = (x.detach() / 0.25 + 0.5).floor()
        assert torch.equal(y.detach(), rounded.clamp(-8, 7) * 0.25)
        assert torch.equal(x.grad, grad * (rounded == rounded.clamp(-8, 7)))


def test_dropped_elements_have_no_say_in_the_step():
    learned = _step(0.25, pot=False)
    learned.learn()
    learned.drop = DropMasks(1.0, torch.Generator().manual_seed(0))
    learned(torch.tensor([0.1, 0.33, 5.0])).sum().backward()
    assert float(learned.theta.grad) == 0.0


def test_masks_of_a_seed_are_the_same():
    first, second = (DropMasks(0.5, torch.Generator().manual_seed(3)) for _ in range(2))
    x = torch.zeros(7, 5)
    masks = first.take(x)
    assert torch.equal(masks, second.take(x))
    assert not torch.equal(masks, first.take(x))


def test_a_step_is_learned_half_up_only():
    with pytest.raises(UnsupportedError, match="rounds by FLOOR, but steps are learned half up"):
        LearnedStep(ValuePlan(1.0, 0, -8, 7, True, 4, "", FLOOR), pot=True)
