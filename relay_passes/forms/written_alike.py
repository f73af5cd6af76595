"""Whether an expression is, operator by operator, what a form writes: how long ones are recognised.

A form of a few operators is read as it is written, one after the other. One of thirty is guessed
from where its parameters stand, written again with them, and compared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm_ffi
from tvm import relax

from relay_passes.relax_nodes import Emit, Expr, Graph, array_of, is_constant, is_var


def written_alike(graph: Graph, expr: Expr, codes: Expr, write: Callable[[Emit], Expr]) -> bool:
    """Whether ``write`` binds what ``expr`` is.

    Args:
        graph: of the function that ``expr`` stands in.
        expr: a variable of it.
        codes: the one that both are computed from.
        write: emits the form.
    """
    values: dict[Expr, Expr] = {}
    builder = relax.BlockBuilder()

    def emit(value: Expr, name: str = "") -> Expr:
        if is_var(value):
            return value
        var = builder.emit(value, name_hint=name)
        values[var] = builder.lookup_binding(var)
        return var

    with builder.function("form", [codes]):
        with builder.dataflow():
            written = emit(write(emit))
            result = builder.emit_output(written)
        builder.emit_func_output(result)
    pairs, seen = [(expr, written)], set[tuple[Expr, Expr]]()
    while pairs:
        a, b = pairs.pop()
        if (a, b) in seen or a is b:
            continue
        seen.add((a, b))
        if is_constant(a) and is_constant(b):
            if not _same_constant(a, b):
                return False
            continue
        if not is_var(a) or not is_var(b):
            if not tvm_ffi.structural_equal(a, b):
                return False
            continue
        one, other = graph.value(a), values.get(b)
        if a == codes or b == codes:
            if a != b:
                return False
            continue
        if not isinstance(one, relax.Call) or not isinstance(other, relax.Call):
            return False
        if one.op != other.op or len(one.args) != len(other.args):
            return False
        if not tvm_ffi.structural_equal(one.attrs, other.attrs):
            return False
        pairs += zip(one.args, other.args, strict=True)
    return True


def _same_constant(a: Expr, b: Expr) -> bool:
    one, other = array_of(a), array_of(b)
    return one.dtype == other.dtype and np.array_equal(one, other)
