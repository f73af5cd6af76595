"""FoldActivations: ReLU and clamp become limits of the clip."""

import pytest
from golden import FLOOR, HALF, check, reals, unchanged
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.passes.fold_activations import FoldActivations


@pytest.mark.parametrize(("addend", "high"), [(HALF, 23), (FLOOR, 22)], ids=["half up", "floor"])
def test_relu_and_clamp_off_the_grid(addend, high):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 40), "float64")) -> R.Tuple(R.Tensor(("n", 40), "uint8")):
            with R.dataflow():
                relu = R.nn.relu(x)
                clamped = R.clip(relu, -1.0, 6.3)
                ratio = R.divide(clamped, R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(addend, "float64")))
                shifted = R.add(whole, R.const(10, "float64"))
                y = R.astype(R.clip(shifted, 0, 255), "uint8")
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 40), "float64")) -> R.Tuple(R.Tensor(("n", 40), "uint8")):
            with R.dataflow():
                ratio = R.divide(x, R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(addend, "float64")))
                shifted = R.add(whole, R.const(10, "float64"))
                y = R.astype(R.clip(shifted, 10, high), "uint8")
                out = (y,)
                R.output(out)
            return out

    check(FoldActivations, Before, Expected, reals(50, 40, step=0.5))


@pytest.mark.parametrize(
    ("least", "most", "low", "high"),
    [(-3.0, 3.0, -18, 6), (-99.0, 99.0, -128, 127), (20.0, 30.0, 74, 114), (70.0, 80.0, 127, 127)],
)
def test_clamp_of_signed_codes(least, most, low, high):
    """Also where the clamp's ends lie beyond the codes: then it says nothing, or everything."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((50, 8), "float64")) -> R.Tuple(
            R.Tensor((50, 8), "int8"), R.Tensor((50, 8), "float64")
        ):
            with R.dataflow():
                clamped = R.clip(x, least, most)
                ratio = R.divide(clamped, R.const(0.25, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(-6, "float64"))
                y = R.astype(R.clip(shifted, -128, 127), "int8")
                out = (y, x)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((50, 8), "float64")) -> R.Tuple(
            R.Tensor((50, 8), "int8"), R.Tensor((50, 8), "float64")
        ):
            with R.dataflow():
                ratio = R.divide(x, R.const(0.25, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(-6, "float64"))
                y = R.astype(R.clip(shifted, low, high), "int8")
                out = (y, x)
                R.output(out)
            return out

    check(FoldActivations, Before, Expected, reals(50, 8, step=0.25))


def test_an_activation_that_is_read_elsewhere_stays_for_that_reader():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((50, 8), "float64")) -> R.Tuple(
            R.Tensor((50, 8), "uint8"), R.Tensor((50, 8), "float64")
        ):
            with R.dataflow():
                relu = R.nn.relu(x)
                ratio = R.divide(relu, R.const(0.25, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                y = R.astype(R.clip(whole, 0, 255), "uint8")
                out = (y, relu)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((50, 8), "float64")) -> R.Tuple(
            R.Tensor((50, 8), "uint8"), R.Tensor((50, 8), "float64")
        ):
            with R.dataflow():
                relu = R.nn.relu(x)
                ratio = R.divide(x, R.const(0.25, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                y = R.astype(R.clip(whole, 0, 255), "uint8")
                out = (y, relu)
                R.output(out)
            return out

    check(FoldActivations, Before, Expected, reals(50, 8, step=0.25))


def test_a_relu_that_nothing_quantizes_stays():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((50, 8), "float64")) -> R.Tuple(R.Tensor((50, 8), "float64")):
            with R.dataflow():
                relu = R.nn.relu(x)
                out = (relu,)
                R.output(out)
            return out

    unchanged(FoldActivations, Module)
