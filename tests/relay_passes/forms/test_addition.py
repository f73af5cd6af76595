"""Additions: written and read back, and what is only like one."""

import numpy as np
import pytest
from form_checks import SIGNED, assert_same, graph_of, tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from relay_passes.forms.addition import Addition, emit_addition, match_addition
from relay_passes.forms.requantize import Requantization, emit_requantization
from relay_passes.forms.term import Term
from targets.rounding import FLOOR, HALF_UP
from targets.scale import Scale

A, B = tensor("a", (2, 3), "uint8"), tensor("b", (2, 3), "int8")
LEFT = st.integers(0, 31).map(np.int64)
SHIFTS, ZERO_POINTS = st.integers(0, 47), st.integers(-128, 255)
ROUNDINGS = st.sampled_from([HALF_UP, FLOOR])


def _terms(codes):
    multiplier = st.sampled_from([1, 3, 65535])
    return st.builds(Term, st.just(codes), st.integers(-128, 255), multiplier, LEFT)


@settings(max_examples=60, deadline=None)
@given(_terms(A), _terms(B), st.booleans(), SHIFTS, ZERO_POINTS, SIGNED, ROUNDINGS)
def test_what_is_written_is_read(a, b, wide, shift, zero_point, dtype, rounding):
    rounding = rounding if shift else HALF_UP  # which are the same
    low, high = (-128, 127) if dtype == "int8" else (3, 200)
    wide = wide or shift > 31
    form = Addition("add", a, b, wide, np.int64(shift), zero_point, low, high, dtype, rounding)
    graph = graph_of([A, B], lambda emit: emit_addition(emit, form, "y"))
    assert [v.name for v, _ in graph.bindings if v.name == "add_sums"] == ["add_sums"]
    assert_same(match_addition(graph, graph.outputs[0]), form)


def test_one_side_that_is_no_tensor_is_refused():
    sums = tensor("sums", (2, 3), "int32")
    scale = Scale(0, (1,), (3,), 1, (2,))
    form = Requantization(sums, scale, (A, 5), False, 0, 0, 255, "uint8", HALF_UP)
    graph = graph_of([sums, A], lambda emit: emit_requantization(emit, form, "y"))
    assert match_addition(graph, graph.outputs[0]) == "what is rounded is no sum of two tensors"


@pytest.mark.parametrize("which", ["a", "b", "shift"])
def test_a_shift_per_channel_is_refused(which):
    shifts = {name: np.int64(1) for name in ("a", "b", "shift")}
    shifts[which] = np.array([1, 2, 3])
    a, b = Term(A, 0, 1, shifts["a"]), Term(B, 0, 1, shifts["b"])
    form = Addition("add", a, b, False, shifts["shift"], 0, 0, 255, "uint8", HALF_UP)
    graph = graph_of([A, B], lambda emit: emit_addition(emit, form, "y"))
    assert match_addition(graph, graph.outputs[0]) == "its shift differs by channel"


@pytest.mark.parametrize("shapes", [((2, 4, 4, 8), (2, 1, 1, 8)), ((2, 1, 8), (2, 5, 8))])
def test_tensors_that_broadcast_are_refused(shapes):
    a, b = (tensor(name, shape, "uint8") for name, shape in zip("ab", shapes, strict=True))
    terms = (Term(x, 0, 1, np.int64(1)) for x in (a, b))
    form = Addition("add", *terms, False, np.int64(1), 0, 0, 255, "uint8", HALF_UP)
    graph = graph_of([a, b], lambda emit: emit_addition(emit, form, "y"))
    assert match_addition(graph, graph.outputs[0]) == "it adds tensors of different shapes"
