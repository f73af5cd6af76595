"""Orders of elements: runs write each, and as few as there need be."""

import numpy as np
import pytest
from form_checks import written
from hypothesis import given, settings
from hypothesis import strategies as st

from relay_passes.forms.element_order import MOST_RUNS, runs_of


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.randoms())
def test_runs_write_any_order_of_loops(sizes, random):
    order = list(range(len(sizes)))
    random.shuffle(order)
    elements = np.arange(np.prod(sizes)).reshape(sizes).transpose(order)
    view, runs = runs_of(elements)
    array = np.random.default_rng(0).permutation(elements.size)
    np.testing.assert_array_equal(
        written(view, runs, array).reshape(-1), array[elements.reshape(-1)]
    )


def test_windows_are_a_run_for_each_of_a_band():
    elements = np.arange(28 * 28 * 96).reshape(4, 7, 4, 7 * 96).transpose(0, 2, 1, 3)
    _, runs = runs_of(elements)
    assert len(runs) == 4
    assert all(run.strides[2] == 1 and run.size[2] == 7 * 96 for run in runs)


def test_elements_that_lie_together_are_read_together():
    _, runs = runs_of(np.arange(6 * 5 * 4 * 300).reshape(6, 5, 4, 300).transpose(3, 1, 0, 2))
    assert all(1 in run.strides for run in runs)


@pytest.mark.parametrize(
    "elements",
    [
        np.random.default_rng(1).permutation(60),
        np.arange(2 * 17 * 19 * 23 * 2).reshape(2, 17, 19, 23, 2).transpose(4, 3, 2, 1, 0),
    ],
    ids=["no loops", "too many runs"],
)
def test_other_orders_have_no_runs(elements):
    assert runs_of(elements) is None
    assert MOST_RUNS < 17 * 19
