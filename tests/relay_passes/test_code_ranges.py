"""The bound of a layer's sums is reached by an input and exceeded by none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.code_ranges import code_range, sum_bound
from relay_passes.relax_nodes import Graph

RANGES = st.tuples(st.integers(-128, 255), st.integers(-128, 255)).map(sorted)
WEIGHTS = hnp.arrays(np.int8, st.tuples(st.integers(1, 3), st.integers(1, 9)))


@given(WEIGHTS, st.lists(st.integers(-(2**20), 2**20), min_size=3, max_size=3), RANGES, st.data())
def test_some_partial_sum_reaches_the_bound_and_none_exceeds_it(weight, bias, codes, data):
    low, high = codes
    rows = weight.astype(np.int64)
    bias = np.array(bias[: len(rows)])
    bound = sum_bound(weight, bias, low, high)

    def reached(x):
        """Largest |partial sum|, with and without the bias, of one input per row."""
        partial = np.concatenate([np.zeros((len(rows), 1), int), np.cumsum(rows * x, 1)], 1)
        return max(np.abs(partial[:, 1:]).max(), np.abs(partial[:, -1] + bias).max())

    x = data.draw(hnp.arrays(np.int64, rows.shape, elements=st.integers(low, high)))
    order = data.draw(st.permutations(range(rows.shape[1])))
    assert reached(x) <= bound
    rows, x = rows[:, order], x[:, order]
    assert reached(x) <= bound

    # The adversary: each product at its largest (or smallest), those that would cancel come last.
    best = 0
    for sign in (1, -1):
        x = np.where(sign * rows > 0, high, low)
        products = np.sort(sign * rows * x, axis=1)[:, ::-1]
        partial = np.cumsum(products, axis=1)
        whole = np.maximum(products, 0).sum(1)
        best = max(best, partial.max(), np.abs(sign * whole + bias).max(), np.abs(bias).max())
    assert best == bound


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
    variables = {var.name: var for var, _ in graph.bindings}
    full = (0, 255) if dtype == "uint8" else (-128, 127)
    assert code_range(graph, graph.params[0]) == full
    assert code_range(graph, variables["clipped"]) == (low, high)
    for name in ("padded", "pooled", "part", "both"):
        assert code_range(graph, variables[name]) == (low, 99)
    assert code_range(graph, variables["looked"]) == (5, 44)
    assert code_range(graph, variables["summed"]) == full
