"""Requantizations: written and read back, equal to the formula, and what is only like one."""

import numpy as np
import pytest
from form_checks import SIGNED, assert_same, graph_of, run, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from relay_passes.forms.product import Product, emit_product, match_product
from relay_passes.forms.requantize import (
    Requantization,
    emit_requantization,
    match_requantization,
)
from relay_passes.forms.rounding import match_rounded
from relay_passes.relax_nodes import constant, dtype_of, number, op_of
from targets.arithmetic import requantize
from targets.errors import UnsupportedError
from targets.rounding import FLOOR, HALF_UP, Rounding, RoundingMode
from targets.scale import Scale

K = 3
SUMS = tensor("sums", (2, K), "int32")
RESIDUAL = tensor("r", (2, K), "uint8")


@st.composite
def requantizations(draw):
    def channels(low, high):
        return tuple(draw(st.lists(st.integers(low, high), min_size=K, max_size=K)))

    multiplier = draw(st.sampled_from([(1,) * K, channels(1, 65535)]))
    residual = draw(st.none() | st.integers(-128, 255))
    factor, left = 1, ()
    if residual is not None:
        factor, left = draw(st.sampled_from([1, 3, 65535])), channels(0, 31)
    scale = Scale(draw(st.integers(0, 15)), multiplier, channels(0, 47), factor, left)
    wide = scale.multiplies or max(scale.shift) > 31 or draw(st.booleans())
    dtype = draw(SIGNED)
    ends = sorted(draw(st.tuples(*[st.integers(*_limits(dtype))] * 2)))
    added = None if residual is None else (RESIDUAL, residual)
    zero_point = draw(st.integers(-128, 255))
    rounding = draw(st.sampled_from([HALF_UP, FLOOR])) if any(scale.shift) else HALF_UP
    return Requantization(SUMS, scale, added, wide, zero_point, *ends, dtype, rounding)


def _limits(dtype):
    return (-128, 127) if dtype == "int8" else (0, 255)


@settings(max_examples=100, deadline=None)
@given(requantizations())
def test_what_is_written_is_read(form):
    graph = graph_of([SUMS, RESIDUAL], lambda emit: emit_requantization(emit, form, "y"))
    assert graph.outputs[0].name == "y"
    assert_same(match_requantization(graph, graph.outputs[0]), form)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=K, max_size=K).filter(any),
    st.sampled_from([1, K]),
    st.binary(min_size=3 * K, max_size=3 * K),
    st.integers(-4, 3),
    st.integers(0, 99),
)
def test_borders_are_written_and_read(shifts, rows, table, zero_point, seed):
    """The numbers are those of the definition, at every shift."""
    borders = tuple(table[3 * row : 3 * row + 3] for row in range(rows))
    rounding = Rounding(RoundingMode.BORDER, borders, -2)
    scale = Scale(0, (1,) * K, tuple(shifts), 1, ())
    wide = max(shifts) > 30
    form = Requantization(SUMS, scale, None, wide, zero_point, -2, 1, "int8", rounding)

    def write(emit):
        return emit_requantization(emit, form, "y")

    graph = graph_of([SUMS], write)
    assert_same(match_requantization(graph, graph.outputs[0]), form)
    reach = np.minimum(6 << np.array(shifts, np.int64), (1 << 31) - 1)
    sums = np.random.default_rng(seed).integers(-reach, reach + 1, (2, K)).astype(np.int32)
    ends = {"zero_point": zero_point, "low": -2, "high": 1}
    want = requantize(sums, 0, np.array(shifts), rounding=rounding, **ends)
    np.testing.assert_array_equal(run([SUMS], write, sums), want)


@pytest.mark.parametrize("fault", ["clip", "mask", "place", "level"])
def test_near_misses_are_no_borders(fault):
    rounding = Rounding(RoundingMode.BORDER, (bytes([9, 8, 7]),) * K, 0)
    scale = Scale(0, (1,) * K, (3, 9, 12), 1, ())
    form = Requantization(SUMS, scale, None, False, 0, 0, 3, "uint8", rounding)

    def written(emit):
        def changed(expr, name=""):
            op = op_of(expr)
            if op == "clip" and fault == "clip" and number(expr.args[2]) == 2:
                expr = relax.op.clip(expr.args[0], 0, 1)
            if op == "bitwise_and" and fault == "mask":
                expr = relax.op.bitwise_and(expr.args[0], constant([7, 255, 127], "int32"))
            if op == "add" and fault == "place" and dtype_of(expr.args[0]) == "int64":
                expr = relax.op.add(expr.args[0], constant([0, 3, 5], "int64"))
            if op == "clip" and fault == "level" and number(expr.args[2]) == 2:
                expr = relax.op.clip(SUMS, 0, 2)
            return emit(expr, name)

        return emit_requantization(changed, form, "y")

    graph = graph_of([SUMS], written)
    found = match_requantization(graph, graph.outputs[0])
    assert isinstance(found, str) or found.rounding != rounding


def _written(emit, **changes):
    """The Relax of a requantization, each part of it replaceable."""
    t = emit(relax.op.add(SUMS, constant([4, 8, 16], "int32")))
    for name, build in {
        "half": lambda t: t,
        "shift": lambda t: relax.op.right_shift(t, constant([3, 4, 5], "int32")),
        "clip": lambda t: relax.op.clip(t, 0, 255),
        "cast": lambda t: relax.op.astype(t, "uint8"),
    }.items():
        t = emit(changes.get(name, build)(t))
    return t


def test_the_parts_together_are_one():
    graph = graph_of([SUMS], _written)
    found = match_requantization(graph, graph.outputs[0])
    assert (found.scale.shift, found.rounding) == ((3, 4, 5), HALF_UP)


@pytest.mark.parametrize(
    "half",
    [
        lambda _: SUMS,
        lambda _: relax.op.add(SUMS, constant([4, 8, 15], "int32")),
        lambda _: relax.op.add(SUMS, SUMS),
    ],
    ids=["none", "another", "variable"],
)
def test_without_its_half_it_is_the_floor(half):
    """Of whatever is shifted."""
    graph = graph_of([SUMS], lambda emit: _written(emit, half=half))
    assert match_rounded(graph, graph.outputs[0]).rounding == FLOOR


@pytest.mark.parametrize("rounding", [HALF_UP, FLOOR], ids=["half up", "floor"])
def test_a_bias_of_just_a_half_is_no_half(rounding):
    x = tensor("x", (2, 5), "uint8")
    bias = np.array([4, 8, 16], np.int32)
    product = Product("linear", x, np.ones((3, 1, 1, 5), np.int8), bias, dense=True)

    def write(emit):
        sums, scale = emit_product(emit, product), Scale(0, (1,) * 3, (3, 4, 5))
        form = Requantization(sums, scale, None, False, 0, 0, 255, "uint8", rounding)
        return emit_requantization(emit, form, "y")

    graph = graph_of([x], write)
    found = match_requantization(graph, graph.outputs[0])
    assert found.rounding == rounding
    assert_same(match_product(graph, found.sums), product)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shift": lambda t: relax.op.right_shift(t, t)}, "its right shift is no constant"),
        ({"clip": lambda t: t}, "not clipped"),
        ({"clip": lambda t: relax.op.clip(t, 0, 256)}, "leaves more than uint8 holds"),
        ({"clip": lambda t: relax.op.clip(t, -1, 255)}, "leaves more than uint8 holds"),
    ],
    ids=["shift", "no clip", "high", "low"],
)
def test_near_misses_are_refused(changes, reason):
    graph = graph_of([SUMS], lambda emit: _written(emit, **changes))
    assert reason in match_requantization(graph, graph.outputs[0])


def test_what_is_added_must_be_codes():
    def write(emit):
        total = emit(relax.op.add(SUMS, emit(relax.op.multiply(SUMS, SUMS))))
        return emit(relax.op.astype(emit(relax.op.clip(total, 0, 255)), "uint8"))

    graph = graph_of([SUMS], write)
    assert "no quantized tensor" in match_requantization(graph, graph.outputs[0])


EDGE = [-(2**31) + 1, -1, 0, 1, 2**31 - 1]
NUMBERS = st.tuples(
    st.sampled_from([0, 1, 15]),
    st.sampled_from([1, 3, 65535]),
    st.sampled_from([0, 1, 16, 30, 31, 47]),
    st.sampled_from([0, 1, 65535]),  # 0: no residual
    st.sampled_from([0, 31]),
    st.sampled_from([0, 128, 255]),
)


@settings(max_examples=60, deadline=None)
@given(NUMBERS, st.sampled_from([("int8", -128, 127, -3), ("uint8", 0, 255, 250)]), st.data())
def test_the_relax_is_the_formula_at_its_limits(numbers, codes, data):
    """Multipliers 1 and 65535, shifts 0 and 47, fraction 15, residual shift 31: in big integers."""
    fraction, multiplier, shift, n, left, zero = numbers
    dtype, low, high, zero_point = codes
    # what is proven of the sums; small ones leave room for all else in int32
    limit = (data.draw(st.sampled_from([2**31, 2**20])) - 1) >> fraction
    acc = [max(-limit, min(limit, a)) for a in EDGE]
    acc += data.draw(st.lists(st.integers(-limit, limit), min_size=3, max_size=3))
    # sums around an output code and around a tie, where there are any
    unit = -(-(1 << shift) // (multiplier << fraction))
    acc += [max(-limit, min(limit, a)) for a in (unit // 2, -(unit // 2), 7 * unit, -7 * unit - 1)]
    codes_r = data.draw(st.lists(st.integers(0, 255), min_size=len(acc), max_size=len(acc)))
    most = (limit << fraction) + (n * 255 << left) + (1 << shift >> 1) + 255
    wide = multiplier != 1 or n > 1 or most >= 2**31 or data.draw(st.booleans())
    scale = Scale(fraction, (multiplier,), (shift,), max(n, 1), (left,) if n else ())
    shape = (len(acc), 1)
    sums, r = tensor("sums", shape, "int32"), tensor("r", shape, "uint8")
    added = (r, zero) if n else None
    rounding = data.draw(st.sampled_from([HALF_UP, FLOOR]))
    form = Requantization(sums, scale, added, wide, zero_point, low, high, dtype, rounding)
    arrays = np.array(acc, np.int32).reshape(shape), np.array(codes_r, np.uint8).reshape(shape)
    got = run([sums, r], lambda emit: emit_requantization(emit, form, "y"), *arrays)
    for y, a, residual in zip(got.reshape(-1).tolist(), acc, codes_r, strict=True):
        t = (a << fraction) * multiplier + (((residual - zero) * n) << left)
        rounded = (2 * t + (1 << shift if rounding == HALF_UP else 0)) >> (shift + 1)
        assert y == min(max(rounded + zero_point, low), high)


def test_a_rounding_without_a_form_is_refused():
    """Written half up in its place, it would quietly be another network."""
    scale = Scale(0, (1,), (3,))
    even = Rounding(RoundingMode.HALF_EVEN)
    form = Requantization(SUMS, scale, None, False, 0, 0, 255, "uint8", even)
    with pytest.raises(UnsupportedError, match="y: rounds by HALF_EVEN, but integer modules only"):
        graph_of([SUMS], lambda emit: emit_requantization(emit, form, "y"))


@pytest.mark.parametrize(
    "shapes", [((2, 5, 3), (2, 1, 3)), ((2, 5, 3), (2, 5, 1)), ((2, 1, 3), (2, 5, 3))]
)
def test_a_residual_of_another_shape_is_refused(shapes):
    sums, codes = tensor("sums", shapes[0], "int32"), tensor("r", shapes[1], "uint8")
    form = Requantization(
        sums, Scale(0, (1,), (3,), 1, (2,)), (codes, 0), False, 0, 0, 255, "uint8", HALF_UP
    )
    graph = graph_of([sums, codes], lambda emit: emit_requantization(emit, form, "y"))
    assert isinstance(match_requantization(graph, graph.outputs[0]), str)
