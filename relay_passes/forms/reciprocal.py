"""The reciprocal of a row's divisor, as 16 bits and a number of bits (``targets/rows.py``).

bits         sum(astype(greater_equal(divisor, [1, 2, 4, ...]), "int64"), keepdims)
reciprocal   floor_divide((1 << (bits + 15)) - 1, divisor)

Both are int64, as is the divisor, (..., 1).
"""

from __future__ import annotations

import numpy as np
from tvm import relax

from relay_passes.relax_nodes import Emit, Expr, Graph, constant
from targets.rows import DIVISOR_BITS, RECIPROCAL_BITS


def emit_reciprocal(emit: Emit, divisor: Expr) -> tuple[Expr, Expr]:
    """Bind reciprocal and bits."""
    powers = constant(np.int64(1) << np.arange(DIVISOR_BITS), "int64")
    reached = emit(relax.op.greater_equal(divisor, powers))
    bits = emit(relax.op.sum(emit(relax.op.astype(reached, "int64")), -1, keepdims=True))
    one, fraction = constant(1, "int64"), constant(RECIPROCAL_BITS, "int64")
    power = emit(relax.op.left_shift(one, emit(relax.op.add(bits, fraction))))
    numerator = emit(relax.op.subtract(power, one))
    return emit(relax.op.floor_divide(numerator, divisor)), bits


def match_reciprocal(graph: Graph, expr: Expr) -> Expr | None:
    """The divisor that ``expr`` looks like the reciprocal of, or None."""
    quotient = graph.match(expr, "floor_divide")
    return None if quotient is None else quotient.args[1]
