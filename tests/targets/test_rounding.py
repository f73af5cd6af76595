"""The value that says how is rounded: what it may be, its borders, and the floors of reals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.arithmetic import border_thresholds, requantize, shift_border, shift_round
from targets.errors import UnsupportedError
from targets.rounding import (
    FLOOR,
    HALF_UP,
    MAX_FLOOR_SHIFT,
    Rounding,
    RoundingMode,
    round_reals,
)

ROWS = (bytes([10, 20, 30]), bytes([40, 50, 60]))


def test_it_is_a_value():
    """Equal, and one key of a dictionary, where all that it says is equal."""
    same = Rounding(RoundingMode.BORDER, ROWS, -2), Rounding(RoundingMode.BORDER, ROWS, -2)
    assert len({*same, FLOOR, Rounding(RoundingMode.FLOOR), HALF_UP}) == 3
    assert Rounding(RoundingMode.BORDER, ROWS, -1) != same[0]
    assert Rounding(RoundingMode.BORDER, ROWS[:1], -2) != same[0]


@pytest.mark.parametrize(
    ("mode", "borders", "message"),
    [
        (RoundingMode.BORDER, (), "BORDER with 0 rows of borders"),
        (RoundingMode.FLOOR, ROWS, "FLOOR with 2 rows of borders"),
        (RoundingMode.BORDER, (b"ab", b"c"), "differ in length"),
    ],
)
def test_borders_belong_to_their_mode(mode, borders, message):
    with pytest.raises(ValueError, match=message):
        Rounding(mode, borders)
    with pytest.raises(ValueError, match="begin at code -128"):
        Rounding(RoundingMode.HALF_UP, first=-128)


def test_a_clamp_cuts_the_borders():
    rounding = Rounding(RoundingMode.BORDER, ROWS, -2)
    assert rounding.table(-2, 1).tolist() == [[10, 20, 30], [40, 50, 60]]
    assert rounding.table(-1, 1).tolist() == [[20, 30], [50, 60]]
    for low, high in ((-3, 1), (-2, 2)):
        with pytest.raises(ValueError, match="borders reach from -2 to 1"):
            rounding.table(low, high)


@given(st.lists(st.integers(-400, 800), min_size=2, max_size=2), st.integers(-2, 0))
def test_sums_are_rounded_by_the_borders_of_their_channel(acc, low):
    """Codes -2 to 1, 256ths behind the point; whatever the clamp leaves, a code has its border."""
    rounding = Rounding(RoundingMode.BORDER, ROWS, -2)
    got = requantize([acc], 0, 8, rounding=rounding, zero_point=0, low=low, high=1)
    for code, t, row in zip(got[0], acc, ROWS, strict=True):
        whole, fraction = t >> 8, t & 255
        border = row[min(max(whole, low), 0) + 2]
        assert code == min(max(whole + (fraction >= border), low), 1)


@given(st.integers(-(1 << 40), 1 << 40), st.integers(0, MAX_FLOOR_SHIFT), st.sampled_from([-1, 1]))
def test_reals_are_rounded_as_integers(t, shift, side):
    """On the grid, and off it by the error that sums may have."""
    x = t / 2.0**shift + side * 2.0**-35
    for rounding in (FLOOR, HALF_UP):
        assert round_reals(x, rounding, "x") == shift_round(t, shift, rounding.mode)


@given(
    st.integers(-(1 << 40), 1 << 40),
    st.integers(0, MAX_FLOOR_SHIFT),
    st.sampled_from([-1, 0, 1]),
    st.lists(st.integers(1, 255), min_size=3, max_size=3),
    st.integers(-2, 1),
)
def test_reals_are_rounded_by_borders_as_integers(t, shift, side, borders, zero_point):
    """Both where codes begin and elsewhere, and off the grid by the error that sums may have."""
    rounding = Rounding(RoundingMode.BORDER, (bytes(borders),), -2)
    table = rounding.table(-2, 1)
    ends = border_thresholds(shift, table, -2 - zero_point)[0]
    for total in (t, *ends.tolist(), *(ends - 1).tolist()):
        x = total / 2.0**shift + side * 2.0**-35
        want = shift_border([total], shift, table, -2 - zero_point)
        assert round_reals([x], rounding, "x", zero_point) == want


def test_others_are_no_roundings_of_reals():
    for mode in (RoundingMode.HALF_AWAY, RoundingMode.HALF_EVEN):
        message = f"relu: rounds by {mode.name}, but real numbers only by HALF_UP, FLOOR or BORDER"
        with pytest.raises(UnsupportedError, match=message):
            round_reals(0.0, Rounding(mode), "relu")
    np.testing.assert_array_equal(round_reals([-0.5, 0.5], HALF_UP, "x"), [0, 1])
