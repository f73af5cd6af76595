"""Float islands in the middle of an integer module: functions that ``main`` calls.

The passes see an island as they see whoever calls the network: what it reads is returned to it,
what it makes is a parameter. ``join_islands`` puts the calls in between, when all is integers:

    x -> dequantize -> island_0 -> quantize -> y

An island is a function of the library by its name, so that whoever executes the integers otherwise,
as the reference does, runs the same compiled code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tvm import IRModule, relax, tirx

from relay_passes.frontend.import_torch import BATCH
from relay_passes.imported_part import add_part
from relay_passes.relax_nodes import (
    Expr,
    Graph,
    Var,
    called_function,
    constant,
    dtype_of,
    is_float,
    is_tuple,
    variables_in,
)

ISLAND = "island_"
"""How names of islands begin."""


@dataclass(frozen=True)
class Island:
    """What runs in float between integers.

    Attributes:
        name: of the function, which begins with ISLAND.
        mod: its ``main`` computes it, from ``import_float``.
        results: names of the parameters that stand for its results, in order.
        source: module and source line of the first of its operators.
        operators: their kinds, for people.
        macs: multiply-accumulates of one image.
    """

    name: str
    mod: IRModule
    results: tuple[str, ...]
    source: str
    operators: str
    macs: int


def join_islands(mod: IRModule, islands: Sequence[Island]) -> IRModule:
    """Call the islands where ``main`` returns what they read and takes what they make.

    Args:
        mod: the integer module, left as it was. Behind the network's own outputs it returns what
            each result of an island is made of, result by result as the parameters come.
        islands: of the network.

    Returns:
        A module whose ``main`` takes and returns what the network does.
    """
    if not islands:
        return mod
    graph = Graph(mod)
    makers = {name: island for island in islands for name in island.results}
    params = {param.name: param for param in graph.params}
    reads = _reads(graph, makers, params)
    builder = relax.BlockBuilder()
    functions = {island.name: _add(builder, island) for island in islands}
    inputs = [param for param in graph.params if param.name not in makers]
    known: set[Var] = set(inputs)
    pending = [item for item in graph.bindings if not is_tuple(item[1])]
    waiting = list(islands)
    with builder.function("main", inputs):
        with builder.dataflow():
            while pending or waiting:
                left = []
                for var, value in pending:
                    if known.issuperset(variables_in(value)):
                        builder.emit_normalized(relax.VarBinding(var, value))
                        known.add(var)
                    else:
                        left.append((var, value))
                pending = left
                ready = [i for i in waiting if known.issuperset(reads[i.name])]
                for island in ready:
                    call = relax.Call(functions[island.name], reads[island.name])
                    made = builder.emit(call, name_hint=f"{island.name}_results")
                    for index, name in enumerate(island.results):
                        item = builder.normalize(relax.TupleGetItem(made, index))
                        builder.emit_normalized(relax.VarBinding(params[name], item))
                        known.add(params[name])
                waiting = [island for island in waiting if island not in ready]
                assert ready or not waiting, "islands read each other"
            count = len(graph.outputs) - sum(len(reads[i.name]) * len(i.results) for i in islands)
            result = builder.emit_output(relax.Tuple(list(graph.outputs[:count])))
        builder.emit_func_output(result)
    new = builder.get()
    if graph.function.attrs is not None:
        new["main"] = new["main"].with_attrs(dict(graph.function.attrs.items()))
    return new


def _reads(
    graph: Graph, makers: Mapping[str, Island], params: Mapping[str, Var]
) -> dict[str, list[Expr]]:
    """What each island reads: the last outputs, once for each of its results."""
    results = [name for name in params if name in makers]
    counts = [len(makers[name].mod["main"].params) for name in results]
    place = len(graph.outputs) - sum(counts)
    found: dict[str, list[Expr]] = {}
    for name, count in zip(results, counts, strict=True):
        found.setdefault(makers[name].name, list(graph.outputs[place : place + count]))
        place += count
    return found


def _add(builder: relax.BlockBuilder, island: Island) -> Expr:
    """The island as a function that gives numbers: a code is made of no other, so NaN becomes 0."""
    inner = add_part(builder, island.mod, f"{island.name}_operators")
    batch = tirx.Var(BATCH, "int64")
    params = [
        relax.Var(p.name, relax.TensorType([batch, *p.ty.shape.values[1:]], dtype_of(p)))
        for p in island.mod["main"].params
    ]
    with builder.function(island.name, params):
        with builder.dataflow():
            made = builder.emit(inner(*params))
            results = []
            for index in range(len(island.results)):
                x = builder.emit(relax.TupleGetItem(made, index))
                none = builder.emit(relax.op.isnan(x))
                zero = constant(0.0, dtype_of(x))
                results.append(builder.emit(relax.op.where(none, zero, x)))
            output = builder.emit_output(relax.Tuple(results))
        added = builder.emit_func_output(output)
    facts = {"source": island.source, "operators": island.operators, "macs": island.macs}
    builder.update_func(added, builder.get()[island.name].with_attrs(facts))
    return added


def island_behind(graph: Graph, expr: Expr) -> Var | None:
    """The call of an island of whose results floats are made, through floats alone; or None."""
    while (value := graph.value(expr)) is not expr:
        if called_function(value):
            return expr
        sources = variables_in(value)
        if len(sources) != 1 or not (
            is_float(sources[0]) or called_function(graph.value(sources[0]))
        ):
            return None
        (expr,) = sources
    return None
