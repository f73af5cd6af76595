"""Counting is exact, for any size, alignment and number of threads."""

import numpy as np
import pytest
import torch

from tvmq.calibrate.count_bins import count_bins

BINS = 64


def _expected(elements, limit):
    bins = np.floor(elements.double().numpy() / (2 * limit / BINS)) + BINS // 2
    return np.bincount(bins.astype(int), minlength=BINS)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 1000, 3 << 18])
def test_counts_are_those_of_numpy(count):
    elements = torch.randn(count, generator=torch.Generator().manual_seed(count)).clamp(-3.9, 3.9)
    elements[: count // 2] = 0.0
    assert count_bins(elements, 4.0, BINS).tolist() == _expected(elements, 4.0).tolist()


def test_a_view_that_begins_anywhere():
    elements = torch.linspace(-1.9, 1.9, 5000)
    assert count_bins(elements[3:], 2.0, BINS).tolist() == _expected(elements[3:], 2.0).tolist()


def test_both_limits():
    below = float(np.nextafter(np.float32(2.0), np.float32(0.0)))
    counts = count_bins(torch.tensor([-2.0, below, below]), 2.0, BINS)
    assert (counts[0], counts[-1], counts.sum()) == (1, 2, 3)


def test_more_than_float32_can_count():
    assert count_bins(torch.zeros((1 << 24) + 3), 1.0, BINS)[BINS // 2] == (1 << 24) + 3


def test_in_inference_mode():
    with torch.inference_mode():
        assert count_bins(torch.ones(10), 2.0, BINS).sum() == 10


@pytest.mark.parametrize("limit", [1.0, 2.0**-140])
def test_nothing_is_counted_outside_of_the_bins(limit):
    """Whatever a float says: a compiled kernel would write there."""
    elements = torch.tensor([0.0, 5.0, -7.0, 3e38, -3e38, float("inf"), float("nan")] * 100)
    assert count_bins(elements, limit, BINS).sum() == 700
