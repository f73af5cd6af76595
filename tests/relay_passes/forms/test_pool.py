"""Pooling: written and read back with its border, and what is only like it."""

import pytest
from form_checks import SIGNED, assert_same, graph_of, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from relay_passes.forms.pool import MaxPool, emit_pool, match_pool

PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=40, deadline=None)
@given(SIGNED, PAIR, PAIR, st.tuples(*[st.integers(0, 2)] * 4), PAIR)
def test_what_is_written_is_read(dtype, kernel, strides, padding, dilation):
    x = tensor("x", (1, 9, 8, 3), dtype)
    pool = MaxPool(x, kernel, strides, padding, dilation)
    graph = graph_of([x], lambda emit: emit_pool(emit, pool, "y"))
    assert graph.outputs[0].name == "y"
    assert_same(match_pool(graph, graph.outputs[0]), pool)


X = tensor("x", (1, 9, 8, 3), "int8")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"layout": "NCHW"}, "held NCHW"),
        ({"padding": [1, 1, 1, 1]}, "pads by itself"),
        ({"ceil_mode": True}, "pads by itself"),
    ],
)
def test_near_misses_are_refused(options, reason):
    options = {"strides": [2, 2], "layout": "NHWC", **options}
    graph = graph_of([X], lambda emit: emit(relax.op.nn.max_pool2d(X, [2, 2], **options)))
    assert reason in match_pool(graph, graph.outputs[0])


def test_average_is_refused():
    graph = graph_of([X], lambda emit: emit(relax.op.nn.avg_pool2d(X, [2, 2], layout="NHWC")))
    assert match_pool(graph, graph.outputs[0]) == "is no maximum of codes"


@pytest.mark.parametrize("fill", [-128, -127])
@pytest.mark.parametrize("shared", [False, True])
def test_only_a_border_of_its_own_that_never_wins_belongs_to_it(fill, shared):
    padded = []

    def write(emit):
        padded.append(emit(relax.op.nn.pad(X, [0, 0, 1, 0, 0, 2, 0, 0], "constant", fill)))
        if shared:
            emit(relax.op.concat([padded[0], padded[0]], 1))
        return emit(relax.op.nn.max_pool2d(padded[0], [2, 2], layout="NHWC"))

    graph = graph_of([X], write)
    pool = match_pool(graph, graph.outputs[0])
    taken = fill == -128 and not shared
    assert pool.codes == (X if taken else padded[0])
    assert pool.padding == ((1, 0, 0, 2) if taken else (0, 0, 0, 0))
