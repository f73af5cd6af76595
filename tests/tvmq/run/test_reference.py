"""The reference interpreter against plain loops, and what it refuses."""

import numpy as np
import pytest
from annotated_networks import Residual, export, image
from tvm import relax, tirx

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from targets.errors import InputError, UnsupportedError
from tvmq.run import reference
from tvmq.run.reference import run_reference

CASES = [(1, (1, 1), (1, 1)), (2, (2, 1), (1, 1)), (6, (1, 2), (2, 1)), (1, (2, 2), (1, 3))]


def _one_op(build, *params):
    builder = relax.BlockBuilder()
    with builder.function("main", list(params)):
        with builder.dataflow():
            result = builder.emit_output(relax.Tuple([builder.emit(build(*params))]))
        builder.emit_func_output(result)
    return builder.get()


def _param(shape, dtype):
    return relax.Var("x", relax.TensorType((tirx.Var("n", "int64"), *shape), dtype))


@pytest.mark.parametrize(("groups", "strides", "dilation"), CASES, ids=str)
def test_convolution_equals_loops(groups, strides, dilation, monkeypatch):
    monkeypatch.setattr(reference, "_PATCH_BYTES", 1)  # one image at a time
    rng = np.random.default_rng(groups)
    x = rng.integers(-128, 128, (3, 9, 8, 6)).astype("int8")
    w = rng.integers(-128, 128, (6, 3, 2, 6 // groups)).astype("int8")
    mod = _one_op(
        lambda p: relax.op.nn.conv2d(
            p, relax.const(w), strides, 0, dilation, groups, "NHWC", "OHWI", out_dtype="int32"
        ),
        _param((9, 8, 6), "int8"),
    )
    (got,) = run_reference(mod, {"x": x})
    want = np.zeros_like(got)
    C, K = 6 // groups, 6 // groups
    for k in range(6):
        channels = slice(k // K * C, k // K * C + C)
        for i in range(got.shape[1]):
            for j in range(got.shape[2]):
                rows = slice(i * strides[0], i * strides[0] + 2 * dilation[0] + 1, dilation[0])
                cols = slice(j * strides[1], j * strides[1] + dilation[1] + 1, dilation[1])
                window = x[:, rows, cols, channels].astype(np.int64)
                want[:, i, j, k] = (window * w[k]).sum((1, 2, 3))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("terms", [500, 600, 60_000], ids=["float32", "just above", "float64"])
def test_sums_stay_exact_where_float32_is_not(terms):
    """255 * 127 * 519 is the first sum that float32 can't hold."""
    x = np.full((1, terms), 255, np.uint8)
    x[0, 0] = 254
    w = np.full((1, terms), 127, np.int8)
    want = (x.astype(np.int64) @ w.T.astype(np.int64)).astype(np.int32)
    np.testing.assert_array_equal(reference._sums(x, w), want)


@pytest.mark.parametrize("terms", [512, 600, 60_000], ids=["float32", "just above", "float64"])
def test_products_of_two_tensors_stay_exact_where_float32_is_not(terms):
    """128 * 255 * 515 is the first sum of these that float32 can't hold."""
    x = np.full((2, 1, terms), -128, np.int32)
    y = np.full((2, terms, 1), 255, np.int32)
    x[0, 0, 0], y[1, 0, 0] = -127, 254
    want = (x.astype(np.int64) @ y.astype(np.int64)).astype(np.int32)
    np.testing.assert_array_equal(reference._matmul(None, x, y), want)


def test_max_pool_of_codes():
    x = np.random.default_rng(0).integers(-128, 128, (2, 5, 5, 3)).astype("int8")
    mod = _one_op(
        lambda p: relax.op.nn.max_pool2d(p, [3, 3], [2, 2], layout="NHWC"),
        _param((5, 5, 3), "int8"),
    )
    (got,) = run_reference(mod, {"x": x})
    assert got[1, 1, 0, 2] == x[1, 2:5, 0:3, 2].max()


def _integer():
    return lower_to_integer(import_torch(export(Residual(), (3, 12, 9))))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Input 'x': missing"),
        ({"x": image((1, 3, 12, 8))}, "expected .* got"),
        ({"x": image((1, 3, 12, 9)).astype("float64")}, "expected float32, got float64"),
    ],
    ids=["missing", "shape", "dtype"],
)
def test_wrong_inputs(inputs, message):
    with pytest.raises(InputError, match=message):
        run_reference(_integer(), inputs)


def test_unknown_operator_is_named():
    mod = _one_op(relax.op.nn.softmax, _param((4,), "float32"))
    with pytest.raises(UnsupportedError, match=r"'nn\.softmax'"):
        run_reference(mod, {"x": np.zeros((1, 4), np.float32)})


def test_values_hold_every_layer():
    values = {}
    run_reference(_integer(), {"x": image((1, 3, 12, 9))}, values.setdefault)
    assert {"x_codes", "relu", "relu_1", "linear_sums"} <= set(values)
