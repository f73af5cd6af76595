"""Ratios of steps as 16-bit multipliers and shifts, exactly."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.errors import ArithmeticRangeError
from tvmq.plan.integers import (
    TooFineError,
    addition,
    as_multiplier,
    requantize,
    snap_operand_step,
    snap_output_step,
    snap_weight_step,
)

STEPS = st.floats(1e-6, 1e3)


def _exact(ratio):
    multiplier, shift = as_multiplier(ratio)
    return abs(Fraction(multiplier) / Fraction(2) ** shift / ratio - 1) < Fraction(1, 2**50)


@given(STEPS, STEPS, STEPS)
def test_snapped_steps_are_exact_and_close(source, weight, output):
    snapped = snap_weight_step(weight, source, output)
    assert abs(snapped / weight - 1) <= 2.0**-16
    assert _exact(Fraction(source) * Fraction(snapped) / Fraction(output))
    assert snap_weight_step(snapped, source, output) == snapped


@given(STEPS, STEPS)
def test_additions_snap_either_side(operand, output):
    other = snap_output_step(output, operand)
    assert _exact(Fraction(operand) / Fraction(other))
    assert abs(other / output - 1) <= 2.0**-15
    mine = snap_operand_step(operand, output)
    assert _exact(Fraction(mine) / Fraction(output))
    assert snap_output_step(other, operand) == other


@pytest.mark.parametrize("exponent", [-20, -1, 0, 3])
def test_powers_of_two_have_no_multiplier(exponent):
    assert as_multiplier(Fraction(2) ** exponent) == (1, -exponent)


@given(st.fractions(Fraction(1, 10**9), 10**6))
def test_multiplier_range(ratio):
    multiplier, _ = as_multiplier(ratio)
    assert multiplier == 1 or 2**15 <= multiplier < 2**16


def test_requantize_per_channel_with_a_residual():
    plan = requantize(2.0**-5, [2.0**-8, 2.0**-10], 2.0**-4, 2.0**-6)
    assert plan.shift == (9, 11)
    assert plan.residual_shift == (7, 9)  # the residual over the sums' steps: 2^-6 / 2^-13
    assert (plan.multiplier, plan.fraction) == ((1, 1), 0)


def test_fraction_where_the_residual_is_finer_than_the_sums():
    plan = requantize(1.0, [1.0], 4.0, 2.0**-3)
    assert (plan.fraction, plan.shift, plan.residual_shift) == (3, (5,), (0,))


def test_fraction_where_the_output_is_finer_than_the_sums():
    """Coarse weights, as 2-bit ones are: a left shift of the sums stands for a negative one."""
    plan = requantize(1.0, [1.0, 2.0], 2.0**-5)
    assert (plan.fraction, plan.shift) == (6, (1, 0))
    with_residual = requantize(1.0, [1.0], 2.0**-5, 2.0**-3)
    assert (with_residual.fraction, with_residual.shift) == (5, (0,))
    assert with_residual.residual_shift == (2,)


def test_steps_that_are_too_fine_name_the_value():
    with pytest.raises(TooFineError) as error:
        requantize(1.0, [1.0], 2.0**-16)
    assert error.value.which == "output"
    with pytest.raises(TooFineError) as error:
        requantize(1.0, [1.0], 1.0, 2.0**-16)
    assert error.value.which == "residual"


@pytest.mark.parametrize(
    ("weights", "message"),
    [([2.0**-48], "right shift 48"), ([2.0**-4, 2.0**-20], "differ by more than 15")],
)
def test_shifts_outside_their_fields(weights, message):
    with pytest.raises(ArithmeticRangeError, match=message):
        requantize(1.0, weights, 1.0)


@given(st.integers(-8, 8), st.integers(-8, 8), st.integers(-200, 200), st.integers(-200, 200))
def test_addition_is_exact(ea, eb, a, b):
    plan = addition(2.0**ea, 2.0**eb, 1.0)
    total = sum((x * m) << k for x, m, k in zip((a, b), plan.multipliers, plan.shifts, strict=True))
    assert Fraction(total, 2**plan.shift) == a * Fraction(2) ** ea + b * Fraction(2) ** eb
