"""Products of matrices of real numbers, head by head, before they are lowered: calls by name.

call_pure_packed("tvmq.matmul_rows", x, y, heads, windows)
    (N, W * T, C), (N, W * U, C) -> (N, W * T, heads * U)
call_pure_packed("tvmq.matmul_columns", x, y, heads, windows)
    (N, W * T, heads * U), (N, W * U, C) -> (N, W * T, C)
call_pure_packed("tvmq.softmax", x, heads)
    (N, T, heads * U) -> the same

In ordinary operators heads are an axis of their own, of a tensor of rank 4, which would be taken
for an image when layouts are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax

from relay_passes.relax_nodes import Emit, Expr, Graph, shape_of
from targets.layers import Pairing

_PRODUCTS = {"tvmq.matmul_rows": Pairing.ROWS, "tvmq.matmul_columns": Pairing.COLUMNS}
_SOFTMAX = "tvmq.softmax"


@dataclass(frozen=True, eq=False)
class HeadProduct:
    """A product of tokens with tokens; ``pairing`` is ``ROWS`` or ``COLUMNS``."""

    left: Expr
    right: Expr
    heads: int
    windows: int
    pairing: Pairing


@dataclass(frozen=True, eq=False)
class HeadSoftmax:
    """A softmax over the last axis, of each head by itself."""

    data: Expr
    heads: int


def emit_head_product(emit: Emit, product: HeadProduct, name: str) -> Expr:
    """Bind a product."""
    n, count, _ = shape_of(product.left)
    _, others, depth = shape_of(product.right)
    rows = product.pairing is Pairing.ROWS
    made = product.heads * others // product.windows if rows else depth
    result = relax.TensorType((n, count, made), "float64")
    (symbol,) = (s for s, pairing in _PRODUCTS.items() if pairing is product.pairing)
    sizes = (relax.prim_value(size) for size in (product.heads, product.windows))
    call = relax.call_pure_packed(symbol, product.left, product.right, *sizes, ty_args=result)
    return emit(call, name)


def match_head_product(graph: Graph, expr: Expr) -> HeadProduct | None:
    """The product that ``expr`` is the result of, or None."""
    call = graph.match(expr, "call_pure_packed")
    if call is None or str(call.args[0].global_symbol) not in _PRODUCTS:
        return None
    symbol, left, right, heads, windows = call.args
    pairing = _PRODUCTS[str(symbol.global_symbol)]
    return HeadProduct(left, right, int(heads.value), int(windows.value), pairing)


def emit_head_softmax(emit: Emit, softmax: HeadSoftmax, name: str) -> Expr:
    """Bind a softmax."""
    made = relax.TensorType(shape_of(softmax.data), "float64")
    heads = relax.prim_value(softmax.heads)
    return emit(relax.call_pure_packed(_SOFTMAX, softmax.data, heads, ty_args=made), name)


def match_head_softmax(graph: Graph, expr: Expr) -> HeadSoftmax | None:
    """The softmax that ``expr`` is the result of, or None."""
    call = graph.match(expr, "call_pure_packed")
    if call is None or str(call.args[0].global_symbol) != _SOFTMAX:
        return None
    return HeadSoftmax(call.args[1], int(call.args[2].value))
