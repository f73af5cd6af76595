"""A placed module between the float ends of its network.

    main(inputs) = tail(integers(head(inputs)))

The three are functions of the library by these names, so that whoever executes the integers
otherwise, as the reference does, runs the same compiled ends. What passes by the integers goes
from the end of the head's results to the end of the tail's parameters.
"""

from __future__ import annotations

from tvm import IRModule, relax, tirx

from relay_passes.frontend.import_torch import BATCH
from relay_passes.imported_part import add_part
from relay_passes.relax_nodes import Var, dtype_of

HEAD, INTEGERS, TAIL = "head", "integers", "tail"


def join_ends(placed: IRModule, head: IRModule, tail: IRModule) -> IRModule:
    """Join both ends and what is between them.

    Args:
        placed: its ``main`` is what is between; left as it was.
        head: its ``main`` is in front, from ``import_float``.
        tail: its ``main`` is behind, likewise.

    Returns:
        A module of the functions HEAD, INTEGERS, TAIL and ``main``, which calls them.
    """
    mod = placed.clone()
    integers = mod["main"]
    del mod["main"]
    builder = relax.BlockBuilder(mod)
    parts = {HEAD: add_part(builder, head, HEAD), TAIL: add_part(builder, tail, TAIL)}
    parts[INTEGERS] = builder.add_func(integers.with_attr("global_symbol", INTEGERS), INTEGERS)
    batch = tirx.Var(BATCH, "int64")
    params = [_like(param, batch) for param in head["main"].params]
    with builder.function("main", params):
        with builder.dataflow():
            made = builder.emit(parts[HEAD](*params))
            count = len(head["main"].ret_ty.fields)
            given = [builder.emit(relax.TupleGetItem(made, i)) for i in range(count)]
            read, passing = given[: len(integers.params)], given[len(integers.params) :]
            between = builder.emit(parts[INTEGERS](*read))
            sums = [
                builder.emit(relax.TupleGetItem(between, i))
                for i in range(len(tail["main"].params) - len(passing))
            ]
            result = builder.emit_output(parts[TAIL](*sums, *passing))
        builder.emit_func_output(result)
    return builder.get()


def _like(param: Var, batch: tirx.Var) -> Var:
    """A parameter of the same name and type, of another symbol for the batch."""
    sizes = [batch, *param.ty.shape.values[1:]]
    return relax.Var(param.name, relax.TensorType(sizes, dtype_of(param)))
