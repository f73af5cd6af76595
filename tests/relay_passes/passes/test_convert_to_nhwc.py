"""ConvertToNhwc: images are held as N H W C, and everything that names an axis follows."""

import numpy as np
from golden import HALF, check, codes, reals
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.passes.convert_to_nhwc import ConvertToNhwc


def test_convolution_bias_and_pooling():
    weight = np.random.default_rng(0).integers(-9, 9, (4, 2, 3, 2)).astype(np.float64)
    bias = np.array([1.0, -2.0, 3.0, 0.5])

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 4, 9, 8), "uint8")) -> R.Tuple(
            R.Tensor(("n", 4, 3, 3), "float64")
        ):
            with R.dataflow():
                real = R.astype(x, "float64")
                products = R.nn.conv2d(
                    real,
                    R.const(weight, "float64"),
                    strides=[2, 1],
                    padding=[1, 0, 2, 1],
                    dilation=[1, 2],
                    groups=2,
                )
                sums = R.add(products, R.const(bias.reshape(1, 4, 1, 1), "float64"))
                y = R.nn.max_pool2d(sums, [2, 3], strides=[2, 2], padding=[0, 1, 1, 0])
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 4, 9, 8), "uint8")) -> R.Tuple(
            R.Tensor(("n", 4, 3, 3), "float64")
        ):
            with R.dataflow():
                real = R.astype(x, "float64")
                image = R.permute_dims(real, [0, 2, 3, 1])
                products = R.nn.conv2d(
                    image,
                    R.const(weight.transpose(0, 2, 3, 1), "float64"),
                    strides=[2, 1],
                    padding=[1, 0, 2, 1],
                    dilation=[1, 2],
                    groups=2,
                    data_layout="NHWC",
                    kernel_layout="OHWI",
                )
                sums = R.add(products, R.const(bias.reshape(1, 1, 1, 4), "float64"))
                y = R.nn.max_pool2d(
                    sums, [2, 3], strides=[2, 2], padding=[0, 1, 1, 0], layout="NHWC"
                )
                y_nchw = R.permute_dims(y, [0, 3, 1, 2])
                out = (y_nchw,)
                R.output(out)
            return out

    check(ConvertToNhwc, Before, Expected, codes("uint8", 2, 4, 9, 8))


def test_the_input_is_transposed_once_it_is_bytes():
    """A concatenation and a slice along channels, a padding of height and width, an output."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 3, 4, 5), "float64")) -> R.Tuple(
            R.Tensor(("n", 2, 5, 7), "uint8")
        ):
            with R.dataflow():
                ratio = R.divide(x, R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                q = R.astype(R.clip(whole, 0, 255), "uint8")
                both = R.concat((q, q), axis=1)
                part = R.strided_slice(both, [1], [1], [4], [2])
                y = R.nn.pad(part, [0, 0, 0, 0, 1, 0, 0, 2], pad_value=3)
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 3, 4, 5), "float64")) -> R.Tuple(
            R.Tensor(("n", 2, 5, 7), "uint8")
        ):
            with R.dataflow():
                ratio = R.divide(x, R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                q_nchw = R.astype(R.clip(whole, 0, 255), "uint8")
                q = R.permute_dims(q_nchw, [0, 2, 3, 1])
                both = R.concat((q, q), axis=3)
                part = R.strided_slice(both, [3], [1], [4], [2])
                y = R.nn.pad(part, [0, 0, 1, 0, 0, 2, 0, 0], pad_value=3)
                y_nchw = R.permute_dims(y, [0, 3, 1, 2])
                out = (y_nchw,)
                R.output(out)
            return out

    check(ConvertToNhwc, Before, Expected, reals(2, 3, 4, 5, step=0.5))


def test_reshapes_keep_the_order_of_torch():
    """Flatten of an image, and an image made of a vector; 1 × 1 images need no transposition."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 5), "int8")) -> R.Tuple(
            R.Tensor((2, 60), "int8"), R.Tensor((2, 6, 5, 2), "int8"), R.Tensor((2, 60), "int8")
        ):
            with R.dataflow():
                top = R.strided_slice(x, [0], [0], [2], [1])
                flat = R.reshape(top, (2, 60))
                image = R.reshape(flat, (2, 6, 5, 2))
                point = R.reshape(flat, (2, 60, 1, 1))
                again = R.reshape(point, (2, 60))
                out = (flat, image, again)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 5), "int8")) -> R.Tuple(
            R.Tensor((2, 60), "int8"), R.Tensor((2, 6, 5, 2), "int8"), R.Tensor((2, 60), "int8")
        ):
            with R.dataflow():
                held = R.permute_dims(x, [0, 2, 3, 1])
                top = R.strided_slice(held, [0], [0], [2], [1])
                ordered = R.permute_dims(top, [0, 3, 1, 2])
                flat = R.reshape(ordered, (2, 60))
                rows = R.reshape(flat, (2, 6, 5, 2))
                image = R.permute_dims(rows, [0, 2, 3, 1])
                point = R.reshape(flat, (2, 1, 1, 60))
                again = R.reshape(point, (2, 60))
                image_nchw = R.permute_dims(image, [0, 3, 1, 2])
                out = (flat, image_nchw, again)
                R.output(out)
            return out

    check(ConvertToNhwc, Before, Expected, codes("int8", 2, 3, 4, 5))


def test_transpositions_are_told_in_the_new_axes():
    """Channels and width change places; where the image is held, these are its last two axes."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 5), "int8")) -> R.Tuple(R.Tensor((2, 5, 4, 3), "int8")):
            with R.dataflow():
                y = R.permute_dims(x, [0, 3, 2, 1])
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3, 4, 5), "int8")) -> R.Tuple(R.Tensor((2, 5, 4, 3), "int8")):
            with R.dataflow():
                held = R.permute_dims(x, [0, 2, 3, 1])
                y = R.permute_dims(held, [0, 1, 3, 2])
                y_nchw = R.permute_dims(y, [0, 3, 1, 2])
                out = (y_nchw,)
                R.output(out)
            return out

    check(ConvertToNhwc, Before, Expected, codes("int8", 2, 3, 4, 5))
