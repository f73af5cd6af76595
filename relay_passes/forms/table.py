"""A function of one code as a table of 256 entries.

take(table, astype(codes, "int32"))            uint8 codes
take(table, astype(codes, "int32") + 128)      int8 codes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from relay_passes.relax_nodes import (
    Array,
    Emit,
    Expr,
    Graph,
    array_of,
    constant,
    dtype_of,
    is_codes,
    is_constant,
)
from targets.code_range import type_range


@dataclass(frozen=True, eq=False)
class Table:
    """One entry for each code.

    Attributes:
        codes: int8 or uint8 tensor, looked up.
        entries: int8[256] or uint8[256], in ascending order of the codes.
    """

    codes: Expr
    entries: Array


def first_code(dtype: str) -> int:
    """The code that the first entry of a table belongs to."""
    return type_range(dtype)[0]


def emit_table(emit: Emit, table: Table, name: str = "") -> Expr:
    """Bind the table's entries at the codes; the result gets the name."""
    index = emit(relax.op.astype(table.codes, "int32"))
    if first := first_code(dtype_of(table.codes)):
        index = emit(relax.op.add(index, constant(-first, "int32")))
    entries = constant(table.entries, str(table.entries.dtype))
    return emit(relax.op.take(entries, index, axis=0), name)


def match_table(graph: Graph, expr: Expr) -> Table | str:
    """The table that ``expr`` is looked up in, or why it is none."""
    taken = graph.match(expr, "take")
    if taken is None or not is_constant(taken.args[0]) or not is_codes(taken.args[0]):
        return "looks up something else than constant codes"
    entries, index, raised = array_of(taken.args[0]), taken.args[1], 0
    if (added := graph.match(index, "add")) is not None and is_constant(added.args[1]):
        offset = array_of(added.args[1])
        index, raised = added.args[0], int(offset) if offset.ndim == 0 else -1
    cast = graph.match(index, "astype")
    if cast is None or not is_codes(cast.args[0]) or entries.shape != (256,):
        return "looks up something else than 256 entries by a code"
    if raised != -first_code(dtype_of(cast.args[0])):
        return "its first entry belongs to another code than the lowest"
    return Table(cast.args[0], np.asarray(entries))
