"""The accumulator's bounds hold for every input, and some input reaches them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.errors import ArithmeticRangeError
from tvmq.plan.overflow import bound_sums, prove_accumulator
from tvmq.plan.plan import RequantizePlan, ValuePlan


def _value(low, high, zero=0):
    return ValuePlan(1.0, zero, low, high, low < 0, 8, "")


CODES = st.sampled_from([(0, 255, 0), (-128, 127, 0), (0, 255, 40), (0, 15, 3), (40, 255, 40)])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), CODES, st.integers(1, 60))
def test_constructed_worst_case_reaches_the_bound(seed, codes, size):
    rng = np.random.default_rng(seed)
    low, high, zero = codes
    w, bias = rng.integers(-127, 128, (3, size)), rng.integers(-(10**6), 10**6, 3)
    bounds = bound_sums(w, bias, _value(low, high, zero))
    for k in range(3):
        most = np.where(w[k] > 0, high, low) - zero
        least = np.where(w[k] > 0, low, high) - zero
        assert w[k] @ most + bias[k] == bounds.largest[k]
        assert w[k] @ least + bias[k] == bounds.smallest[k]
        x = rng.integers(low, high + 1, size)
        assert bounds.smallest[k] <= w[k] @ (x - zero) + bias[k] <= bounds.largest[k]
        assert np.abs(np.cumsum(w[k] * x)).max() <= bounds.partial[k]


def test_proof_is_tight():
    """A worst input reaches 90 % of the bound, residual, fraction and rounding included."""
    rng = np.random.default_rng(0)
    w, bias, value = rng.integers(-127, 128, (4, 288)), rng.integers(-999, 999, 4), _value(0, 255)
    plan = RequantizePlan(2, (1,), (9,), 1, (7,))
    bounds = bound_sums(w, bias, value)
    proof = prove_accumulator("conv", bounds, plan, value)
    reached = [
        (((w[k] @ np.where(w[k] > 0, 255, 0) + bias[k]) << 2) + (255 << 7) + 256) for k in range(4)
    ]
    reached += [-((w[k] @ np.where(w[k] < 0, 255, 0) + bias[k]) << 2) for k in range(4)]
    assert 0.9 * proof.total <= max(reached) <= proof.total


def test_refuses_what_does_not_fit_and_accepts_one_less():
    w, value = np.full((1, 1), 1), _value(0, 255)
    plan = RequantizePlan(0, (1,), (0,))
    fits = bound_sums(w, np.array([2**31 - 1 - 255]), value)
    assert prove_accumulator("conv", fits, plan).total == 2**31 - 1
    with pytest.raises(ArithmeticRangeError, match="conv can reach 2147483648 in output channel 0"):
        prove_accumulator("conv", bound_sums(w, np.array([2**31 - 255]), value), plan)


@pytest.mark.parametrize(
    "plan",
    [RequantizePlan(1, (1,), (0,)), RequantizePlan(0, (1,), (0,), 1, (23,)),
     RequantizePlan(0, (1,), (31,))],
    ids=["fraction", "residual", "rounding"],
)  # fmt: skip
def test_counts_everything_held_in_int32(plan):
    value = _value(0, 255)
    bounds = bound_sums(np.full((1, 1), 1), np.array([2**30 + 2**25]), value)
    residual = value if plan.residual_shift else None
    with pytest.raises(ArithmeticRangeError):
        prove_accumulator("conv", bounds, plan, residual)


def test_folded_zero_point_counts():
    """The int32 sum holds raw codes, which can be larger than the centred ones."""
    bounds = bound_sums(np.full((1, 10), 100), np.zeros(1, np.int64), _value(0, 255, 255))
    assert bounds.largest[0] == 0
    assert bounds.partial[0] == 255 * 1000


def test_counts_a_negative_residual():
    bounds = bound_sums(np.full((1, 1), 1), np.array([-(2**30) - 2**25]), _value(0, 255))
    plan = RequantizePlan(0, (1,), (0,), 1, (23,))
    with pytest.raises(ArithmeticRangeError):
        prove_accumulator("conv", bounds, plan, _value(-128, 127))
