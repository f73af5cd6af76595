"""Ratios of steps as 16-bit multipliers and shifts: exact, within their fields, derived once."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.errors import ArithmeticRangeError
from targets.scale import (
    TooFineError,
    derive_addition,
    derive_scale,
    exact_multiplier,
    nearest_multiplier,
)

ODD = st.integers(0, 32767).map(lambda n: 2 * n + 1)
RATIOS = st.builds(lambda m, s: Fraction(m) / 2**s, st.integers(1, 65535), st.integers(0, 47))


@pytest.mark.parametrize("exponent", [-20, -1, 0, 3])
def test_powers_of_two_have_no_multiplier(exponent):
    assert nearest_multiplier(Fraction(2) ** exponent) == (1, -exponent)


@given(st.fractions(Fraction(1, 10**9), 10**6))
def test_no_other_multiplier_is_nearer(ratio):
    multiplier, shift = nearest_multiplier(ratio)
    assert multiplier == 1 or 2**15 <= multiplier < 2**16
    unit = Fraction(1, 2) ** shift
    assert abs(multiplier * unit - ratio) <= unit / 2


@given(ODD, st.integers(-20, 60), st.floats(-1, 1))
def test_rounded_steps_lead_to_the_fraction_that_was_meant(multiplier, shift, blur):
    """Steps in float64 stray by 2^-50."""
    blurred = Fraction(multiplier) / Fraction(2) ** shift * (1 + Fraction(blur) / 2**50)
    assert exact_multiplier(blurred) == (multiplier, shift)


@given(ODD, st.integers(-20, 60), st.floats(2.0**-38, 2.0**-34), st.booleans())
def test_what_is_no_such_fraction_is_refused(multiplier, shift, off, above):
    """Off by more than rounding explains, and nearer than the next fraction can be."""
    ratio = Fraction(multiplier) / Fraction(2) ** shift
    with pytest.raises(ArithmeticRangeError, match="the ratio"):
        exact_multiplier(ratio * (1 + Fraction(off) * (1 if above else -1)))


def test_seventeen_bits_are_refused():
    with pytest.raises(ArithmeticRangeError, match="channel 1: the ratio"):
        derive_scale([Fraction(1), Fraction(65537, 2**20)])


def test_powers_of_two_keep_to_shifts():
    plan = derive_scale([Fraction(2) ** -9, Fraction(2) ** -11], Fraction(1, 4))
    assert plan.shift == (9, 11)
    assert plan.residual_shift == (7, 9)
    assert (plan.multiplier, plan.fraction) == ((1, 1), 0)


def test_fraction_where_the_residual_is_finer_than_the_sums():
    scale = derive_scale([Fraction(1, 4), Fraction(1, 8)], Fraction(1, 64))
    assert scale.fraction == 4  # channel 0 needs 6 - 2
    assert scale.shift == (6, 7)
    assert scale.residual_shift == (0, 1)


def test_fraction_where_the_output_is_finer_than_the_sums():
    """Coarse weights, as 2-bit ones are: a left shift of the sums stands for a negative one."""
    plan = derive_scale([Fraction(32), Fraction(64)])
    assert (plan.fraction, plan.shift) == (6, (1, 0))
    with_residual = derive_scale([Fraction(32)], Fraction(4))
    assert (with_residual.fraction, with_residual.shift) == (5, (0,))
    assert with_residual.residual_shift == (2,)


def test_a_multiplier_grows_before_the_sums_are_shifted():
    """Sums shifted left come nearer to 32 bits; a multiplier has 16 of its own."""
    scale = derive_scale([Fraction(3)], Fraction(1, 2**15))
    assert (scale.multiplier, scale.fraction, scale.shift) == ((3 << 14,), 1, (15,))


def test_channels_with_and_without_a_multiplier_share_a_narrow_field():
    """One channel's ratio is a power of two by chance, beside one of 16 bits and 24 shifts."""
    scale = derive_scale([Fraction(1, 2**8), Fraction(65535, 2**24)])
    assert scale.shift == (23, 24)
    assert scale.multiplier == (1 << 15, 65535)


def test_no_channel_grows_beyond_the_one_with_the_least_room():
    scale = derive_scale([Fraction(1, 2**18), Fraction(3, 16)], Fraction(1, 2**33))
    assert (scale.multiplier, scale.fraction, scale.shift) == ((1, 3 << 14), 15, (33, 33))


@given(st.lists(RATIOS, min_size=1, max_size=5), st.none() | RATIOS)
def test_a_scale_is_the_ratios_exactly_or_does_not_fit(ratios, residual):
    try:
        scale = derive_scale(ratios, residual)
    except ArithmeticRangeError:
        assert not _fits(ratios, residual)
        return
    for k, ratio in enumerate(ratios):
        M, s = scale.multiplier[k], scale.shift[k]
        assert 1 <= M <= 65535
        assert 0 <= s <= 47
        assert Fraction(M << scale.fraction, 2**s) == ratio
        if residual is not None:
            N, left = scale.residual_multiplier, scale.residual_shift[k]
            assert 1 <= N <= 65535
            assert 0 <= left <= 31
            assert Fraction(N << left, 2**s) == residual
    assert 0 <= scale.fraction <= 15
    assert max(scale.shift) - min(scale.shift) <= 15


def _fits(ratios, residual):
    """Whether integers within all fields exist: tries every fraction and every smallest shift.

    Only multipliers that are as small as they can be matter, for each shift; where no channel has
    one, there is none.
    """
    odd = [exact_multiplier(ratio) for ratio in ratios]
    N, n = (1, 0) if residual is None else exact_multiplier(residual)
    alone = len({m for m, _ in odd}) == 1
    for fraction in range(16):
        for least in range(max(n, 0), 48):
            shifts = []
            for m, s in odd:
                nearest = min(s for _, s in odd) if alone else s  # one multiplier stays one
                up = max(least - nearest - fraction, 0)
                if (alone and m == 1 and up) or m << up > 65535:
                    break
                shifts.append(s + up + fraction)
            else:
                left = [s - n if residual is not None else 0 for s in shifts]
                if (
                    max(shifts) <= 47
                    and min(shifts) >= max(n, 0)
                    and max(left) <= 31
                    and max(shifts) - min(shifts) <= 15
                    and N <= 65535
                ):
                    return True
    return False


@pytest.mark.parametrize(
    ("ratios", "residual", "message"),
    [
        ([Fraction(1, 2**47)], None, ""),
        ([Fraction(1, 2**48)], None, "needs a right shift of 48, at most 47 fit"),
        ([Fraction(1)], Fraction(1, 2**15), ""),
        ([Fraction(1)], Fraction(1, 2**16), "needs 16 fraction bits, at most 15 fit"),
        ([Fraction(1, 2**31)], Fraction(1), ""),
        ([Fraction(1, 2**32)], Fraction(1), "a residual's left shift of 32, at most 31 fit"),
        ([Fraction(1, 2**4), Fraction(1, 2**19)], None, ""),
        ([Fraction(1, 2**4), Fraction(1, 2**20)], None, "differ by up to of 16, at most 15 fit"),
    ],
)
def test_fields_are_used_to_their_ends_and_no_further(ratios, residual, message):
    if message:
        with pytest.raises(ArithmeticRangeError, match=message):
            derive_scale(ratios, residual)
    else:
        derive_scale(ratios, residual)


def test_steps_that_are_too_fine_name_the_value():
    with pytest.raises(TooFineError) as error:
        derive_scale([Fraction(2**16)])
    assert error.value.which == "output"
    with pytest.raises(TooFineError) as error:
        derive_scale([Fraction(1)], Fraction(1, 2**16))
    assert error.value.which == "residual"


@pytest.mark.parametrize(("first", "second", "which"), [(0, 40, "first"), (40, 0, "second")])
def test_the_finer_side_of_an_addition_must_be_coarser(first, second, which):
    with pytest.raises(TooFineError, match="left shift of 40") as error:
        derive_addition(Fraction(2**first), Fraction(2**second))
    assert error.value.which == which


@given(RATIOS, RATIOS, st.integers(-200, 200), st.integers(-200, 200))
def test_addition_is_exact(first, second, a, b):
    try:
        scale = derive_addition(first, second)
    except TooFineError:
        (_, sa), (_, sb) = exact_multiplier(first), exact_multiplier(second)
        assert max(sa, sb) - min(sa, sb, 0) > 31 or max(sa, sb) > 47
        return
    total = sum(
        (x * m) << k for x, m, k in zip((a, b), scale.multipliers, scale.shifts, strict=True)
    )
    assert Fraction(total, 2**scale.shift) == a * first + b * second
