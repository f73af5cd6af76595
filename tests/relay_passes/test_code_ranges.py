"""What codes a tensor can hold, as far as its definition tells."""

import numpy as np
import pytest
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.code_ranges import CodeRanges
from relay_passes.relax_nodes import Graph


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_codes_hold_what_the_clip_leaves(dtype):
    low, high = (3, 90) if dtype == "uint8" else (-7, 90)
    table = np.arange(256) % 40 + 5

    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 4, 4, 3), dtype)) -> R.Tuple(R.Tensor((2, 4, 4, 3), dtype)):
            with R.dataflow():
                clipped = R.astype(R.clip(R.astype(x, "int32"), low, high), dtype)
                padded = R.nn.pad(clipped, [0, 0, 1, 1, 1, 1, 0, 0], pad_value=99)
                pooled = R.nn.max_pool2d(padded, [3, 3], layout="NHWC")
                part = R.strided_slice(pooled, [1], [0], [2], [1])
                both = R.concat((part, part), axis=1)
                looked = R.take(R.const(table, dtype), R.astype(both, "int32"), axis=0)
                summed = R.add(looked, looked)
                out = (summed,)
                R.output(out)
            return out

    graph = Graph(Module)
    ranges = CodeRanges(graph)
    variables = {var.name: var for var, _ in graph.bindings}
    full = (0, 255) if dtype == "uint8" else (-128, 127)
    assert ranges.of(graph.params[0]) == full
    assert ranges.of(variables["clipped"]) == (low, high)
    for name in ("padded", "pooled", "part", "both"):
        assert ranges.of(variables[name]) == (low, 99)
    assert ranges.of(variables["looked"]) == (5, 44)
    assert ranges.of(variables["summed"]) == full
