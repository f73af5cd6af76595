"""Head, integers and tail as one module: in this order, for any batch, and each by its name."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from unoptimized import LLVM

from relay_passes.float_ends import join_ends


def function(count, build, name="b", sizes=(2,)):
    """A module whose main takes ``count`` tensors float32 [batch, 2]."""
    builder, batch = relax.BlockBuilder(), tvm.tirx.Var(name, "int64")
    params = [
        relax.Var(f"{name}{i}", relax.TensorType([batch, *sizes], "float32")) for i in range(count)
    ]
    with builder.function("main", params):
        with builder.dataflow():
            fields = [builder.emit(value) for value in build(*params)]
            result = builder.emit_output(relax.Tuple(fields))
        builder.emit_func_output(result)
    return builder.get()


def add(x, value):
    return relax.op.add(x, relax.const(np.float32(value)))


def twice(x):
    return relax.op.multiply(x, relax.const(np.float32(2)))


def test_what_passes_by_the_integers_goes_from_head_to_tail():
    head = function(1, lambda x: [add(x, 1.0), add(x, 100.0)], "h")
    placed = function(1, lambda x: [twice(x)], "n")
    tail = function(2, lambda sums, passed: [relax.op.subtract(sums, passed), sums], "t")
    before = placed.script()
    mod = join_ends(placed, head, tail)
    assert placed.script() == before
    assert {var.name_hint for var in mod.functions} == {"head", "integers", "tail", "main"}
    assert [param.name for param in mod["main"].params] == ["h0"]

    machine = relax.VirtualMachine(tvm.compile(mod, target=LLVM), tvm.cpu())
    for count in (1, 3):
        x = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
        given = tvm.runtime.tensor(x)
        difference, sums = (value.numpy() for value in machine["main"](given))
        np.testing.assert_array_equal(sums, 2 * (x + 1))
        np.testing.assert_array_equal(difference, 2 * (x + 1) - (x + 100))
        (alone,) = (value.numpy() for value in machine["integers"](given))
        np.testing.assert_array_equal(alone, 2 * x)
