"""The sum of two quantized tensors outside an accumulator.

rounded(a + b)        ``rounding.py``, one shift for all channels; a and b as in ``term.py``

Both sides are on the finer of their two grids. The sum of node ``x`` is called ``x_sums``.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax

from relay_passes.forms.rounding import SUMS, Ints, Rounded, emit_rounded, match_rounded
from relay_passes.forms.term import Term, emit_term, match_term
from relay_passes.relax_nodes import Emit, Expr, Graph, dtype_of, shape_of
from targets.rounding import Rounding


@dataclass(frozen=True, eq=False)
class Addition:
    """Two terms and their rounding.

    Attributes:
        node: name of the torch node that adds.
        a: first side, shifted alike in all channels.
        b: second side.
        wide: whether the sum is int64 rather than int32.
        shift: int64[], right.
        zero_point: of the output; ``low``, ``high``, ``dtype``, ``rounding`` as in ``Rounded``.
    """

    node: str
    a: Term
    b: Term
    wide: bool
    shift: Ints
    zero_point: int
    low: int
    high: int
    dtype: str
    rounding: Rounding


def emit_addition(emit: Emit, addition: Addition, name: str = "") -> Expr:
    """Bind an addition; the codes get the name."""
    x = addition
    wide = "int64" if x.wide else "int32"
    a, b = (emit_term(emit, term, wide) for term in (x.a, x.b))
    total = emit(relax.op.add(a, b), f"{x.node}{SUMS}")
    rounded = Rounded(total, x.shift, x.zero_point, x.low, x.high, x.dtype, x.rounding)
    return emit_rounded(emit, rounded, name)


def match_addition(graph: Graph, expr: Expr) -> Addition | str:
    """The addition that ``expr`` is the result of, or why it is none."""
    rounded = match_rounded(graph, expr)
    if isinstance(rounded, str):
        return rounded
    added = graph.match(rounded.total, "add")
    a, b = (None, None) if added is None else (match_term(graph, arg) for arg in added.args)
    if a is None or b is None:
        return "what is rounded is no sum of two tensors"
    if shape_of(a.codes)[1:] != shape_of(b.codes)[1:]:
        return "it adds tensors of different shapes"
    if rounded.shift.ndim or a.shift.ndim or b.shift.ndim:
        return "its shift differs by channel"
    node = str(rounded.total.name).removesuffix(SUMS)
    wide = dtype_of(rounded.total) == "int64"
    kept = (rounded.zero_point, rounded.low, rounded.high, rounded.dtype, rounded.rounding)
    return Addition(node, a, b, wide, rounded.shift, *kept)
