"""Products: written and read back, and what is only like one."""

import numpy as np
import pytest
from form_checks import SIGNED, assert_same, graph_of, run, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from relay_passes.forms.product import Product, emit_product, match_product
from relay_passes.relax_nodes import constant
from targets.product_factors import ProductFactors

PAIR = st.tuples(st.integers(1, 2), st.integers(1, 2))
SIDES = st.tuples(*[st.integers(0, 2)] * 4)


@settings(max_examples=60, deadline=None)
@given(SIGNED, PAIR, PAIR, SIDES, st.integers(-128, 255), PAIR, st.sampled_from([1, 2, 4]))
def test_what_is_written_is_read(dtype, kernel, strides, padding, fill, dilation, groups):
    x = tensor("x", (1, 6, 7, 4), dtype)
    rng = np.random.default_rng(groups)
    weight = rng.integers(-128, 128, (8, *kernel, 4 // groups)).astype(np.int8)
    bias = rng.integers(-(2**31), 2**31, 8).astype(np.int32)
    limits = np.iinfo(dtype)
    fill = min(max(fill, limits.min), limits.max) if any(padding) else 0
    form = Product("conv", x, weight, bias, False, strides, padding, int(fill), dilation, groups)
    graph = graph_of([x], lambda emit: emit_product(emit, form))
    assert graph.outputs[0].name == "conv_sums"
    assert_same(match_product(graph, graph.outputs[0]), form)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_dense_is_read(dtype):
    x = tensor("x", (2, 5), dtype)
    weight = np.arange(-7, 8, dtype=np.int8).reshape(3, 1, 1, 5)
    form = Product("linear", x, weight, np.array([5, -6, 7], np.int32), dense=True)
    graph = graph_of([x], lambda emit: emit_product(emit, form))
    assert_same(match_product(graph, graph.outputs[0]), form)


FACTORS = st.sampled_from([8, 12, 14, 15, 16, 17, 24])


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([1, 2]), st.booleans(), st.sampled_from([1, 2, 4, 5, 7, 12]))
def test_scaled_products_are_read_and_mean_scaled_weights(data, groups, dense, channels):
    groups = 1 if dense else groups
    K, C = 6, 12
    table = data.draw(st.lists(st.lists(FACTORS, min_size=3, max_size=3), min_size=K, max_size=K))
    each = np.repeat(np.array(table, np.int32), channels, axis=1)
    each = np.concatenate([each, np.full((K, C), 16, np.int32)], axis=1)[:, : C // groups]
    factors = ProductFactors.of(each)
    np.testing.assert_array_equal(factors.spread(C // groups), each)
    rng = np.random.default_rng(channels)
    window = (1, 1) if dense else (3, 2)
    weight = rng.integers(-128, 128, (K, *window, C // groups)).astype(np.int8)
    bias = rng.integers(-(2**20), 2**20, K).astype(np.int32)
    shape = (2, 3, C) if dense else (2, 5, 6, C)
    x = tensor("x", shape, "uint8")
    form = Product("conv", x, weight, bias, dense, groups=groups, factors=factors)
    write = lambda emit: emit_product(emit, form)  # noqa: E731
    graph = graph_of([x], write)
    assert_same(match_product(graph, graph.outputs[0]), form)

    codes = rng.integers(0, 256, shape)
    got = run([x], write, codes.astype(np.uint8))
    np.testing.assert_array_equal(got, _sums(codes, factors.scaled(weight), groups) + bias)


def _sums(codes, weight, groups):
    """Sums of products in plain NumPy."""
    K, R, S, C = weight.shape
    if codes.ndim == 3:
        return codes @ weight[:, 0, 0].T.astype(np.int64)
    height, width = codes.shape[1] - R + 1, codes.shape[2] - S + 1
    total = np.zeros((len(codes), height, width, K), np.int64)
    for r, s, k in np.ndindex(R, S, K):
        first = k // (K // groups) * C
        window = codes[:, r : r + height, s : s + width, first : first + C]
        total[..., k] += window @ weight[k, r, s].astype(np.int64)
    return total


X = tensor("x", (1, 6, 7, 4), "uint8")
WEIGHT, BIAS = np.ones((8, 2, 2, 4), np.int8), np.zeros(8, np.int32)


def _written(emit, bias=BIAS, weight=WEIGHT, **options):
    options = {"data_layout": "NHWC", "kernel_layout": "OHWI", "out_dtype": "int32", **options}
    dtype = str(weight.dtype)
    sums = emit(relax.op.nn.conv2d(X, constant(weight, dtype), **options))
    return emit(relax.op.add(sums, constant(bias, "int32")))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"padding": [1, 1, 1, 1]}, "pads by itself"),
        ({"bias": np.int32(3)}, "not one number per channel"),
        ({"bias": np.zeros((6, 8), np.int32)}, "not one number per channel"),
        ({"weight": WEIGHT.astype(np.uint8)}, "something else than int8 weights"),
        (
            {"weight": np.ones((8, 4, 2, 2), np.int8), "kernel_layout": "OIHW"},
            "convolves an image held",
        ),
    ],
    ids=["padding", "scalar bias", "bias by pixel", "uint8 weight", "layout"],
)
def test_near_misses_are_refused(changes, reason):
    graph = graph_of([X], lambda emit: _written(emit, **changes))
    assert reason in match_product(graph, graph.outputs[0])


def test_sums_without_a_bias_are_refused():
    def write(emit):
        flat = emit(relax.op.reshape(X, (1, 168)))
        return emit(relax.op.matmul(flat, constant(np.ones((168, 2)), "int8"), out_dtype="int32"))

    graph = graph_of([X], write)
    assert "no sum of products and a bias" in match_product(graph, graph.outputs[0])


@pytest.mark.parametrize("shared", [False, True])
def test_padding_that_others_read_is_no_part_of_it(shared):
    padded = []

    def write(emit):
        padded.append(emit(relax.op.nn.pad(X, [0, 0, 1, 0, 0, 2, 0, 0], "constant", 7)))
        form = Product("conv", padded[0], WEIGHT, BIAS)
        sums = emit_product(emit, form)
        if shared:
            emit(relax.op.nn.max_pool2d(padded[0], [2, 2], layout="NHWC"))
        return sums

    graph = graph_of([X], write)
    found = match_product(graph, graph.outputs[0])
    assert found.codes == (padded[0] if shared else X)
    assert (found.padding, found.zero_point) == (((0, 0, 0, 0), 0) if shared else ((1, 0, 0, 2), 7))
