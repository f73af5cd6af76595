"""The integer arithmetic against exact rational numbers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.arithmetic import (
    border_thresholds,
    requantize,
    residual_term,
    saturate,
    scale_product,
    shift_border,
    shift_round,
)
from targets.errors import ArithmeticRangeError
from targets.rounding import HALF_UP, RoundingMode

sums = st.integers(-(1 << 56), 1 << 56)
shifts = st.integers(0, 47)
int32s = st.integers(-(1 << 31), (1 << 31) - 1)


MODES = st.sampled_from([mode for mode in RoundingMode if mode is not RoundingMode.BORDER])


def _exact(x: Fraction, mode: RoundingMode) -> int:
    half = Fraction(1, 2)
    if mode is RoundingMode.FLOOR:
        return math.floor(x)
    if mode is RoundingMode.HALF_UP:
        return math.floor(x + half)
    if mode is RoundingMode.HALF_AWAY:
        return math.floor(abs(x) + half) * (1 if x >= 0 else -1)
    return round(x)


@given(sums, shifts, MODES)
def test_rounding_equals_rational_numbers(t, shift, mode):
    assert shift_round(t, shift, mode) == _exact(Fraction(t, 1 << shift), mode)


@given(st.integers(-40, 40), MODES)
def test_ties_equal_rational_numbers(halves, mode):
    tie = (2 * halves + 1) << 3
    assert shift_round(tie, 4, mode) == _exact(Fraction(tie, 16), mode)


@given(sums, shifts)
def test_border_128_is_half_up(t, shift):
    table = np.full((1, 15), 128, np.uint8)
    assert shift_border([t], shift, table, 0) == shift_round([t], shift, RoundingMode.HALF_UP)


@given(st.integers(-(1 << 20), 1 << 20), st.integers(8, 16), st.binary(min_size=3, max_size=3))
def test_border_is_that_of_the_level(t, shift, borders):
    table = np.frombuffer(borders, np.uint8)[None]
    x = Fraction(t, 1 << shift)
    level = min(max(math.floor(x) + 1, 0), 2)
    fraction = math.floor((x - math.floor(x)) * 256)
    assert shift_border([t], shift, table, -1)[0] == math.floor(x) + (fraction >= borders[level])


@given(sums, shifts, st.lists(st.integers(1, 255), min_size=7, max_size=7), st.integers(-9, 5))
def test_borders_are_thresholds(t, shift, borders, first):
    """The same codes, thresholds that rise, and sums beside each of these."""
    table = np.array([borders], np.uint8)
    thresholds = border_thresholds(shift, table, first)
    assert (np.diff(thresholds) > 0).all()
    for total in (t, *thresholds[0].tolist(), *(thresholds[0] - 1).tolist()):
        code = saturate(shift_border([total], shift, table, first), first, first + 7)
        assert code == first + (thresholds <= total).sum()


@given(st.integers(-(1 << 30), 1 << 30), st.integers(0, 7))
def test_a_border_next_to_an_end_is_floor_or_ceiling(t, shift):
    """In 256ths there is nothing between a border of 1 and a number that is no code."""
    low, high = (np.full((1, 3), border, np.uint8) for border in (1, 255))
    assert shift_border([t], shift, high, -1) == shift_round(t, shift, RoundingMode.FLOOR)
    assert shift_border([t], shift, low, -1) == -shift_round(-t, shift, RoundingMode.FLOOR)


@given(
    st.lists(st.integers(-(1 << 20), 1 << 20), min_size=2, max_size=20),
    shifts,
    st.binary(min_size=7, max_size=7),
)
def test_codes_rise_with_the_sums(totals, shift, borders):
    ordered = np.sort(np.array(totals))[:, None]
    codes = shift_border(ordered, shift, np.frombuffer(borders, np.uint8)[None], -3)
    assert (np.diff(codes[:, 0]) >= 0).all()


@given(int32s, int32s, st.integers(0, 65535), shifts, st.integers(-128, 127))
def test_requantize_equals_rational_numbers(acc, bias, multiplier, shift, zero):
    got = requantize(
        acc,
        bias,
        shift,
        rounding=HALF_UP,
        zero_point=zero,
        low=-128,
        high=127,
        multiplier=multiplier,
    )
    x = Fraction((acc + bias) * multiplier, 1 << shift)
    assert got == min(max(_exact(x, RoundingMode.HALF_UP) + zero, -128), 127)


@given(
    int32s,
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(1, 65535),
    st.integers(0, 31),
    shifts,
)
def test_residual_is_added_before_the_one_rounding(acc, code, zero, multiplier, left, shift):
    residual = residual_term(code, zero, multiplier, left)
    got = requantize(
        acc, 0, shift, rounding=HALF_UP, zero_point=0, low=0, high=255, residual=residual
    )
    x = Fraction(acc + (code - zero) * multiplier * 2**left, 1 << shift)
    assert got == min(max(_exact(x, RoundingMode.HALF_UP), 0), 255)


@given(
    st.lists(st.integers(-(1 << 20), 1 << 20), max_size=9),
    st.integers(0, 15),
    st.integers(0, 15),
    st.integers(0, 15),
    st.sampled_from([-1, 0, 1]),
)
def test_product_scaling_is_exact_and_distributes_over_tiles(tiles, fraction, a, b, sign):
    if max(a, b) > fraction:
        with pytest.raises(ArithmeticRangeError):
            scale_product(1, fraction, a, b, sign)
        return
    factor = (Fraction(1, 1 << a) + sign * Fraction(1, 1 << b)) * 2**fraction
    assert scale_product(sum(tiles), fraction, a, b, sign) == sum(tiles) * factor
    assert sum(int(scale_product(p, fraction, a, b, sign)) for p in tiles) == sum(tiles) * factor


@pytest.mark.parametrize("shift", [-1, 48])
def test_a_shift_out_of_range_is_refused(shift):
    with pytest.raises(ArithmeticRangeError, match="right shift"):
        shift_round(1, shift, RoundingMode.FLOOR)
