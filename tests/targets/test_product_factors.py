"""Factors of products: what two shifts give, the fewest groups, and the same sums in any tiling."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.arithmetic import scale_product
from targets.errors import ArithmeticRangeError
from targets.product_factors import (
    FACTORS,
    ProductFactors,
    Shifts,
    integer_factors,
    shifts_of,
)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("more", [0, 3])
def test_two_shifts_give_each_factor(factor, more):
    integers, fraction = integer_factors(np.array([factor]))
    assert Fraction(int(integers[0]), 2**fraction) == Fraction(factor)
    fraction += more
    shifts = shifts_of(int(integers[0]) << more, fraction)
    a, b, sign = shifts.a, shifts.b, shifts.sign
    assert scale_product(-37, fraction, a, b, sign) == -37 * int(integers[0]) << more


def test_there_are_nine_factors_of_the_form_one_plus_or_minus_a_power_of_two():
    assert len(FACTORS) == 9
    assert set(FACTORS) == {1.0} | {1 + s * 2.0**-k for k in (1, 2, 3, 4) for s in (-1, 1)}


def test_a_sum_is_taken_rather_than_a_difference():
    assert shifts_of(12, 4) == Shifts(1, 2, 1)
    assert shifts_of(8, 4) == Shifts(1)
    assert shifts_of(15, 4) == Shifts(0, 4, -1)
    assert shifts_of(11, 4) is None


def test_what_no_factor_can_be_is_named():
    with pytest.raises(ArithmeticRangeError, match=r"factor 0\.3 of products has more than 4 frac"):
        integer_factors(np.array([1.0, 0.3]))
    with pytest.raises(ArithmeticRangeError, match=r"multiplied by \[11, 16\], which are not all"):
        ProductFactors.of(np.array([[11, 16]], np.int32))


def test_factors_of_one_are_none():
    assert ProductFactors.of(np.ones((3, 8), np.int32)) is None
    assert integer_factors(np.ones(4)) == (pytest.approx(np.ones(4)), 0)


@pytest.mark.parametrize(
    ("row", "channels", "groups"),
    [
        ([16] * 4 + [8] * 4, 4, 2),
        ([16] * 4 + [8] * 6, 4, 3),
        ([8] * 5, 5, 1),
        ([8, 16, 16], 1, 3),
        ([16] * 4 + [8] * 2 + [16] * 2, 2, 4),
    ],
)
def test_groups_are_as_large_as_may_be(row, channels, groups):
    factors = ProductFactors.of(np.array([row, [8] * len(row)], np.int32))
    assert (factors.channels, factors.groups) == (channels, groups)
    np.testing.assert_array_equal(factors.spread(len(row))[0], row)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_and_tiling_of_products_is_the_exact_sum(data):
    """Conformance: sum of m P 2^F, whatever is added first."""
    channels = data.draw(st.integers(1, 5))
    groups = data.draw(st.integers(1, 4))
    count = channels * groups - data.draw(st.integers(0, channels - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    m = rng.choice(FACTORS, (2, groups)).repeat(channels, axis=1)[:, :count]
    integers, fraction = integer_factors(m)
    factors = ProductFactors.of(integers)
    weight, x = rng.integers(-8, 8, (2, count)), rng.integers(-255, 256, count)
    exact = [
        sum(Fraction(m[k, c]) * int(weight[k, c]) * int(x[c]) * 2**fraction for c in range(count))
        for k in range(2)
    ]
    if factors is None:
        assert fraction == 0 or (integers == 1).all()
        return
    assert (factors.scaled(weight) @ x).tolist() == exact
    lift = factors.fraction
    pieces = [
        piece
        for first in range(0, count, factors.channels)
        for piece in np.array_split(np.arange(count)[first : first + factors.channels], 2)
    ]
    for k in range(2):
        total = 0
        for piece in rng.permutation(len(pieces)):
            lanes = pieces[piece]
            if not len(lanes):
                continue
            s = shifts_of(int(factors.factors[k, lanes[0] // factors.channels]), lift)
            product = int(weight[k, lanes] @ x[lanes])
            total += int(scale_product(product, lift, s.a, s.b, s.sign))
        assert total == exact[k]
