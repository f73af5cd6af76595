"""LowerConvolution: products of reals become int8 products, int32 sums and one rounding."""

import numpy as np
from golden import HALF, check, codes, unchanged
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.lower_convolution import LowerConvolution

RNG = np.random.default_rng(0)
WEIGHT = RNG.integers(-127, 128, (4, 3, 2, 3))  # K R S C
BIAS = np.array([100, -2000, 0, 77])
POT = 2.0 ** -np.array([7, 8, 7, 9])
"""Steps of the weights; that of the input is 1/4, that of the output 1/2."""
TAPS = WEIGHT.reshape(4, -1).sum(1)


def test_powers_of_two_with_zero_points_and_padding():
    column, folded = POT.reshape(4, 1, 1, 1), BIAS - 5 * TAPS
    half, shift = 2 ** np.array([5, 6, 5, 7]), [6, 7, 6, 8]  # 2^-2 2^-7 / 2^-1 = 2^-8: see below
    half, shift = half * 4, [8, 9, 8, 10]

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 6, 5, 3), "uint8")) -> R.Tuple(
            R.Tensor(("n", 3, 6, 4), "int8")
        ):
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
        def main(x: R.Tensor(("n", 6, 5, 3), "uint8")) -> R.Tuple(
            R.Tensor(("n", 3, 6, 4), "int8")
        ):
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
