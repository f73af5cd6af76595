"""The bounds of sums hold for every input, and some input reaches them."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from targets.arithmetic import INT32_MAX
from targets.scale import AddScale, Scale
from targets.sum_bounds import (
    CodeRange,
    add_needs_int64,
    bound_products,
    bound_sums,
    held_bound,
    needs_int64,
    neighbours_fit_int16,
)

CODES = st.sampled_from([(0, 255, 0), (-128, 127, 0), (0, 255, 40), (0, 15, 3), (40, 255, 40)])
WEIGHTS = hnp.arrays(np.int8, st.tuples(st.integers(1, 3), st.integers(1, 9)))
BYTES = CodeRange(0, 255)


def _folded(weight, bias, zero_point):
    """The bias of sums of raw codes."""
    return bias - zero_point * weight.reshape(len(weight), -1).sum(axis=1)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), CODES, st.integers(1, 60))
def test_constructed_worst_case_reaches_the_bound(seed, codes, size):
    rng = np.random.default_rng(seed)
    low, high, zero = codes
    w, bias = rng.integers(-127, 128, (3, size)), rng.integers(-(10**6), 10**6, 3)
    bounds = bound_sums(w, _folded(w, bias, zero), low, high)
    for k in range(3):
        most = np.where(w[k] > 0, high, low) - zero
        least = np.where(w[k] > 0, low, high) - zero
        assert w[k] @ most + bias[k] == bounds.largest[k]
        assert w[k] @ least + bias[k] == bounds.smallest[k]
        x = rng.integers(low, high + 1, size)
        assert bounds.smallest[k] <= w[k] @ (x - zero) + bias[k] <= bounds.largest[k]
        assert np.abs(np.cumsum(w[k] * x)).max() <= bounds.partial[k]


@given(
    WEIGHTS,
    st.lists(st.integers(-(2**20), 2**20), min_size=3, max_size=3),
    st.tuples(st.integers(-128, 255), st.integers(-128, 255)).map(sorted),
    st.data(),
)
def test_some_partial_sum_reaches_the_bound_and_none_exceeds_it(weight, bias, codes, data):
    low, high = codes
    rows = weight.astype(np.int64)
    bias = np.array(bias[: len(rows)])
    reach = bound_sums(weight, bias, low, high).reach

    def reached(x):
        """Largest |partial sum|, with and without the bias, of one input per row."""
        partial = np.concatenate([np.zeros((len(rows), 1), int), np.cumsum(rows * x, 1)], 1)
        return max(np.abs(partial[:, 1:]).max(), np.abs(partial[:, -1] + bias).max())

    x = data.draw(hnp.arrays(np.int64, rows.shape, elements=st.integers(low, high)))
    order = data.draw(st.permutations(range(rows.shape[1])))
    assert reached(x) <= reach
    rows, x = rows[:, order], x[:, order]
    assert reached(x) <= reach

    # The adversary: each product at its largest (or smallest), those that would cancel come last.
    best = np.abs(bias).max()
    for sign in (1, -1):
        x = np.where(sign * rows > 0, high, low)
        products = np.sort(sign * rows * x, axis=1)[:, ::-1]
        partial = np.cumsum(products, axis=1)
        best = max(best, partial.max(), np.abs(sign * products.sum(1) + bias).max())
    assert best == reach


def test_products_at_the_lowest_code_count_where_the_whole_sum_is_smaller():
    """Before its bias of -1 is added, the sum of one product is one larger than the whole."""
    assert bound_sums(np.array([[-127]]), np.array([-1]), -128, 0).reach == 127 * 128


def test_the_bound_is_tight():
    """A worst input reaches 90 % of the bound, residual, fraction and rounding included."""
    rng = np.random.default_rng(0)
    w, bias = rng.integers(-127, 128, (4, 288)), rng.integers(-999, 999, 4)
    scale = Scale(2, (1,), (9,), 1, (7,))
    held = held_bound(bound_sums(w, bias, 0, 255), scale, BYTES).max()
    reached = [
        (((w[k] @ np.where(w[k] > 0, 255, 0) + bias[k]) << 2) + (255 << 7) + 256) for k in range(4)
    ]
    reached += [-((w[k] @ np.where(w[k] < 0, 255, 0) + bias[k]) << 2) for k in range(4)]
    assert 0.9 * held <= max(reached) <= held


RANGES = st.tuples(*[st.integers(-128, 255)] * 3).map(
    lambda n: CodeRange(min(n[:2]), max(n[:2]), n[2])
)


@given(RANGES, RANGES, st.integers(1, 40), st.integers(-(2**20), 2**20), st.data())
def test_some_product_of_two_tensors_reaches_the_bound_and_none_exceeds_it(
    left, right, count, bias, data
):
    bounds = bound_products(left, right, count, np.array([bias]))

    def partial(a, b):
        return np.cumsum((a - left.zero_point) * (b - right.zero_point))

    def codes(codes):
        drawn = st.integers(codes.low, codes.high)
        return np.array(data.draw(st.lists(drawn, min_size=count, max_size=count)))

    sums = partial(codes(left), codes(right))
    assert bounds.smallest <= sums[-1] + bias <= bounds.largest
    assert np.abs(sums).max() <= bounds.partial
    # The adversary: all products are the same one, of two ends of the ranges.
    ways = [
        partial(np.full(count, a), np.full(count, b))
        for a in (left.low, left.high)
        for b in (right.low, right.high)
    ]
    assert min(way[-1] for way in ways) + bias == bounds.smallest
    assert max(way[-1] for way in ways) + bias == bounds.largest
    assert max(abs(bias), *(np.abs(way).max() for way in ways)) == bounds.partial


def test_products_of_bytes_at_their_extremes():
    """-128 * -128 is further from 0 than any product of the other signs."""
    codes = CodeRange(-128, 127)
    assert bound_products(codes, codes, 131071, np.zeros(1, int)).reach == 2**31 - 2**14
    assert bound_products(codes, codes, 131072, np.zeros(1, int)).reach == 2**31
    far = bound_products(CodeRange(0, 255, 255), CodeRange(0, 255), 2, np.array([5]))
    assert (far.smallest[0], far.largest[0], far.partial[0]) == (5 - 2 * 255**2, 5, 2 * 255**2)


def test_int32_is_used_to_its_end_and_no_further():
    w, scale = np.full((1, 1), 1), Scale(0, (1,), (0,))
    fits = bound_sums(w, np.array([INT32_MAX - 255]), 0, 255)
    assert held_bound(fits, scale).max() == INT32_MAX
    assert not needs_int64(fits, scale, None, 0)
    assert needs_int64(bound_sums(w, np.array([INT32_MAX - 254]), 0, 255), scale, None, 0)


@pytest.mark.parametrize(
    ("scale", "zero_point"),
    [
        (Scale(1, (1,), (0,)), 0),
        (Scale(0, (1,), (0,), 1, (23,)), 0),
        (Scale(0, (1,), (31,)), 0),
        (Scale(0, (1,), (0,)), 2**30),
    ],
    ids=["fraction", "residual", "rounding", "zero point"],
)
def test_counts_everything_held_in_int32(scale, zero_point):
    bounds = bound_sums(np.full((1, 1), 1), np.array([2**30 + 2**25]), 0, 255)
    residual = BYTES if scale.residual_shift else None
    assert held_bound(bounds, scale, residual, zero_point).max() > INT32_MAX


def test_multipliers_take_the_rest_to_64_bits():
    bounds = bound_sums(np.full((1, 1), 1), np.array([2**30]), 0, 255)
    scale = Scale(0, (3,), (31,))
    assert held_bound(bounds, scale).max() == 2**30 + 255
    assert needs_int64(bounds, scale, None, 0)


def test_raw_codes_count():
    """The 32-bit sum holds raw codes, which can be larger than the centred ones."""
    w = np.full((1, 10), 100)
    bounds = bound_sums(w, _folded(w, np.zeros(1, np.int64), 255), 0, 255)
    assert bounds.largest[0] == 0
    assert bounds.partial[0] == 255 * 1000


def test_counts_a_negative_residual():
    bounds = bound_sums(np.full((1, 1), 1), np.array([-(2**30) - 2**25]), 0, 255)
    scale = Scale(0, (1,), (0,), 1, (23,))
    assert held_bound(bounds, scale, CodeRange(-128, 127)).max() > INT32_MAX


@pytest.mark.parametrize(("left", "wide"), [(22, False), (23, True)])
def test_sums_of_two_values(left, wide):
    assert add_needs_int64(AddScale((1, 1), (left, left), 3), BYTES, BYTES, 0) == wide


@settings(deadline=None)
@given(WEIGHTS, CODES)
def test_neighbours_fit_where_no_pair_of_codes_goes_beyond(weight, codes):
    low, high, _ = codes
    padded = np.pad(weight.astype(int), ((0, 0), (0, weight.shape[1] % 2)))
    ends = [
        a * x + b * y for a, b in padded.reshape(-1, 2) for x in (low, high) for y in (low, high)
    ]
    fits = min(ends) >= -(2**15) and max(ends) < 2**15
    assert neighbours_fit_int16(weight, low, high) == fits


def test_neighbours_of_large_layers_take_less_memory_than_the_layer():
    weight = np.tile(np.array([100, 28], np.int8), (4096, 1024))
    tracemalloc.start()
    assert neighbours_fit_int16(weight, 0, 255)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < weight.nbytes
    weight[-1, -1] = 29
    assert not neighbours_fit_int16(weight, 0, 255)
