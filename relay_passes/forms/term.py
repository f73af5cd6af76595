"""A quantized tensor brought to the grid of the sums that it is added to.

((astype(codes, "int32" | "int64") - zero_point) * multiplier) << shift

Without a zero point no subtraction, without a multiplier no product, without a shift none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from relay_passes.forms.rounding import Ints
from relay_passes.relax_nodes import (
    Emit,
    Expr,
    Graph,
    array_of,
    constant,
    is_codes,
    is_constant,
    is_scalar,
)


@dataclass(frozen=True, eq=False)
class Term:
    """One side of a sum.

    Attributes:
        codes: int8 or uint8 tensor.
        zero_point: subtracted from each code.
        multiplier: in [1, 65535].
        shift: int64[K], or int64[] for all channels; left.
    """

    codes: Expr
    zero_point: int
    multiplier: int
    shift: Ints


def emit_term(emit: Emit, term: Term, dtype: str) -> Expr:
    """Bind the term in int32 or int64."""
    x = emit(relax.op.astype(term.codes, dtype))
    if term.zero_point:
        x = emit(relax.op.subtract(x, constant(term.zero_point, dtype)))
    if term.multiplier != 1:
        x = emit(relax.op.multiply(x, constant(term.multiplier, dtype)))
    return emit(relax.op.left_shift(x, constant(term.shift, dtype))) if np.any(term.shift) else x


def match_term(graph: Graph, expr: Expr) -> Term | None:
    """The term that ``expr`` is the result of, or None."""
    shift, multiplier, zero_point = np.zeros((), np.int64), 1, 0
    if (raised := graph.match(expr, "left_shift")) is not None and is_constant(raised.args[1]):
        expr, shift = raised.args[0], array_of(raised.args[1]).astype(np.int64)
    if (product := graph.match(expr, "multiply")) is not None and is_scalar(product.args[1]):
        expr, multiplier = product.args[0], int(array_of(product.args[1]))
    if (centred := graph.match(expr, "subtract")) is not None and is_scalar(centred.args[1]):
        expr, zero_point = centred.args[0], int(array_of(centred.args[1]))
    cast = graph.match(expr, "astype")
    if cast is None or not is_codes(cast.args[0]):
        return None
    return Term(cast.args[0], zero_point, multiplier, shift)
