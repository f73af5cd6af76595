"""Golden IR, Before and Expected, of the passes whose rewrite fits on a page."""

from fractions import Fraction

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.convert_to_nhwc import ConvertToNhwc
from relay_passes.fold_activations import FoldActivations
from relay_passes.hoist_quantize import HoistQuantize
from relay_passes.quantization import Dequantize, Quantize, emit_dequantize, emit_quantize
from relay_passes.requantize import dyadic, plan_scale
from relay_passes.sink_dequantize import SinkDequantize
from relay_passes.verify_integer import VerifyInteger
from targets.errors import ArithmeticRangeError, UnsupportedError

STEP = np.float64(0.5)


def _module(shape, dtype, build):
    """``main`` over x: (2, *shape); build(emit, x) gives the result."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, *shape), dtype))

    def emit(expr, name=""):
        return builder.emit(expr, name_hint=name)

    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.Tuple([build(emit, x)]))
        builder.emit_func_output(result)
    return builder.get()


def _quantized(emit, x, low=0, high=255, zero_point=10):
    return emit_quantize(emit, Quantize(x, STEP, zero_point, low, high, "uint8"))


def _real(emit, codes):
    return emit_dequantize(emit, Dequantize(codes, STEP, 10))


def _golden(transform, before, expected):
    untouched = before.script()
    tvm.ir.assert_structural_equal(transform()(before), expected)
    assert before.script() == untouched, "the pass edited the module it was given"


def test_fold_activations_relu_and_clamp():
    before = _module(
        (3,),
        "float64",
        lambda emit, x: _quantized(emit, emit(relax.op.clip(emit(relax.op.nn.relu(x)), -1.0, 6.2))),
    )
    expected = _module((3,), "float64", lambda emit, x: _quantized(emit, x, low=10, high=22))
    _golden(FoldActivations, before, expected)


def test_hoist_quantize_before_a_reshape():
    before = _module(
        (3, 1), "float64", lambda emit, x: _quantized(emit, emit(relax.op.reshape(x, (2, 3))))
    )
    expected = _module(
        (3, 1), "float64", lambda emit, x: emit(relax.op.reshape(_quantized(emit, x), (2, 3)))
    )
    _golden(HoistQuantize, before, expected)


def test_sink_dequantize_pads_with_the_zero_point():
    widths = [0, 0, 0, 0, 1, 1, 1, 1]
    before = _module(
        (3, 4, 4), "uint8", lambda emit, x: emit(relax.op.nn.pad(_real(emit, x), widths))
    )
    expected = _module(
        (3, 4, 4),
        "uint8",
        lambda emit, x: _real(emit, emit(relax.op.nn.pad(x, widths, "constant", 10))),
    )
    _golden(SinkDequantize, before, expected)


def test_sink_dequantize_pads_a_max_pool_with_the_lowest_code():
    before = _module(
        (3, 4, 4),
        "int8",
        lambda emit, x: emit(relax.op.nn.max_pool2d(_real(emit, x), [3, 3], [2, 2], [1, 1, 1, 1])),
    )
    widths = [0, 0, 0, 0, 1, 1, 1, 1]
    expected = _module(
        (3, 4, 4),
        "int8",
        lambda emit, x: _real(
            emit,
            emit(
                relax.op.nn.max_pool2d(
                    emit(relax.op.nn.pad(x, widths, "constant", -128)), [3, 3], [2, 2]
                )
            ),
        ),
    )
    _golden(SinkDequantize, before, expected)


def test_convert_to_nhwc_renames_axes():
    def build(transpose):
        def body(emit, x):
            codes = _quantized(emit, x)
            if transpose:
                codes = emit(relax.op.permute_dims(codes, (0, 2, 3, 1)))
            axis = 3 if transpose else 1
            both = emit(relax.op.concat([codes, codes], axis))
            real = _real(emit, emit(relax.op.strided_slice(both, [axis], [1], [4], [2])))
            return emit(relax.op.permute_dims(real, (0, 3, 1, 2))) if transpose else real

        return _module((3, 4, 5), "float64", body)

    _golden(ConvertToNhwc, build(False), build(True))


def test_verify_integer_names_the_value():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2,), "uint8")) -> R.Tuple(R.Tensor((2,), "uint8")):
            with R.dataflow():
                real = R.astype(x, "float32")
                root = R.sqrt(real)
                y = R.astype(root, "uint8")
                out = (y,)
                R.output(out)
            return out

    with pytest.raises(UnsupportedError, match="'astype' is still computed in floating point"):
        VerifyInteger()(Before)


@pytest.mark.parametrize("multiplier", [1, 3, 40961, 65535])
@pytest.mark.parametrize("shift", [-4, 0, 17, 47])
def test_dyadic_survives_float64_steps(multiplier, shift):
    exact = Fraction(multiplier) / Fraction(2) ** shift
    blurred = Fraction(float(exact) * (1 + 2.0**-50))
    M, s = dyadic(blurred, "layer")
    assert Fraction(M) / Fraction(2) ** s == exact
    assert M % 2 == 1


def test_dyadic_refuses_seventeen_bits():
    with pytest.raises(ArithmeticRangeError, match="layer: the ratio"):
        dyadic(Fraction(65537, 2**20), "layer")


def test_fraction_bits_make_room_for_a_finer_residual():
    scale = plan_scale("layer", [Fraction(1, 4), Fraction(1, 8)], 1000, (Fraction(1, 64), 3))
    assert scale.fraction == 4  # channel 0 needs 6 - 2
    assert (scale.shift == [6, 7]).all()
    assert (scale.residual.shift == [0, 1]).all()
    assert not scale.wide


def test_sums_that_leave_no_room_are_refused():
    with pytest.raises(ArithmeticRangeError, match="need 4 fraction bits"):
        plan_scale("layer", [Fraction(1, 4)], 2**28, (Fraction(1, 64), 0))
