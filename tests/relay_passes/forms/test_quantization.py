"""Quantize and dequantize: written and read back, and what is only like them."""

import numpy as np
import pytest
from form_checks import SIGNED, assert_same, graph_of, run, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from relay_passes.forms.quantization import (
    Dequantize,
    Quantize,
    emit_dequantize,
    emit_quantize,
    match_dequantize,
    match_quantize,
)
from relay_passes.relax_nodes import constant, is_constant, is_scalar, op_of, shape_of
from targets.errors import UnsupportedError
from targets.rounding import FLOOR, HALF, HALF_UP, Rounding, RoundingMode, round_reals

REALS = tensor("x", (2, 3), "float64")
STEPS = st.floats(2.0**-20, 2.0**20).map(np.float64) | st.just(np.array([0.5, 0.25, 3.0]))


@settings(max_examples=40, deadline=None)
@given(STEPS, st.integers(-128, 255), SIGNED, st.sampled_from([HALF_UP, FLOOR]), st.data())
def test_a_written_quantize_is_read(step, zero_point, dtype, rounding, data):
    limits = np.iinfo(dtype)
    low, high = sorted(data.draw(st.tuples(*[st.integers(limits.min, limits.max)] * 2)))
    form = Quantize(REALS, np.asarray(step), zero_point, low, high, dtype, rounding)
    graph = graph_of([REALS], lambda emit: emit_quantize(emit, form, "y"))
    assert graph.outputs[0].name == "y"
    assert_same(match_quantize(graph, graph.outputs[0]), form)


@settings(max_examples=40, deadline=None)
@given(STEPS, st.integers(-128, 255), SIGNED | st.just("int32"))
def test_a_written_dequantize_is_read(step, zero_point, dtype):
    codes = tensor("q", (2, 3), dtype)
    form = Dequantize(codes, np.asarray(step), zero_point)
    graph = graph_of([codes], lambda emit: emit_dequantize(emit, form, "y"))
    assert graph.outputs[0].name == "y"
    assert_same(match_dequantize(graph, graph.outputs[0]), form)


def _written(emit, half=HALF, rounded=relax.op.floor, clipped=True, dtype="uint8"):
    t = emit(relax.op.divide(REALS, constant(0.5, "float64")))
    t = emit(rounded(emit(relax.op.add(t, constant(half, "float64")))))
    if clipped:
        t = emit(relax.op.clip(t, 0, 255))
    return emit(relax.op.astype(t, dtype))


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({}, True),
        ({"half": 0.5}, False),
        ({"half": [HALF] * 3}, False),
        ({"rounded": relax.op.round}, False),
        ({"clipped": False}, False),
        ({"dtype": "int32"}, False),
    ],
    ids=["as it is", "half", "by channel", "to even", "no clip", "no codes"],
)
def test_near_misses_are_no_quantize(changes, read):
    graph = graph_of([REALS], lambda emit: _written(emit, **changes))
    assert (match_quantize(graph, graph.outputs[0]) is not None) == read


def test_a_rounding_without_a_form_is_refused():
    form = Quantize(REALS, np.asarray(0.5), 0, 0, 255, "uint8", Rounding(RoundingMode.HALF_EVEN))
    with pytest.raises(UnsupportedError, match="y: rounds by HALF_EVEN, but real numbers only by"):
        graph_of([REALS], lambda emit: emit_quantize(emit, form, "y"))


BORDERED = Rounding(RoundingMode.BORDER, (bytes([1, 128, 255]), bytes([7, 8, 9])), -2)


@pytest.mark.parametrize(
    ("shape", "rows"), [((1, 2, 3, 3), 2), ((5, 2), 2), ((5, 7, 2), 2), ((4, 3), 1)], ids=str
)
def test_borders_are_written_and_read(shape, rows):
    """A row for each channel, or one; the numbers are those of the definition."""
    reals = tensor("x", shape, "float64")
    rounding = Rounding(RoundingMode.BORDER, BORDERED.borders[:rows], BORDERED.first)
    form = Quantize(reals, np.asarray(0.5), -1, -2, 1, "int8", rounding)
    graph = graph_of([reals], lambda emit: emit_quantize(emit, form, "y"))
    assert_same(match_quantize(graph, graph.outputs[0]), form)
    x = np.random.default_rng(0).uniform(-2, 2, shape)
    channels = 1 if len(shape) == 4 else len(shape) - 1
    whole = round_reals(np.moveaxis(x / 0.5, channels, -1), rounding, "y", -1)
    want = np.clip(np.moveaxis(whole, -1, channels) - 1, -2, 1)
    got = run([reals], lambda emit: emit_quantize(emit, form, "y"), x)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("fault", ["slack", "rows", "other"])
def test_near_misses_are_no_borders(fault):
    reals, other = tensor("x", (1, 2, 3, 3), "float64"), tensor("z", (1, 2, 3, 3), "float64")
    form = Quantize(reals, np.asarray(0.5), 0, -2, 1, "int8", BORDERED)

    def written(emit):
        def changed(expr, name=""):
            if op_of(expr) == "add" and fault == "slack" and is_scalar(expr.args[1]):
                expr = relax.op.add(expr.args[0], constant(0.25, "float64"))
            if op_of(expr) == "add" and fault == "rows" and shape_of(expr.args[1]) == (1, 2, 1, 1):
                moved = constant(np.reshape([0, 2], (1, 2, 1, 1)), "float64")
                expr = relax.op.add(expr.args[0], moved)
            if op_of(expr) == "add" and fault == "other" and not is_constant(expr.args[1]):
                expr = relax.op.add(other, expr.args[1])
            return emit(expr, name)

        return emit_quantize(changed, form, "y")

    graph = graph_of([reals, other], written)
    assert match_quantize(graph, graph.outputs[0]) is None


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_other_types_are_no_codes(dtype):
    codes = tensor("q", (2, 3), dtype)
    form = Dequantize(codes, np.asarray(0.5), 3)
    graph = graph_of([codes], lambda emit: emit_dequantize(emit, form, "y"))
    assert match_dequantize(graph, graph.outputs[0]) is None
