"""QuantizeConstants: weights are rounded once and for all."""

import numpy as np
import pytest
from golden import FLOOR, HALF, check, reals
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.passes.quantize_constants import QuantizeConstants


@pytest.mark.parametrize(
    ("addend", "rounded"),
    [(HALF, [[0, 1, 127], [0, -1, -127]]), (FLOOR, [[0, 0, 127], [-1, -1, -127]])],
    ids=["half up", "floor"],
)
def test_weights_with_a_step_per_channel(addend, rounded):
    weight = np.array([[0.24, 0.25, 99.0], [-0.5, -0.51, -199.0]])  # ties and both ends
    steps = np.array([[0.5], [1.0]])

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 3), "float64")) -> R.Tuple(R.Tensor((2, 3), "float64")):
            with R.dataflow():
                ratio = R.divide(R.const(weight, "float64"), R.const(steps, "float64"))
                whole = R.floor(R.add(ratio, R.const(addend, "float64")))
                codes = R.astype(R.clip(whole, -127, 127), "int8")
                real = R.multiply(R.astype(codes, "float64"), R.const(steps, "float64"))
                y = R.multiply(x, real)
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 3), "float64")) -> R.Tuple(R.Tensor((2, 3), "float64")):
            with R.dataflow():
                codes = R.astype(R.const(np.array(rounded), "int8"), "float64")
                real = R.multiply(codes, R.const(steps, "float64"))
                y = R.multiply(x, real)
                out = (y,)
                R.output(out)
            return out

    check(QuantizeConstants, Before, Expected, reals(2, 3))
