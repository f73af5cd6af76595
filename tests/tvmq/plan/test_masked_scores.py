"""Scores that a mask hides take no codes from those that it shows."""

import pytest
import torch

from tvmq.calibrate.observers import Histogram, choose_codes
from tvmq.plan.masked_scores import FAR, without_hidden
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
