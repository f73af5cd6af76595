"""Scores that a mask hides take no codes from those that it shows."""

import pytest
import torch

from tvmq.calibrate.calibrate import calibrate
from tvmq.calibrate.observers import Histogram, choose_codes
from tvmq.capture.capture import capture_program
from tvmq.plan.masked_scores import FAR, scores_of, without_hidden
from tvmq.regions import find_regions
from tvmq.settings import Settings


def histogram(*parts):
    made = Histogram(note="images")
    for part in parts:
        made.add(part)
    return made


SHOWN = torch.linspace(-3, 4, 1000)


@pytest.mark.parametrize("lowest", [-128.0, -40.0])
def test_what_is_hidden_lies_just_far_enough_below(lowest):
    found = without_hidden(histogram(SHOWN, torch.full((5000,), lowest)))
    assert found.low == pytest.approx(-3 - FAR, abs=0.05)
    assert found.high == 4
    assert "mask hides" in found.note
    codes = choose_codes(found, 8, Settings(calib_method="minmax"))
    assert codes.step <= 2**-3


def test_what_is_only_rare_is_not_hidden():
    seen = histogram(SHOWN, torch.tensor([-3 - FAR + 0.5]))
    assert without_hidden(seen) is seen


class _Attention(torch.nn.Module):
    def __init__(self, summand):
        super().__init__()
        self.q, self.k, self.out = (torch.nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("summand", summand)

    def forward(self, x):
        scores = self.q(x) @ self.k(x).mT + self.summand
        return self.out(scores.softmax(-1) @ x)


@pytest.mark.parametrize("hidden", [False, True])
def test_scores_without_a_mask_lose_none(hidden):
    """A query whose scores are all lower than those of the others hides nothing."""
    summand = torch.zeros(5, 5)
    summand[1] = -40.0
    if hidden:
        summand[:, 0] = -torch.inf
    x = torch.randn(8, 5, 8)
    with torch.no_grad():
        model = capture_program(torch.export.export(_Attention(summand).eval(), (x,)))
    calibration = calibrate(model, [x])
    regions = find_regions(model)
    assert len(scores_of(regions, calibration.histograms)) == hidden
