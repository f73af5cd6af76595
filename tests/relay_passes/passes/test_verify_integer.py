"""VerifyInteger: an integer module passes as it is, a float in between is named."""

import numpy as np
import pytest
import tvm
from golden import HALF, check, reals
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.passes.verify_integer import VerifyInteger
from targets.errors import UnsupportedError


def test_an_integer_module_passes_as_it_is():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 30), "float32")) -> R.Tuple(R.Tensor((2, 30), "float32")):
            with R.dataflow():
                wide = R.astype(x, "float64")
                ratio = R.divide(wide, R.const(0.5, "float64"))
                whole = R.floor(R.add(ratio, R.const(HALF, "float64")))
                codes = R.astype(R.clip(whole, -128, 127), "int8")
                doubled = R.left_shift(R.astype(codes, "int32"), R.const(1, "int32"))
                real = R.multiply(R.astype(doubled, "float64"), R.const(0.5, "float64"))
                y = R.astype(real, "float32")
                out = (y,)
                R.output(out)
            return out

    given = tvm.IRModule(Module.functions)
    assert VerifyInteger()(given).same_as(given)
    check(VerifyInteger, Module, Module, reals(2, 30).astype(np.float32))


def test_a_float_between_codes_is_named():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2,), "uint8")) -> R.Tuple(R.Tensor((2,), "uint8")):
            with R.dataflow():
                real = R.astype(x, "float32")
                root = R.sqrt(real)
                y = R.astype(root, "uint8")
                out = (y,)
                R.output(out)
            return out

    with pytest.raises(UnsupportedError, match="real: 'astype' is still computed in floating"):
        VerifyInteger()(Module)


def test_a_function_behind_the_last_codes_is_named():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2,), "uint8")) -> R.Tuple(R.Tensor((2,), "float64")):
            with R.dataflow():
                real = R.multiply(R.astype(x, "float64"), R.const(0.5, "float64"))
                gelu = R.nn.gelu(real)
                out = (gelu,)
                R.output(out)
            return out

    with pytest.raises(UnsupportedError, match=r"gelu: 'nn\.gelu' is still computed in floating"):
        VerifyInteger()(Module)


def test_a_function_before_the_first_codes_is_named():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2,), "float64")) -> R.Tuple(R.Tensor((2,), "uint8")):
            with R.dataflow():
                root = R.sqrt(x)
                y = R.astype(root, "uint8")
                out = (y,)
                R.output(out)
            return out

    with pytest.raises(UnsupportedError, match="root: 'sqrt' is still computed in floating"):
        VerifyInteger()(Module)


def test_an_output_that_was_never_quantized_is_named():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2,), "float64")) -> R.Tuple(R.Tensor((2,), "float64")):
            with R.dataflow():
                y = R.add(x, x)
                out = (y,)
                R.output(out)
            return out

    with pytest.raises(UnsupportedError, match="y: the network returns it without having quant"):
        VerifyInteger()(Module)
