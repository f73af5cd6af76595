"""LowerAdd: two tensors on the finer of their grids, rounded once."""

import pytest
from golden import HALF, check, codes
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.passes.lower_add import LowerAdd
from targets.errors import ArithmeticRangeError


def _before(first, second, output):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 300), "uint8"), z: R.Tensor((2, 300), "int8")) -> R.Tuple(
            R.Tensor((2, 300), "int8")
        ):
            with R.dataflow():
                x_centred = R.subtract(R.astype(x, "float64"), R.const(30, "float64"))
                a = R.multiply(x_centred, R.const(first, "float64"))
                b = R.multiply(R.astype(z, "float64"), R.const(second, "float64"))
                total = R.add(a, b)
                ratio = R.divide(total, R.const(output, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(-5, "float64"))
                y = R.astype(R.clip(shifted, -128, 127), "int8")
                out = (y,)
                R.output(out)
            return out

    return Before


def test_powers_of_two():
    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 300), "uint8"), z: R.Tensor((2, 300), "int8")) -> R.Tuple(
            R.Tensor((2, 300), "int8")
        ):
            with R.dataflow():
                centred = R.subtract(R.astype(x, "int32"), R.const(30, "int32"))
                a = R.left_shift(centred, R.const(2, "int32"))
                b = R.astype(z, "int32")
                total = R.add(a, b)
                raised = R.add(total, R.const(4, "int32"))
                whole = R.right_shift(raised, R.const(3, "int32"))
                shifted = R.add(whole, R.const(-5, "int32"))
                y = R.astype(R.clip(shifted, -128, 127), "int8")
                out = (y,)
                R.output(out)
            return out

    inputs = codes("uint8", 2, 300), codes("int8", 2, 300)[:, ::-1].copy()
    check(LowerAdd, _before(0.5, 0.125, 1.0), Expected, *inputs)


def test_free_steps_have_multipliers():
    """7 / 2^4 and 9 / 2^2 of an output step of 0.3."""

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 300), "uint8"), z: R.Tensor((2, 300), "int8")) -> R.Tuple(
            R.Tensor((2, 300), "int8")
        ):
            with R.dataflow():
                centred = R.subtract(R.astype(x, "int64"), R.const(30, "int64"))
                a = R.multiply(centred, R.const(7, "int64"))
                nine = R.multiply(R.astype(z, "int64"), R.const(9, "int64"))
                b = R.left_shift(nine, R.const(2, "int64"))
                total = R.add(a, b)
                raised = R.add(total, R.const(8, "int64"))
                whole = R.right_shift(raised, R.const(4, "int64"))
                shifted = R.add(whole, R.const(-5, "int64"))
                y = R.astype(R.clip(shifted, -128, 127), "int8")
                out = (y,)
                R.output(out)
            return out

    inputs = codes("uint8", 2, 300), codes("int8", 2, 300)[:, ::-1].copy()
    check(LowerAdd, _before(0.3 * 7 / 16, 0.3 * 9 / 4, 0.3), Expected, *inputs)


def test_steps_too_far_apart_are_refused():
    with pytest.raises(ArithmeticRangeError, match=r"total: needs .* a left shift of 40 of an"):
        LowerAdd()(_before(2.0**20, 2.0**-20, 2.0**20))
