"""FoldFlatten: the weight of a dense layer takes the order of the image, not the other way."""

import numpy as np
from golden import check, codes, unchanged
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from relay_passes.passes.fold_flatten import FoldFlatten

WEIGHT = np.random.default_rng(0).integers(-128, 128, (30, 4))


def test_weight_rows_follow_the_image():
    reordered = np.empty_like(WEIGHT)
    for h, w, c in np.ndindex(2, 3, 5):
        reordered[(h * 3 + w) * 5 + c] = WEIGHT[(c * 2 + h) * 3 + w]

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 2, 3, 5), "uint8")) -> R.Tuple(R.Tensor(("n", 4), "int32")):
            n = T.int64()
            with R.dataflow():
                image = R.permute_dims(x, [0, 3, 1, 2])
                flat = R.reshape(image, (n, 30))
                y = R.matmul(flat, R.const(WEIGHT, "int8"), out_dtype="int32")
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 2, 3, 5), "uint8")) -> R.Tuple(R.Tensor(("n", 4), "int32")):
            n = T.int64()
            with R.dataflow():
                flat = R.reshape(x, (n, 30))
                y = R.matmul(flat, R.const(reordered, "int8"), out_dtype="int32")
                out = (y,)
                R.output(out)
            return out

    check(FoldFlatten, Before, Expected, codes("uint8", 3, 2, 3, 5))


def test_another_order_of_axes_stays():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 2, 3, 5), "uint8")) -> R.Tuple(R.Tensor((2, 4), "int32")):
            with R.dataflow():
                image = R.permute_dims(x, [0, 3, 2, 1])
                flat = R.reshape(image, (2, 30))
                y = R.matmul(flat, R.const(WEIGHT, "int8"), out_dtype="int32")
                out = (y,)
                R.output(out)
            return out

    unchanged(FoldFlatten, Module)
