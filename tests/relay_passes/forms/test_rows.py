"""Softmax and layer norm: written and read back, what they mean, and what is only like one."""

import numpy as np
import pytest
from form_checks import SIGNED, assert_same, graph_of, module_of, run, tensor
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tvm import relax

from relay_passes.forms.norm import Norm, emit_norm, floats_of_root, match_norm
from relay_passes.forms.softmax import Softmax, emit_softmax, match_softmax
from relay_passes.passes.verify_integer import verify_integer
from relay_passes.relax_nodes import constant, dtype_of, is_var, op_of, shape_of
from targets.errors import UnsupportedError
from targets.rows import LONGEST_ROW, derive_norm, exponentials, gain_step, norm_sums, softmax_sums

SIZES = st.integers(1, 5)


def _random(param, seed):
    limits = np.iinfo(dtype_of(param))
    codes = np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape_of(param))
    return codes.astype(limits.dtype)


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIZES, SIZES, SIZES), SIGNED, st.integers(-9, 0), st.integers(0, 2**32 - 1))
def test_a_softmax_is_read_and_means_it(sizes, dtype, exponent, seed):
    tokens, heads, count = sizes
    codes = tensor("x", (2, tokens, heads * count), dtype)
    form = Softmax("soft", codes, heads, exponentials(2.0**exponent))
    graph = graph_of([codes], lambda emit: emit_softmax(emit, form))
    assert graph.outputs[0].name == "soft_sums"
    assert_same(match_softmax(graph, graph.outputs[0]), form)
    x = _random(codes, seed)
    want = softmax_sums(x.reshape(2, tokens, heads, count), form.table).reshape(x.shape)
    got = run([codes], lambda emit: emit_softmax(emit, form), x)
    np.testing.assert_array_equal(got, want)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(SIZES, st.integers(1, 40)),
    SIGNED,
    st.integers(-9, 0),
    st.integers(0, 2**32 - 1),
    st.sampled_from([{}, {"centred": False}, {"centred": False, "zero_point": 3}]),
)
@example((1, LONGEST_ROW + 1), "uint8", -5, 0, {})
@example((1, LONGEST_ROW + 1), "int8", -5, 0, {"centred": False})
def test_a_norm_is_read_and_means_it(sizes, dtype, exponent, seed, kind):
    tokens, count = sizes
    codes = tensor("x", (2, tokens, count), dtype)
    gamma, beta = np.random.default_rng(seed).normal(size=(2, count))
    scale = derive_norm(gamma, beta, 1e-5, 2.0**exponent, gain_step(gamma, beta), **kind)
    form = Norm("norm", codes, scale)
    graph = graph_of([codes], lambda emit: emit_norm(emit, form))
    assert graph.outputs[0].name == "norm_sums"
    assert_same(match_norm(graph, graph.outputs[0]), form)
    x = _random(codes, seed)
    got = run([codes], lambda emit: emit_norm(emit, form), x)
    np.testing.assert_array_equal(got, norm_sums(x, scale))


TOKENS = tensor("x", (2, 3, 8), "int8")
FORMS = {
    "softmax": (
        lambda emit: emit_softmax(emit, Softmax("y", TOKENS, 2, exponentials(0.25))),
        match_softmax,
    ),
    "norm": (
        lambda emit: emit_norm(
            emit, Norm("y", TOKENS, derive_norm(np.ones(8), np.ones(8), 1e-5, 0.5, 2.0**-10))
        ),
        match_norm,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_row_operator_of_which_one_operator_is_another_is_none(name):
    """Wherever a number is negated on the way, what is left is no form, or another one."""
    write, match = FORMS[name]
    graph = graph_of([TOKENS], write)
    form = match(graph, graph.outputs[0])
    assert not isinstance(form, str)
    whole = [var for var, value in graph.bindings if op_of(value) and dtype_of(var)[:3] == "int"]
    for changed in whole:
        new = graph_of([TOKENS], lambda emit, at=changed: _negated(emit, graph, at))
        assert isinstance(match(new, new.outputs[0]), str), changed.name


def _negated(emit, graph, at):
    """The function again, one of its values negated."""
    new = {}
    for var, value in graph.bindings:
        if not op_of(value):
            continue
        args = [new.get(arg, arg) if is_var(arg) else arg for arg in value.args]
        new[var] = emit(relax.Call(value.op, args, value.attrs, value.ty_args), var.name)
        if var == at:
            new[var] = emit(relax.op.bitwise_not(new[var]))
    return new[graph.outputs[0]]


def test_the_floats_of_a_root_are_the_only_ones_between_integers():
    write, _ = FORMS["norm"]
    graph = graph_of([TOKENS], write)
    verify_integer(module_of([TOKENS], lambda emit: _as_output(emit, write(emit))))
    (root,) = (var for var, _ in graph.bindings if floats_of_root(graph, var))
    assert [dtype_of(var) for var in floats_of_root(graph, root)] == ["float64"] * 3

    def other(emit):
        x = emit(relax.op.exp(emit(relax.op.astype(write(emit), "float64"))))
        return _as_output(emit, emit(relax.op.astype(x, "int32")))

    with pytest.raises(UnsupportedError, match="still computed in floating point"):
        verify_integer(module_of([TOKENS], other))


def _as_output(emit, sums):
    real = emit(relax.op.astype(sums, "float64"))
    return emit(relax.op.multiply(real, constant(0.5, "float64")))
