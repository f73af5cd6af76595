"""LowerLookup: any function of one tensor of codes is a table."""

import math

import numpy as np
from golden import HALF, check, codes, unchanged
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.passes.lower_lookup import LowerLookup


def test_a_function_of_unsigned_codes():
    """x * sigmoid(x), from a grid of 1/16 around 100 to one of 1/8 around 3."""
    reals = [(q - 100) / 16 for q in range(256)]
    values = [x / (1 + math.exp(-x)) for x in reals]
    table = np.array([min(max(math.floor(v * 8 + 0.5) + 3, 0), 100) for v in values])

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 300), "uint8")) -> R.Tuple(R.Tensor((2, 300), "uint8")):
            with R.dataflow():
                centred = R.subtract(R.astype(x, "float64"), R.const(100, "float64"))
                real = R.multiply(centred, R.const(0.0625, "float64"))
                gate = R.sigmoid(real)
                value = R.multiply(real, gate)
                ratio = R.divide(value, R.const(0.125, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(3, "float64"))
                y = R.astype(R.clip(shifted, 0, 100), "uint8")
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 300), "uint8")) -> R.Tuple(R.Tensor((2, 300), "uint8")):
            with R.dataflow():
                y = R.take(R.const(table, "uint8"), R.astype(x, "int32"), axis=0)
                out = (y,)
                R.output(out)
            return out

    check(LowerLookup, Before, Expected, codes("uint8", 2, 300))


def test_a_change_of_step_of_signed_codes():
    """f is the identity; ties go up, the other grid saturates."""
    table = np.array([min(max((q + 1) // 2 - 20, -128), 20) for q in range(-128, 128)])

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 300), "int8")) -> R.Tuple(R.Tensor((2, 300), "int8")):
            with R.dataflow():
                real = R.multiply(R.astype(x, "float64"), R.const(0.25, "float64"))
                ratio = R.divide(real, R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                shifted = R.add(whole, R.const(-20, "float64"))
                y = R.astype(R.clip(shifted, -128, 20), "int8")
                out = (y,)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 300), "int8")) -> R.Tuple(R.Tensor((2, 300), "int8")):
            with R.dataflow():
                index = R.add(R.astype(x, "int32"), R.const(128, "int32"))
                y = R.take(R.const(table, "int8"), index, axis=0)
                out = (y,)
                R.output(out)
            return out

    check(LowerLookup, Before, Expected, codes("int8", 2, 300))


def test_a_function_of_two_tensors_is_no_table():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 3), "uint8"), z: R.Tensor((2, 3), "uint8")) -> R.Tuple(
            R.Tensor((2, 3), "uint8")
        ):
            with R.dataflow():
                a = R.multiply(R.astype(x, "float64"), R.const(0.25, "float64"))
                b = R.multiply(R.astype(z, "float64"), R.const(0.25, "float64"))
                ratio = R.divide(R.multiply(a, b), R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                y = R.astype(R.clip(whole, 0, 255), "uint8")
                out = (y,)
                R.output(out)
            return out

    unchanged(LowerLookup, Module)
