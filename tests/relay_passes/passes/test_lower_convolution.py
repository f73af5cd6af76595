"""LowerConvolution: products of reals become int8 products, int32 sums and one rounding."""

import numpy as np
import pytest
from golden import HALF, check, codes, unchanged
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.passes.lower_convolution import LowerConvolution

RNG = np.random.default_rng(0)
WEIGHT = RNG.integers(-127, 128, (4, 3, 2, 3))  # K R S C
BIAS = np.array([100, -2000, 0, 77])
POT = 2.0 ** -np.array([7, 8, 7, 9])
"""Steps of the weights; that of the input is 1/4, that of the output 1/2."""
TAPS = WEIGHT.reshape(4, -1).sum(1)


def test_powers_of_two_with_zero_points_and_padding():
    column, folded = POT.reshape(4, 1, 1, 1), BIAS - 5 * TAPS
    shift = np.array([8, 9, 8, 10])  # 2^-2 2^-7 / 2^-1 = 2^-8
    half = 1 << shift - 1

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 6, 5, 3), "uint8")) -> R.Tuple(R.Tensor(("n", 3, 6, 4), "int8")):
            with R.dataflow():
                centred = R.subtract(R.astype(x, "float64"), R.const(5, "float64"))
                real = R.multiply(centred, R.const(0.25, "float64"))
                kernel = R.astype(R.const(WEIGHT, "int8"), "float64")
                weight = R.multiply(kernel, R.const(column, "float64"))
                products = R.nn.conv2d(
                    real,
                    weight,
                    strides=[2, 1],
                    padding=[1, 0, 0, 2],
                    data_layout="NHWC",
                    kernel_layout="OHWI",
                )
                sums = R.add(products, R.const(BIAS * 0.25 * POT, "float64"))
                ratio = R.divide(sums, R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(-3, "float64"))
                y = R.astype(R.clip(shifted, -128, 90), "int8")
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 6, 5, 3), "uint8")) -> R.Tuple(R.Tensor(("n", 3, 6, 4), "int8")):
            with R.dataflow():
                padded = R.nn.pad(x, [0, 0, 1, 0, 0, 2, 0, 0], pad_value=5)
                products = R.nn.conv2d(
                    padded,
                    R.const(WEIGHT, "int8"),
                    strides=[2, 1],
                    data_layout="NHWC",
                    kernel_layout="OHWI",
                    out_dtype="int32",
                )
                sums = R.add(products, R.const(folded, "int32"))
                raised = R.add(sums, R.const(half, "int32"))
                whole = R.right_shift(raised, R.const(shift, "int32"))
                shifted = R.add(whole, R.const(-3, "int32"))
                y = R.astype(R.clip(shifted, -128, 90), "int8")
                out = (y,)
                R.output(out)
            return out

    check(LowerConvolution, Before, Expected, codes("uint8", 2, 6, 5, 3))


@pytest.mark.parametrize("first", [True, False], ids=["residual + conv", "conv + residual"])
def test_a_residual_finer_than_the_sums(first):
    """Three fraction bits: the residual's step is 2^-7, the sums' 2^-5 and 2^-4, the output's 2."""
    weight, steps = RNG.integers(-127, 128, (2, 1, 1, 3)), np.array([0.125, 0.25])
    folded = np.array([7, -9]) - 128 * weight.reshape(2, -1).sum(1)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 5, 6, 3), "uint8"), r: R.Tensor((2, 5, 6, 2), "int8")) -> R.Tuple(
            R.Tensor((2, 5, 6, 2), "uint8")
        ):
            with R.dataflow():
                x_centred = R.subtract(R.astype(x, "float64"), R.const(128, "float64"))
                x_real = R.multiply(x_centred, R.const(0.25, "float64"))
                r_centred = R.subtract(R.astype(r, "float64"), R.const(-4, "float64"))
                r_real = R.multiply(r_centred, R.const(2.0**-7, "float64"))
                kernel = R.astype(R.const(weight, "int8"), "float64")
                w_real = R.multiply(kernel, R.const(steps.reshape(2, 1, 1, 1), "float64"))
                products = R.nn.conv2d(x_real, w_real, data_layout="NHWC", kernel_layout="OHWI")
                sums = R.add(products, R.const(np.array([7, -9]) * steps * 0.25, "float64"))
                total = R.add(r_real, sums) if first else R.add(sums, r_real)
                ratio = R.divide(total, R.const(2.0, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(128, "float64"))
                y = R.astype(R.clip(shifted, 0, 255), "uint8")
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 5, 6, 3), "uint8"), r: R.Tensor((2, 5, 6, 2), "int8")) -> R.Tuple(
            R.Tensor((2, 5, 6, 2), "uint8")
        ):
            with R.dataflow():
                products = R.nn.conv2d(
                    x,
                    R.const(weight, "int8"),
                    data_layout="NHWC",
                    kernel_layout="OHWI",
                    out_dtype="int32",
                )
                sums = R.add(products, R.const(folded, "int32"))
                fine = R.left_shift(sums, R.const(3, "int32"))
                centred = R.subtract(R.astype(r, "int32"), R.const(-4, "int32"))
                residual = R.left_shift(centred, R.const([1, 0], "int32"))
                total = R.add(fine, residual)
                raised = R.add(total, R.const([256, 128], "int32"))
                whole = R.right_shift(raised, R.const([9, 8], "int32"))
                shifted = R.add(whole, R.const(128, "int32"))
                y = R.astype(R.clip(shifted, 0, 255), "uint8")
                out = (y,)
                R.output(out)
            return out

    inputs = codes("uint8", 2, 5, 6, 3), codes("int8", 2, 5, 6, 2)
    check(LowerConvolution, Before, Expected, *inputs)


def test_free_steps_multiply_in_int64():
    """Sums times 40961 / 2^23 and 3 / 2^9, of a dense layer; the residual times 5 / 2^4."""
    weight = RNG.integers(-127, 128, (2, 30))
    ratios = np.array([40961 / 2**23, 3 / 2**9])
    steps = ratios * 0.7 / 0.3

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((90, 30), "uint8"), r: R.Tensor((90, 2), "uint8")) -> R.Tuple(
            R.Tensor((90, 2), "uint8")
        ):
            with R.dataflow():
                x_real = R.multiply(R.astype(x, "float64"), R.const(0.3, "float64"))
                r_real = R.multiply(R.astype(r, "float64"), R.const(0.7 * 5 / 16, "float64"))
                kernel = R.astype(R.const(weight, "int8"), "float64")
                w_real = R.multiply(kernel, R.const(steps.reshape(2, 1), "float64"))
                turned = R.permute_dims(w_real)
                sums = R.matmul(x_real, turned)
                total = R.add(sums, r_real)
                ratio = R.divide(total, R.const(0.7, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                y = R.astype(R.clip(whole, 0, 255), "uint8")
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((90, 30), "uint8"), r: R.Tensor((90, 2), "uint8")) -> R.Tuple(
            R.Tensor((90, 2), "uint8")
        ):
            with R.dataflow():
                products = R.matmul(x, R.const(weight.T, "int8"), out_dtype="int32")
                sums = R.add(products, R.const([0, 0], "int32"))
                scaled = R.multiply(R.astype(sums, "int64"), R.const([40961, 3 << 14], "int64"))
                five = R.multiply(R.astype(r, "int64"), R.const(5, "int64"))
                residual = R.left_shift(five, R.const([19, 19], "int64"))
                total = R.add(scaled, residual)
                raised = R.add(total, R.const([1 << 22, 1 << 22], "int64"))
                whole = R.right_shift(raised, R.const([23, 23], "int64"))
                y = R.astype(R.clip(whole, 0, 255), "uint8")
                out = (y,)
                R.output(out)
            return out

    check(LowerConvolution, Before, Expected, codes("uint8", 90, 30), codes("uint8", 90, 2))


def test_logits_stay_sums():
    weight, bias = RNG.integers(-127, 128, (3, 30)), np.array([5, -6, 7])

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4, 30), "int8")) -> R.Tuple(R.Tensor((4, 3), "float32")):
            with R.dataflow():
                real = R.multiply(R.astype(x, "float64"), R.const(0.25, "float64"))
                kernel = R.astype(R.const(weight, "int8"), "float64")
                w_real = R.multiply(kernel, R.const(0.5, "float64"))
                turned = R.permute_dims(w_real)
                products = R.matmul(real, turned)
                sums = R.add(products, R.const(bias * 0.125, "float64"))
                y = R.astype(sums, "float32")
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((4, 30), "int8")) -> R.Tuple(R.Tensor((4, 3), "float32")):
            with R.dataflow():
                products = R.matmul(x, R.const(weight.T, "int8"), out_dtype="int32")
                sums = R.add(products, R.const(bias, "int32"))
                real = R.multiply(R.astype(sums, "float64"), R.const([0.125] * 3, "float64"))
                y = R.astype(real, "float32")
                out = (y,)
                R.output(out)
            return out

    check(LowerConvolution, Before, Expected, codes("int8", 4, 30))


def test_sums_that_are_neither_quantized_nor_returned_stay():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((4, 30), "int8")) -> R.Tuple(R.Tensor((4, 30), "float64")):
            with R.dataflow():
                real = R.multiply(R.astype(x, "float64"), R.const(0.25, "float64"))
                kernel = R.astype(R.const(np.eye(30), "int8"), "float64")
                w_real = R.multiply(kernel, R.const(0.5, "float64"))
                turned = R.permute_dims(w_real)
                products = R.matmul(real, turned)
                y = R.exp(products)
                out = (y,)
                R.output(out)
            return out

    unchanged(LowerConvolution, Module)
