"""Products of two tensors: written and read back, what they mean, and what is only like one."""

import numpy as np
import pytest
from form_checks import SIGNED, assert_same, graph_of, run, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from relay_passes.forms.factor import Factor
from relay_passes.forms.product import Product, emit_product, match_product
from relay_passes.relax_nodes import constant, dtype_of, shape_of
from targets.layers import Pairing

SIZES = st.integers(1, 5)
IMAGES = 2


@st.composite
def products(draw):
    """A product of two tensors, and what it means in NumPy."""
    pairing = draw(st.sampled_from(Pairing))
    zeros = draw(st.tuples(st.integers(-128, 255), st.integers(-128, 255)))
    if pairing is Pairing.ELEMENTS:
        left = draw(st.lists(SIZES, min_size=1, max_size=3))
        right = [draw(st.sampled_from([1, size])) for size in left]
        groups = left[-1]
        subscripts, K = "", left[-1]
    else:
        groups, t, c, k = draw(st.tuples(*[SIZES] * 4))
        rows = pairing is Pairing.ROWS
        windows = draw(st.lists(SIZES, max_size=1))
        left = [*windows, t, groups * c]
        right = [*windows, *([k, groups * c] if rows else [c, groups * k])]
        subscripts = "...tgc,...kgc->...tgk" if rows else "...tgc,...cgk->...tgk"
        K = groups * k
    x = tensor("x", (IMAGES, *left), draw(SIGNED))
    r = tensor("r", (IMAGES, *right), draw(SIGNED))
    bias = np.array(draw(st.lists(st.integers(-(2**20), 2**20), min_size=K, max_size=K)), np.int32)
    form = Product("mul", x, Factor(r, zeros[1], pairing), bias, zero_point=zeros[0], groups=groups)

    def meaning(x, r):
        x, r = x.astype(np.int64) - zeros[0], r.astype(np.int64) - zeros[1]
        if pairing is Pairing.ELEMENTS:
            return x * r + bias
        split = (z.reshape(*z.shape[:-1], groups, -1) for z in (x, r))
        return np.einsum(subscripts, *split).reshape(*x.shape[:-1], K) + bias

    return form, meaning


@settings(max_examples=120, deadline=None)
@given(products(), st.integers(0, 2**32 - 1))
def test_what_is_written_is_read_and_means_it(product, seed):
    form, meaning = product
    params = [form.codes, form.right.codes]
    graph = graph_of(params, lambda emit: emit_product(emit, form))
    assert graph.outputs[0].name == "mul_sums"
    assert_same(match_product(graph, graph.outputs[0]), form)
    rng = np.random.default_rng(seed)
    arrays = []
    for param in params:
        limits = np.iinfo(dtype_of(param))
        codes = rng.integers(limits.min, limits.max + 1, shape_of(param))
        arrays.append(codes.astype(limits.dtype))
    got = run(params, lambda emit: emit_product(emit, form), *arrays)
    np.testing.assert_array_equal(got, meaning(*arrays))


IMAGE, GATE = tensor("x", (2, 4, 6, 8), "uint8"), tensor("r", (2, 1, 1, 8), "int8")
ROW, COLUMN = tensor("x", (2, 1, 6, 8), "uint8"), tensor("r", (2, 4, 1, 8), "int8")
TOKENS, KEYS = tensor("x", (2, 5, 8), "uint8"), tensor("r", (2, 8, 8), "int8")
HEADS, HEAD_KEYS = tensor("x", (2, 4, 5, 2), "uint8"), tensor("r", (2, 4, 2, 5), "int8")


def _products(emit, x, r, dtype="int32", shift=0, operator=relax.op.multiply):
    a, b = (emit(relax.op.astype(codes, dtype)) for codes in (x, r))
    if shift:
        b = emit(relax.op.left_shift(b, constant(shift, dtype)))
    return emit(operator(a, b))


def _matmul(emit, x, r, dtype="int32"):
    return _products(emit, x, r, dtype, operator=relax.op.matmul)


def _wide(emit, x, r):
    a, b = (emit(relax.op.astype(codes, "int32")) for codes in (x, r))
    return emit(relax.op.matmul(a, b, out_dtype="int64"))


def _raw(emit, x, r):
    return emit(relax.op.matmul(x, r, out_dtype="int32"))


def _split(emit, codes, shape, axes):
    return emit(relax.op.permute_dims(emit(relax.op.reshape(codes, shape)), axes))


def _joined(emit, sums, axes=(0, 2, 1, 3), shape=(2, 5, 20)):
    return emit(relax.op.reshape(emit(relax.op.permute_dims(sums, axes)), shape))


def test_the_smaller_of_two_tensors_is_the_factor():
    form = Product("mul", GATE, Factor(IMAGE, 0, Pairing.ELEMENTS), np.zeros(8, np.int32), groups=8)
    graph = graph_of([IMAGE, GATE], lambda emit: emit_product(emit, form))
    found = match_product(graph, graph.outputs[0])
    assert (found.codes, found.right.codes, found.groups) == (IMAGE, GATE, 8)


@pytest.mark.parametrize(
    ("x", "r", "write", "reason"),
    [
        (ROW, COLUMN, _products, "broadcasts both"),
        (IMAGE, GATE, lambda *at: _products(*at, shift=2), "something else than two tensors"),
        (IMAGE, GATE, lambda *at: _products(*at, dtype="int64"), "something else than two tensors"),
        (TOKENS, KEYS, lambda *at: _matmul(*at, dtype="int64"), "something else than two tensors"),
        (TOKENS, KEYS, _wide, "something else than two tensors"),
        (TOKENS, KEYS, _raw, "something else than two tensors"),
        (HEADS, HEAD_KEYS, lambda e, x, r: _joined(e, _matmul(e, x, r)), "no rows of images"),
        (
            HEADS,
            HEAD_KEYS,
            lambda e, x, r: _joined(e, _matmul(e, x, r), (0, 2, 3, 1)),
            "no sum of products",
        ),
        (
            HEADS,
            HEAD_KEYS,
            lambda e, x, r: _joined(e, _matmul(e, x, r), shape=(2, 10, 10)),
            "no sum of products",
        ),
    ],
    ids=[
        *("both broadcast", "shifted", "64-bit elements", "64-bit matrices", "64-bit sums"),
        *("raw codes", "heads not split", "sums transposed", "pixels joined"),
    ],
)
def test_near_misses_are_refused(x, r, write, reason):
    def biased(emit):
        products = write(emit, x, r)
        bias = constant(np.zeros(shape_of(products)[-1]), dtype_of(products))
        return emit(relax.op.add(products, bias))

    graph = graph_of([x, r], biased)
    assert reason in match_product(graph, graph.outputs[0])


@pytest.mark.parametrize(
    ("shape", "axes", "found"),
    [
        ((2, 5, 4, 2), (0, 2, 1, 3), True),
        ((2, 5, 2, 4), (0, 3, 1, 2), False),
        ((2, 4, 5, 2), (0, 1, 2, 3), False),
        ((2, 10, 4, 1), (0, 2, 1, 3), False),
    ],
    ids=["together", "strided", "no transposition", "across pixels"],
)
def test_channels_of_a_group_lie_together(shape, axes, found):
    t, c = (shape[axis] for axis in axes[2:])
    x, r = tensor("x", (2, 5, 8), "int8"), tensor("r", (2, c, 16), "int8")

    def write(emit):
        left = _split(emit, x, shape, axes)
        right = _split(emit, r, (2, c, 4, 4), (0, 2, 1, 3))
        sums = _joined(emit, _matmul(emit, left, right), shape=(2, t, 16))
        return emit(relax.op.add(sums, constant(np.zeros(16), "int32")))

    graph = graph_of([x, r], write)
    form = match_product(graph, graph.outputs[0])
    assert form.groups == 4 if found else "split in groups" in form
