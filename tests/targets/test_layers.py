"""Layers as a backend is given them."""

from __future__ import annotations

import numpy as np
import pytest

from targets.arithmetic import saturate, shift_border, shift_round
from targets.layers import Requantize
from targets.rounding import FLOOR, HALF_UP, Rounding, RoundingMode


def requantize(rounding: Rounding) -> Requantize:
    """Of two channels, to codes of 3 bits."""
    ones = np.ones(2, np.int32)
    return Requantize(0, ones, np.array([9, 4], np.int32), 3, 0, 7, rounding)


def test_codes_are_thresholds_that_a_sum_has_reached() -> None:
    t = np.arange(-4000, 4000).reshape(-1, 1)
    rng = np.random.default_rng(0)
    rows = tuple(rng.integers(1, 256, 7, dtype=np.uint8).tobytes() for _ in range(2))
    borders = requantize(Rounding(RoundingMode.BORDER, rows))
    rounded = shift_border(t, borders.shift, borders.rounding.table(0, 7), -3)
    for q, whole in (
        (borders, rounded),
        (requantize(HALF_UP), shift_round(t, borders.shift, RoundingMode.HALF_UP)),
    ):
        codes = q.low + (t[..., None] >= q.thresholds).sum(-1)
        np.testing.assert_array_equal(codes, saturate(whole + q.zero_point, q.low, q.high))


def test_rounding_without_borders_has_no_thresholds() -> None:
    with pytest.raises(ValueError, match="FLOOR rounds at no border"):
        _ = requantize(FLOOR).thresholds
