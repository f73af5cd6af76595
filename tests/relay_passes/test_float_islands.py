"""Islands are called where what they read is made, and give numbers; all else stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from unoptimized import LLVM

from relay_passes.float_islands import Island, island_behind, join_islands
from relay_passes.relax_nodes import Graph, called_function, is_tuple, is_var
from targets.errors import UnsupportedError
from tvmq.run.reference import run_reference


def module(names, build):
    """Main takes a float32 [n, 2] for each name and returns what ``build`` makes of them."""
    builder, batch = relax.BlockBuilder(), tvm.tirx.Var("n", "int64")
    params = [relax.Var(name, relax.TensorType([batch, 2], "float32")) for name in names]
    with builder.function("main", params):
        with builder.dataflow():
            fields = [v if is_var(v) else builder.emit(v) for v in build(builder.emit, *params)]
            result = builder.emit_output(relax.Tuple(fields))
        builder.emit_func_output(result)
    return builder.get()


def number(value):
    return relax.const(np.float32(value))


def island(name, results, names, build):
    return Island(name, module(names, build), results, "net.py:3", "sort", 5)


def run(mod, *inputs):
    machine = relax.VirtualMachine(tvm.compile(mod, target=LLVM), tvm.cpu())
    found = machine["main"](*(tvm.runtime.tensor(x.astype(np.float32)) for x in inputs))
    return [value.numpy() for value in found], machine


def chained():
    """Two islands: the second reads what is made of the first, but comes first as a parameter."""

    def build(emit, x, late, low, high):
        doubled = emit(relax.op.multiply(x, number(2)))
        between = emit(relax.op.subtract(high, low))
        result = emit(relax.op.add(late, doubled))
        return [result, between, x, doubled, x, doubled]

    integer = module(["x", "late", "low", "high"], build)
    late = island("island_0", ("late",), ["b"], lambda _, b: [relax.op.add(b, number(100))])
    early = island(
        "island_1",
        ("low", "high"),
        ["x", "d"],
        lambda _, x, d: [relax.op.minimum(x, d), relax.op.maximum(x, d)],
    )
    return integer, [late, early]


def test_islands_run_in_the_order_of_what_they_read():
    integer, islands = chained()
    before = integer.script()
    mod = join_islands(integer, islands)
    assert integer.script() == before
    assert [param.name for param in mod["main"].params] == ["x"]
    assert {"main", "island_0", "island_1"} <= {var.name_hint for var in mod.functions}
    for count in (1, 3):
        x = np.arange(-2, 2 * count - 2).reshape(count, 2)
        (result,), machine = run(mod, x)
        np.testing.assert_array_equal(result, np.abs(x) + 100 + 2 * x)
        given = (tvm.runtime.tensor(np.float32(v)) for v in (x, 2 * x))
        low, high = (value.numpy() for value in machine["island_1"](*given))
        np.testing.assert_array_equal(low, np.minimum(x, 2 * x))
        np.testing.assert_array_equal(high, np.maximum(x, 2 * x))


def test_without_islands_the_module_is_the_same():
    integer = module(["x"], lambda _, x: [relax.op.add(x, x)])
    assert join_islands(integer, []) is integer


def test_what_is_no_number_becomes_zero_and_infinity_stays():
    integer = module(["x", "i"], lambda _, x, i: [relax.op.add(i, x), x])
    divided = island(
        "island_0", ("i",), ["x"], lambda _, x: [relax.op.divide(x, relax.op.subtract(x, x))]
    )
    (result,), _ = run(join_islands(integer, [divided]), np.array([[0.0, 1.0]]))
    np.testing.assert_array_equal(result, [[0.0, np.inf]])


def test_a_function_knows_where_it_is_from_and_what_it_does():
    attrs = join_islands(*chained())["island_0"].attrs
    assert (attrs["source"], attrs["operators"], int(attrs["macs"])) == ("net.py:3", "sort", 5)
    assert (
        tvm.ir.load_json(tvm.ir.save_json(join_islands(*chained())))["island_0"].attrs["macs"] == 5
    )


def test_the_call_is_found_behind_floats_and_nowhere_else():
    graph = Graph(join_islands(*chained()))
    calls = {called_function(v): var for var, v in graph.bindings if called_function(v)}
    by_name = {var.name: var for var, value in graph.bindings if not is_tuple(value)}
    assert island_behind(graph, by_name["late"]) == calls["island_0"]
    assert island_behind(graph, by_name["high"]) == calls["island_1"]
    assert island_behind(graph, graph.params[0]) is None
    assert island_behind(graph, graph.outputs[0]) is None  # of an island and of what is none


def test_the_reference_runs_an_island_by_what_it_is_given():
    def build(_, x, i):
        return [relax.op.add(i, x), x]

    mod = join_islands(
        module(["x", "i"], build),
        [island("island_0", ("i",), ["x"], lambda _, x: [relax.op.negative(x)])],
    )
    x = np.array([[1.0, 2.0]], np.float32)
    asked = []

    def library(read, name):
        asked.append((name, len(read)))
        return [10 * read[0]]

    (found,) = run_reference(mod, {"x": x}, islands=library)
    np.testing.assert_array_equal(found, 11 * x)
    assert asked == [("island_0", 1)]
    with pytest.raises(UnsupportedError, match="island_0 runs in float, by the code of a library"):
        run_reference(mod, {"x": x})
