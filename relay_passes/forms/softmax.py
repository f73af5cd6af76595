"""Softmax of codes, of each head by itself: int32 sums in units of 2^-30 (``targets/rows.py``).

x       reshape(astype(codes, "int32"), (N, T, heads, U))
e       take(table of 256, max(x) - x)
sums    reshape((e * reciprocal(sum e)) >> (bits - 15), (N, T, heads * U))

The sums of node ``x`` are called ``x_sums``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import relax

from relay_passes.forms.reciprocal import emit_reciprocal
from relay_passes.forms.rounding import SUMS
from relay_passes.forms.written_alike import written_alike
from relay_passes.relax_nodes import (
    Emit,
    Expr,
    Graph,
    array_of,
    constant,
    is_codes,
    is_constant,
    shape_of,
)
from targets.rows import EXPONENTIAL_BITS


@dataclass(frozen=True, eq=False)
class Softmax:
    """A softmax over the last axis.

    Attributes:
        node: name of the torch node.
        codes: int8 or uint8.
        heads: divides the last axis.
        table: int32[256], what a code counts by how far it is below the largest.
    """

    node: str
    codes: Expr
    heads: int
    table: npt.NDArray[np.int32]


def emit_softmax(emit: Emit, softmax: Softmax) -> Expr:
    """Bind the int32 sums."""
    *outer, channels = shape_of(softmax.codes)
    split = (*outer, softmax.heads, channels // softmax.heads)
    x = emit(relax.op.reshape(emit(relax.op.astype(softmax.codes, "int32")), split))
    below = emit(relax.op.subtract(emit(relax.op.max(x, -1, keepdims=True)), x))
    e = emit(relax.op.take(constant(softmax.table, "int32"), below, 0))
    e = emit(relax.op.astype(e, "int64"))
    reciprocal, bits = emit_reciprocal(emit, emit(relax.op.sum(e, -1, keepdims=True)))
    product = emit(relax.op.multiply(e, reciprocal))
    shift = emit(relax.op.subtract(bits, constant(EXPONENTIAL_BITS, "int64")))
    sums = emit(relax.op.astype(emit(relax.op.right_shift(product, shift)), "int32"))
    joined = relax.op.reshape(sums, (*outer, channels))
    return emit(joined, f"{softmax.node}{SUMS}")


def match_softmax(graph: Graph, expr: Expr) -> Softmax | str:
    """The softmax that ``expr`` is the sums of, or why it is none."""
    none = "is no softmax"
    joined = graph.match(expr, "reshape")
    cast = None if joined is None else graph.match(joined.args[0], "astype")
    shifted = None if cast is None else graph.match(cast.args[0], "right_shift")
    product = None if shifted is None else graph.match(shifted.args[0], "multiply")
    if product is None:
        return none
    e = product.args[0]
    wide = graph.match(e, "astype")
    looked_up = None if wide is None else graph.match(wide.args[0], "take")
    if looked_up is None or not is_constant(looked_up.args[0]):
        return none
    below = graph.match(looked_up.args[1], "subtract")
    split = None if below is None else graph.match(below.args[1], "reshape")
    codes = None if split is None else graph.match(split.args[0], "astype")
    if codes is None or not is_codes(codes.args[0]):
        return none
    heads = int(shape_of(split)[-2])
    node = str(expr.name).removesuffix(SUMS)
    found = Softmax(node, codes.args[0], heads, array_of(looked_up.args[0]))
    alike = written_alike(graph, expr, found.codes, lambda emit: emit_softmax(emit, found))
    return found if alike else none
