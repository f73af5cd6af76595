"""HoistQuantize: values are rounded before they are moved."""

import numpy as np
from golden import HALF, check, reals, unchanged
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.passes.hoist_quantize import HoistQuantize


def test_before_a_reshape_and_a_transposition():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((6, 4, 3, 5), "float64")) -> R.Tuple(R.Tensor((6, 60), "uint8")):
            with R.dataflow():
                turned = R.permute_dims(x, [0, 2, 3, 1])
                flat = R.reshape(turned, (6, 60))
                ratio = R.divide(flat, R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(10, "float64"))
                y = R.astype(R.clip(shifted, 0, 255), "uint8")
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((6, 4, 3, 5), "float64")) -> R.Tuple(R.Tensor((6, 60), "uint8")):
            with R.dataflow():
                ratio = R.divide(x, R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(10, "float64"))
                codes = R.astype(R.clip(shifted, 0, 255), "uint8")
                turned = R.permute_dims(codes, [0, 2, 3, 1])
                y = R.reshape(turned, (6, 60))
                out = (y,)
                R.output(out)
            return out

    check(HoistQuantize, Before, Expected, reals(6, 4, 3, 5, step=0.5))


def test_a_step_per_channel_stays_where_its_axis_is():
    steps = np.array([0.5, 0.25, 1.0])

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((3, 2), "float64")) -> R.Tuple(R.Tensor((2, 3), "int8")):
            with R.dataflow():
                turned = R.permute_dims(x, [1, 0])
                ratio = R.divide(turned, R.const(steps, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                y = R.astype(R.clip(whole, -128, 127), "int8")
                out = (y,)
                R.output(out)
            return out

    unchanged(HoistQuantize, Module)
