"""The quantize of inputs in one kernel: the same codes as its operators give, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from relay_passes.forms.quantization import Quantize, emit_quantize
from relay_passes.fuse_quantize import FuseQuantize
from targets.rounding import FLOOR, HALF_UP


def module(step, zero_point, low, high, dtype, rounding, sizes=(3, 4, 5)):
    builder = relax.BlockBuilder()
    n = tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((n, *sizes), "float32"))

    def emit(expr, name=""):
        return builder.emit(expr, name_hint=name)

    with builder.function("main", [x]):
        with builder.dataflow():
            source = emit(relax.op.astype(x, "float64"))
            quantize = Quantize(source, np.array(step), zero_point, low, high, dtype, rounding)
            codes = emit_quantize(emit, quantize, "codes")
            result = builder.emit_output(relax.Tuple([codes]))
        builder.emit_func_output(result)
    return builder.get()


def run(mod, x):
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x))[0].numpy()


@pytest.mark.parametrize(
    "quantize",
    [
        (0.25, 0, -128, 127, "int8", HALF_UP),
        (0.0207874, 17, 0, 255, "uint8", HALF_UP),
        (0.5, -3, -100, 90, "int8", FLOOR),
    ],
)
def test_codes_are_the_same(quantize):
    before = module(*quantize)
    copy = before.clone()
    after = FuseQuantize()(before)
    tvm.ir.assert_structural_equal(before, copy)
    assert "cpu_quantize" in str(after["main"])
    assert "R.floor" not in str(after["main"])
    rng = np.random.default_rng(0)
    step = quantize[0]
    ties = step * (rng.integers(-300, 300, (2, 3, 4, 5)) / 2)
    for x in (ties, rng.standard_normal((3, 3, 4, 5)) * 100 * step, np.full((1, 3, 4, 5), 1e9)):
        x = x.astype(np.float32)
        np.testing.assert_array_equal(run(after, x), run(before, x))


def test_float_ends_are_left_alone():
    mod = module(0.25, 0, -128, 127, "int8", HALF_UP)
    mod["head"] = mod["main"]
    assert FuseQuantize()(mod).same_as(mod)
