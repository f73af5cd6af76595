"""SinkDequantize: what only moves or compares values works on their codes."""

from golden import check, codes, unchanged
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.passes.sink_dequantize import SinkDequantize


def test_slices_transpositions_and_reshapes():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 5), "int8")) -> R.Tuple(R.Tensor((2, 30), "float64")):
            with R.dataflow():
                centred = R.subtract(R.astype(x, "float64"), R.const(-7, "float64"))
                real = R.multiply(centred, R.const(0.5, "float64"))
                part = R.strided_slice(real, [2], [0], [4], [2])
                turned = R.permute_dims(part, [0, 2, 3, 1])
                y = R.reshape(turned, (2, 30))
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 5), "int8")) -> R.Tuple(R.Tensor((2, 30), "float64")):
            with R.dataflow():
                part = R.strided_slice(x, [2], [0], [4], [2])
                turned = R.permute_dims(part, [0, 2, 3, 1])
                moved = R.reshape(turned, (2, 30))
                centred = R.subtract(R.astype(moved, "float64"), R.const(-7, "float64"))
                y = R.multiply(centred, R.const(0.5, "float64"))
                out = (y,)
                R.output(out)
            return out

    check(SinkDequantize, Before, Expected, codes("int8", 2, 3, 4, 5))


def test_padding_is_with_the_zero_point():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 4), "uint8")) -> R.Tuple(R.Tensor((2, 5, 5, 6), "float64")):
            with R.dataflow():
                centred = R.subtract(R.astype(x, "float64"), R.const(10, "float64"))
                real = R.multiply(centred, R.const(0.5, "float64"))
                y = R.nn.pad(real, [0, 0, 1, 1, 0, 1, 2, 0])
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 4), "uint8")) -> R.Tuple(R.Tensor((2, 5, 5, 6), "float64")):
            with R.dataflow():
                padded = R.nn.pad(x, [0, 0, 1, 1, 0, 1, 2, 0], pad_value=10)
                centred = R.subtract(R.astype(padded, "float64"), R.const(10, "float64"))
                y = R.multiply(centred, R.const(0.5, "float64"))
                out = (y,)
                R.output(out)
            return out

    check(SinkDequantize, Before, Expected, codes("uint8", 2, 3, 4, 4))


def test_a_max_pool_is_padded_with_the_lowest_code():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 6, 4), "int8")) -> R.Tuple(R.Tensor((2, 3, 3, 2), "float64")):
            with R.dataflow():
                centred = R.subtract(R.astype(x, "float64"), R.const(10, "float64"))
                real = R.multiply(centred, R.const(0.5, "float64"))
                y = R.nn.max_pool2d(real, [3, 3], strides=[2, 2], padding=[1, 1, 1, 1])
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 6, 4), "int8")) -> R.Tuple(R.Tensor((2, 3, 3, 2), "float64")):
            with R.dataflow():
                padded = R.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1], pad_value=-128)
                pooled = R.nn.max_pool2d(padded, [3, 3], strides=[2, 2])
                centred = R.subtract(R.astype(pooled, "float64"), R.const(10, "float64"))
                y = R.multiply(centred, R.const(0.5, "float64"))
                out = (y,)
                R.output(out)
            return out

    # All codes below the zero point: padding with that would win in every window at the border.
    check(SinkDequantize, Before, Expected, codes("int8", 2, 3, 6, 4) // 8 - 16)


def test_concatenation_of_equal_grids():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "uint8"), y: R.Tensor((2, 2), "uint8")) -> R.Tuple(
            R.Tensor((2, 5), "float64")
        ):
            with R.dataflow():
                a = R.multiply(R.astype(x, "float64"), R.const(0.5, "float64"))
                b = R.multiply(R.astype(y, "float64"), R.const(0.5, "float64"))
                z = R.concat((a, b), axis=1)
                out = (z,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "uint8"), y: R.Tensor((2, 2), "uint8")) -> R.Tuple(
            R.Tensor((2, 5), "float64")
        ):
            with R.dataflow():
                both = R.concat((x, y), axis=1)
                z = R.multiply(R.astype(both, "float64"), R.const(0.5, "float64"))
                out = (z,)
                R.output(out)
            return out

    check(SinkDequantize, Before, Expected, codes("uint8", 2, 3), codes("uint8", 2, 2))


def test_concatenation_of_two_grids_stays_real():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 3), "uint8"), y: R.Tensor((2, 2), "uint8")) -> R.Tuple(
            R.Tensor((2, 5), "float64")
        ):
            with R.dataflow():
                a = R.multiply(R.astype(x, "float64"), R.const(0.5, "float64"))
                b = R.multiply(R.astype(y, "float64"), R.const(0.25, "float64"))
                z = R.concat((a, b), axis=1)
                out = (z,)
                R.output(out)
            return out

    unchanged(SinkDequantize, Module)


def test_concatenation_of_two_zero_points_stays_real():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 3), "uint8"), y: R.Tensor((2, 2), "uint8")) -> R.Tuple(
            R.Tensor((2, 5), "float64")
        ):
            with R.dataflow():
                a = R.multiply(R.astype(x, "float64"), R.const(0.5, "float64"))
                centred = R.subtract(R.astype(y, "float64"), R.const(3, "float64"))
                b = R.multiply(centred, R.const(0.5, "float64"))
                z = R.concat((a, b), axis=1)
                out = (z,)
                R.output(out)
            return out

    unchanged(SinkDequantize, Module)
