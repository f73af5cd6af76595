"""LowerAveragePool: a mean is a depthwise convolution with weights of one."""

import numpy as np
import pytest
from golden import HALF, check, codes
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.passes.lower_average_pool import LowerAveragePool
from targets.errors import ArithmeticRangeError


def test_a_window_of_eight_padded_with_the_zero_point():
    """Step 1/4 to step 1/2 over eight elements: a shift by four."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 6, 7, 2), "uint8")) -> R.Tuple(
            R.Tensor(("n", 3, 3, 2), "uint8")
        ):
            with R.dataflow():
                centred = R.subtract(R.astype(x, "float64"), R.const(30, "float64"))
                real = R.multiply(centred, R.const(0.25, "float64"))
                mean = R.nn.avg_pool2d(
                    real,
                    [2, 4],
                    strides=[2, 2],
                    padding=[0, 1, 0, 0],
                    count_include_pad=True,
                    layout="NHWC",
                )
                ratio = R.divide(mean, R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(10, "float64"))
                y = R.astype(R.clip(shifted, 0, 100), "uint8")
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 6, 7, 2), "uint8")) -> R.Tuple(
            R.Tensor(("n", 3, 3, 2), "uint8")
        ):
            with R.dataflow():
                padded = R.nn.pad(x, [0, 0, 0, 0, 1, 0, 0, 0], pad_value=30)
                products = R.nn.conv2d(
                    padded,
                    R.const(np.ones((2, 2, 4, 1)), "int8"),
                    strides=[2, 2],
                    groups=2,
                    data_layout="NHWC",
                    kernel_layout="OHWI",
                    out_dtype="int32",
                )
                sums = R.add(products, R.const([-240, -240], "int32"))
                raised = R.add(sums, R.const([8, 8], "int32"))
                whole = R.right_shift(raised, R.const([4, 4], "int32"))
                shifted = R.add(whole, R.const(10, "int32"))
                y = R.astype(R.clip(shifted, 0, 100), "uint8")
                out = (y,)
                R.output(out)
            return out

    check(LowerAveragePool, Before, Expected, codes("uint8", 20, 6, 7, 2))


def _mean_of_nine(zero_point):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((40, 6, 6, 2), "uint8")) -> R.Tuple(R.Tensor((40, 2, 2, 2), "uint8")):
            with R.dataflow():
                centred = R.subtract(R.astype(x, "float64"), R.const(zero_point, "float64"))
                real = R.multiply(centred, R.const(0.25, "float64"))
                mean = R.nn.avg_pool2d(
                    real, [3, 3], strides=[3, 3], count_include_pad=True, layout="NHWC"
                )
                ratio = R.divide(mean, R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(10, "float64"))
                y = R.astype(R.clip(shifted, 0, 255), "uint8")
                out = (y,)
                R.output(out)
            return out

    return Before


def test_a_window_of_nine_has_a_multiplier():
    """The ratio 1 / 18 is 58254.2 / 2^20, rounded up so that ties do not fall below the half."""

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((40, 6, 6, 2), "uint8")) -> R.Tuple(R.Tensor((40, 2, 2, 2), "uint8")):
            with R.dataflow():
                products = R.nn.conv2d(
                    x,
                    R.const(np.ones((2, 3, 3, 1)), "int8"),
                    strides=[3, 3],
                    groups=2,
                    data_layout="NHWC",
                    kernel_layout="OHWI",
                    out_dtype="int32",
                )
                sums = R.add(products, R.const([0, 0], "int32"))
                scaled = R.multiply(R.astype(sums, "int64"), R.const([58255] * 2, "int64"))
                raised = R.add(scaled, R.const([1 << 19] * 2, "int64"))
                whole = R.right_shift(raised, R.const([20] * 2, "int64"))
                shifted = R.add(whole, R.const(10, "int64"))
                y = R.astype(R.clip(shifted, 0, 255), "uint8")
                out = (y,)
                R.output(out)
            return out

    before = _mean_of_nine(0)
    x = codes("uint8", 40, 6, 6, 2)
    x[:20] //= 200  # sums of 9, 27, ...: halves
    sums = x.reshape(40, 2, 3, 2, 3, 2).astype(int).sum((2, 4))
    assert (sums % 18 == 9).any(), "no tie, no proof"
    check(LowerAveragePool, before, Expected, x)


def test_ties_on_both_sides_of_zero_have_no_multiplier():
    with pytest.raises(ArithmeticRangeError, match=r"mean: no 16-bit multiplier .* the sum -171"):
        LowerAveragePool()(_mean_of_nine(30))
