"""Moves: what is read back moves the same bytes as the Relax does."""

import sys

import numpy as np
import pytest
from form_checks import graph_of, run, tensor, written
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tvm import relax

from relay_passes.forms.move import Move, Rearrangement, Shuffle, emit_move, match_move
from relay_passes.relax_nodes import shape_of

SHAPE = (1, 4, 6, 5)
X, Y = tensor("x", SHAPE, "uint8"), tensor("y", SHAPE, "uint8")
ARRAYS = [np.arange(120, dtype=np.uint8).reshape(SHAPE) + k for k in (0, 120)]


def _moved(form, shape, tensors):
    """The form in plain NumPy."""
    if isinstance(form, Shuffle):
        return tensors[form.codes.name][..., list(form.order)]
    if isinstance(form, Rearrangement):
        return written(form.view, form.runs, tensors[form.codes.name]).reshape(shape)
    out = np.full(shape, form.fill, np.uint8)
    for box in form.boxes:
        read = tuple(
            slice(first, first + (count - 1) * step + 1, step)
            for first, step, count in zip(box.start, box.step, box.size, strict=True)
        )
        part = tensors[box.codes.name][0][read]
        if form.reshape:
            return part.reshape(shape)
        place = tuple(slice(a, a + n) for a, n in zip(box.at, box.size, strict=True))
        out[0][place] = part
    return out


def _check(write, params=(X, Y)):
    """The form of what is written; it must move what the reference moves."""
    params, arrays = list(params), ARRAYS[: len(params)]
    graph = graph_of(params, write)
    form = match_move(graph, graph.outputs[0])
    assert not isinstance(form, str), form
    want = run(params, write, *arrays)
    tensors = {param.name: array for param, array in zip(params, arrays, strict=True)}
    np.testing.assert_array_equal(_moved(form, want.shape, tensors), want)
    return form


@st.composite
def slices(draw):
    """(axis, begin, end, step) inside of SHAPE."""
    axis = draw(st.integers(1, 3))
    begin = draw(st.integers(0, SHAPE[axis] - 1))
    return axis, begin, draw(st.integers(begin + 1, SHAPE[axis])), draw(st.integers(1, 3))


def _sliced(emit, x, cut):
    axis, begin, end, step = cut
    return emit(relax.op.strided_slice(x, [axis], [begin], [end], [step]))


def _sliced_again(emit, x, cuts):
    for axis, begin, end, step in cuts:
        size = int(shape_of(x)[axis])
        begin = min(begin, size - 1)
        x = _sliced(emit, x, (axis, begin, max(begin + 1, min(end, size)), step))
    return x


@settings(max_examples=40, deadline=None)
@given(st.lists(slices(), min_size=1, max_size=4))
@example([(2, 0, 6, 2), (2, 0, 3, 2)])
@example([(2, 0, 6, 2), (2, 1, 3, 1)])
def test_slices_of_slices_are_one_box(cuts):
    form = _check(lambda emit: _sliced_again(emit, X, cuts), [X])
    assert [box.codes for box in form.boxes] == [X]


@settings(max_examples=30, deadline=None)
@given(st.lists(slices(), max_size=2), st.tuples(*[st.integers(0, 2)] * 6), st.integers(0, 255))
def test_padding_takes_its_slices_along(cuts, widths, fill):
    def write(emit):
        return emit(
            relax.op.nn.pad(_sliced_again(emit, X, cuts), [0, 0, *widths], "constant", fill)
        )

    form = _check(write, [X])
    assert (form.fill, form.boxes[0].codes) == (fill, X)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2), st.integers(1, 3))
def test_concatenation_takes_its_slices_along(axis, begin, step):
    def write(emit):
        part = _sliced(emit, Y, (axis, begin, SHAPE[axis], step))
        return emit(relax.op.concat([X, part, X], axis))

    assert [box.codes for box in _check(write).boxes] == [X, Y, X]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_concatenations_of_concatenations_are_one_move(outer, inner, begin):
    def write(emit):
        def row(x, y):
            parts = [_sliced(emit, y, (outer, begin, SHAPE[outer], 1)), x, y]
            return emit(relax.op.concat(parts if inner == outer else [x, y, x], inner))

        return emit(relax.op.concat([row(X, Y), row(Y, X), row(X, X)], outer))

    form = _check(write)
    assert len(form.boxes) == 9
    assert {box.codes for box in form.boxes} == {X, Y}


@pytest.mark.parametrize("twice", [True, False], ids=["read twice", "read by others"])
def test_a_concatenation_that_is_needed_elsewhere_is_made_once(twice):
    def write(emit):
        both = emit(relax.op.concat([X, Y], 3), "both")
        if not twice:
            emit(relax.op.nn.max_pool2d(both, [1, 1], layout="NHWC"))
        return emit(relax.op.concat([both, both if twice else emit(relax.op.concat([X, X], 3))], 1))

    graph = graph_of([X, Y], write)
    boxes = match_move(graph, graph.outputs[0]).boxes
    assert [box.codes.name for box in boxes][:1] == ["both"]
    assert len(boxes) == (2 if twice else 3)


def test_concatenations_deeper_than_the_recursion_limit():
    x = tensor("x", (1, 1, 1, 8), "uint8")

    def write(emit):
        y = x
        for _ in range(sys.getrecursionlimit()):
            y = emit(relax.op.concat([y, x], 1))
        return y

    graph = graph_of([x], write)
    boxes = match_move(graph, graph.outputs[0]).boxes
    assert [box.at[0] for box in boxes] == list(range(sys.getrecursionlimit() + 1))


def test_a_slice_of_a_slice_that_others_read_stops_there():
    first = []

    def write(emit):
        first.append(_sliced(emit, X, (1, 1, 4, 1)))
        emit(relax.op.concat([first[0], first[0]], 1))
        return _sliced(emit, first[0], (2, 0, 6, 2))

    graph = graph_of([X], write)
    (box,) = match_move(graph, graph.outputs[0]).boxes
    assert box.codes == first[0]


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(3)))
def test_channels_in_another_order_are_a_shuffle(order):
    x = tensor("x", (1, 2, 3, 12), "uint8")
    array = np.arange(72, dtype=np.uint8).reshape(1, 2, 3, 12)

    def write(emit):
        split = emit(relax.op.reshape(x, (1, 2, 3, 2, 3, 2)))
        turned = emit(relax.op.permute_dims(split, [0, 1, 2, *(3 + axis for axis in order)]))
        return emit(relax.op.reshape(turned, (1, 2, 3, 12)))

    graph = graph_of([x], write)
    form = match_move(graph, graph.outputs[0])
    np.testing.assert_array_equal(_moved(form, (1, 2, 3, 12), {"x": array}), run([x], write, array))
    assert isinstance(form, Move if order == [0, 1, 2] else Shuffle)


@pytest.mark.parametrize("shape", [(1, 120), (1, 8, 15), (1, 2, 2, 30)])
def test_reshapes_move_nothing(shape):
    assert _check(lambda emit: emit(relax.op.reshape(X, shape)), [X]).reshape


@pytest.mark.parametrize("axes", [(0, 2, 1, 3), (0, 3, 1, 2), (0, 1, 3, 2)])
def test_transpositions_are_runs_in_another_order(axes):
    form = _check(lambda emit: emit(relax.op.permute_dims(X, axes)), [X])
    assert isinstance(form, Rearrangement)


def test_what_is_moved_there_and_back_is_not_moved():
    def write(emit):
        there = emit(relax.op.reshape(emit(relax.op.permute_dims(X, [0, 3, 1, 2])), (1, 5, 24)))
        return emit(relax.op.permute_dims(there, [0, 2, 1]))

    form = _check(write, [X])
    assert form.reshape


def test_a_transposition_that_ends_with_more_axes_than_an_image_is_no_shuffle():
    def write(emit):
        split = emit(relax.op.reshape(X, (1, 4, 3, 2, 5)))
        return emit(relax.op.permute_dims(split, [0, 1, 2, 4, 3]))

    graph = graph_of([X], write)
    assert not isinstance(match_move(graph, graph.outputs[0]), Shuffle)


def test_what_computes_is_refused():
    graph = graph_of([X, Y], lambda emit: emit(relax.op.add(X, Y)))
    assert match_move(graph, graph.outputs[0]) == "no layer is made of 'add'"


@pytest.mark.parametrize(
    "move",
    [
        lambda x, _: relax.op.strided_slice(x, [1], [0], [4], [2]),
        lambda x, _: relax.op.nn.pad(x, [0, 0, 1, 0, 0, 2, 0, 0], "constant", 0.0),
        lambda x, y: relax.op.concat([x, y], 2),
        lambda x, _: relax.op.reshape(x, (1, 120)),
        lambda x, _: relax.op.permute_dims(x, [0, 3, 1, 2]),
    ],
    ids=["slice", "pad", "concat", "reshape", "permute"],
)
def test_codes_move_as_the_real_numbers_do(move):
    reals = [tensor(name, SHAPE, "float64") for name in ("p", "q")]
    graph = graph_of(reals, lambda emit: emit(move(*reals)))
    call = graph.value(graph.outputs[0])
    codes = [X, Y] if len(graph.params) == 2 else [X]
    got = run([X, Y], lambda emit: emit(emit_move(call, codes, 7)), *ARRAYS)
    numbers = [array.astype(np.int32) - 7 for array in ARRAYS]
    wide = [tensor(name, SHAPE, "int32") for name in ("x", "y")]
    want = run(wide, lambda emit: emit(move(*wide)), *numbers)
    np.testing.assert_array_equal(got.astype(np.int32) - 7, want)


@pytest.mark.parametrize(
    ("cut", "start"),
    [(([1], [0], [2]), 0), (([1], [-3], [-1]), 1), (([-3], [1], [3]), 1)],
    ids=["no strides", "from the end", "an axis from the end"],
)
def test_slices_are_read_however_they_are_said(cut, start):
    x = tensor("x", (2, 4, 4, 8), "uint8")
    graph = graph_of([x], lambda emit: emit(relax.op.strided_slice(x, *cut)))
    (box,) = match_move(graph, graph.outputs[0]).boxes
    assert (box.start, box.step, box.size) == ((start, 0, 0), (1, 1, 1), (2, 4, 8))


def test_a_slice_that_reads_backwards_is_refused():
    x = tensor("x", (2, 4, 4, 8), "uint8")
    graph = graph_of([x], lambda emit: emit(relax.op.strided_slice(x, [1], [3], [0], [-1])))
    assert match_move(graph, graph.outputs[0]) == "its slice reads backwards"
