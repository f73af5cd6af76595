"""Softmax and norms of integers: what they approximate, and what they can't exceed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.errors import ArithmeticRangeError
from targets.rows import (
    LONGEST_NORM,
    LONGEST_ROW,
    RECIPROCAL_BITS,
    ROOT_BITS,
    SOFTMAX_BITS,
    derive_norm,
    exponentials,
    gain_step,
    norm_limit,
    norm_sums,
    softmax_bounds,
    softmax_sums,
)

ROWS = st.integers(1, 70).flatmap(
    lambda count: st.lists(st.integers(-128, 255), min_size=count, max_size=count)
)
STEPS = st.integers(-10, 3).map(lambda exponent: 2.0**exponent)
UNIT = 2.0**-SOFTMAX_BITS


def _softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@settings(max_examples=200, deadline=None)
@given(ROWS, STEPS)
def test_softmax_is_that_of_the_numbers(row, step):
    codes = np.clip(np.array(row), -128, 127)
    sums = softmax_sums(codes, exponentials(step))
    exact = _softmax(codes * step)
    # an exponential is off by 2^-16, a reciprocal by 2^-15 of itself
    assert np.abs(sums * UNIT - exact).max() < 2**-15 * (1 + len(row) * 2**-1)
    assert sums.min() >= 0
    assert sums.sum() <= 2**SOFTMAX_BITS
    assert (np.diff(sums[np.argsort(codes, kind="stable")]) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(ROWS, STEPS, st.integers(-50, 50))
def test_only_differences_count(row, step, shift):
    codes = np.clip(np.array(row), -128, 127)
    table = exponentials(step)
    np.testing.assert_array_equal(softmax_sums(codes + shift, table), softmax_sums(codes, table))
    rng = np.random.default_rng(len(row))
    gamma, beta = rng.normal(size=(2, len(row)))
    scale = derive_norm(gamma, beta, 1e-5, step, gain_step(gamma, beta))
    np.testing.assert_array_equal(norm_sums(codes + shift, scale), norm_sums(codes, scale))


def test_softmax_reaches_its_bound_and_no_further():
    bounds = softmax_bounds()
    one = np.array([[127] + [-128] * 99])
    assert softmax_sums(one, exponentials(8.0))[0, 0] > bounds.largest[0] * (1 - 2**-14)
    longest = np.zeros((1, LONGEST_ROW), np.int64)
    assert softmax_sums(longest, exponentials(1.0)).max() == 2 ** (SOFTMAX_BITS - 15) - 1
    assert bounds.smallest[0] == 0


@settings(max_examples=200, deadline=None)
@given(ROWS, STEPS, st.sampled_from([1e-3, 1e-5, 1e-6, 1e-12]), st.integers(0, 2**32 - 1))
def test_layer_norm_is_that_of_the_numbers(row, step, eps, seed):
    x = np.array(row)
    gamma, beta = np.random.default_rng(seed).normal(size=(2, len(row)))
    one = gain_step(gamma, beta)
    scale = derive_norm(gamma, beta, eps, step, one)
    sums = norm_sums(x, scale)
    real = x * step
    wanted = eps * (len(row) / step) ** 2 * 4**scale.lift
    least = 4 ** max(0, scale.lift + scale.fraction - RECIPROCAL_BITS)
    assert scale.epsilon == pytest.approx(max(wanted, least), abs=1)
    held = scale.epsilon / 4**scale.lift * (step / len(row)) ** 2
    exact = (real - real.mean()) / np.sqrt(real.var() + held) * gamma + beta
    got = sums * (one * 2.0**-scale.fraction)
    size = np.sqrt(len(row)) * np.abs(gamma).max() + np.abs(beta).max()
    assert np.abs(got - exact).max() < 2**-9 * size
    assert (sums >= scale.bounds.smallest).all()
    assert (sums <= scale.bounds.largest).all()


@settings(max_examples=200, deadline=None)
@given(ROWS, STEPS, st.sampled_from([1e-3, 1e-6, 1e-12]), st.sampled_from([-128, -5, 0, 127]))
def test_a_norm_without_the_mean_is_that_of_the_numbers(row, step, eps, zero_point):
    x = np.array(row)
    gamma, none = np.random.default_rng(len(row)).normal(size=len(row)), np.zeros(len(row))
    one = gain_step(gamma, none)
    scale = derive_norm(gamma, none, eps, step, one, centred=False, zero_point=zero_point)
    sums = norm_sums(x, scale)
    real = (x - zero_point) * step
    held = scale.epsilon / 4**scale.lift * (step / len(row)) ** 2
    exact = real / np.sqrt((real**2).mean() + held) * gamma
    size = np.sqrt(len(row)) * np.abs(gamma).max()
    assert np.abs(sums * (one * 2.0**-scale.fraction) - exact).max() < 2**-9 * size
    assert (sums >= scale.bounds.smallest).all()
    assert (sums <= scale.bounds.largest).all()


COUNTS = [1, 2, 3, 4, 5, 16, 64, 255, 256, 1000, 1024, 4096, LONGEST_ROW, LONGEST_ROW + 1]
COUNTS += [LONGEST_NORM // 2]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("zero_point", [-128, 0, 127])
def test_no_code_normalized_without_the_mean_exceeds_its_limit(count, zero_point):
    ones, zeros = np.ones(count), np.zeros(count)
    scale = derive_norm(ones, zeros, 1e-12, 1.0, 1.0, centred=False, zero_point=zero_point)
    for code in (-128, 127, zero_point + 1, zero_point - 1):
        row = np.full(count, zero_point)
        row[0] = code
        n = norm_sums(row, scale)
        assert np.abs(n).max() <= norm_limit(count)
        largest = count**2 * (code - zero_point) ** 2 << 2 * scale.lift
        assert largest + scale.epsilon < 1 << ROOT_BITS
    np.testing.assert_array_equal(norm_sums(np.full(count, zero_point), scale), 0)


@pytest.mark.parametrize("count", [*COUNTS, 200_704, LONGEST_NORM - 1, LONGEST_NORM])
def test_no_normalized_code_exceeds_its_limit(count):
    """One that stands out is the largest that there is; rows of two values come close."""
    scale = derive_norm(np.ones(count), np.zeros(count), 1e-12, 1.0, 1.0)
    for least, most in ((0, 1), (0, 255), (-128, 127), (3, 4)):
        row = np.full(count, least)
        row[0] = most
        n = norm_sums(row, scale)
        assert np.abs(n).max() <= norm_limit(count)
        if count > 4:
            assert abs(n[0] / 2.0**scale.fraction - np.sqrt(count - 1)) < 0.01 * np.sqrt(count)
    np.testing.assert_array_equal(norm_sums(np.full(count, 77), scale), 0)


def test_what_does_not_fit_is_refused_in_words():
    ones = np.ones(LONGEST_NORM + 1)
    with pytest.raises(ArithmeticRangeError, match="at most 262144 fit; split them"):
        derive_norm(ones, ones, 1e-5, 1.0, 1.0)
    with pytest.raises(ArithmeticRangeError, match="at most 131072 fit; split them"):
        derive_norm(ones[:-1], ones[:-1], 1e-5, 1.0, 1.0, centred=False)
    with pytest.raises(ArithmeticRangeError, match="too much for them; calibrate"):
        derive_norm(np.ones(64), np.zeros(64), 1.0, 2.0**-30, 1.0)
    with pytest.raises(ArithmeticRangeError, match="its bias reaches 1e"):
        derive_norm(np.ones(4), np.full(4, 1e9), 1e-5, 1.0, 2.0**-14)
