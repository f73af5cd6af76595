"""Products of two tensors, before a bias: int32 sums of what their codes stand for.

matmul(left, permute_dims(right))        rows
matmul(left, right)                      columns
multiply(left, right)                    elements, the right one broadcast where it has size 1

``left`` and ``right`` are terms: codes in int32, less their zero point. Those of a matmul are
[N, T, C], or [N, H, T, C] where each row of an image is multiplied by the same row of the other.
With groups, as of attention's heads, both are split first, ``permute_dims(reshape(codes,
[..., T, g, C / g]))`` to [..., g, T, C / g], and the sums are joined likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from relay_passes.forms.term import Term, emit_term, match_term
from relay_passes.relax_nodes import Emit, Expr, Graph, dtype_of, ints, shape_of
from targets.layers import Pairing

NO_TENSORS = "multiplies something else than two tensors of codes to int32 sums"


@dataclass(frozen=True, eq=False)
class Factor:
    """What a tensor is multiplied by.

    Attributes:
        codes: int8 or uint8 tensor, of a shape as ``targets.layers.Factor`` says.
        zero_point: subtracted from each code.
        pairing: what its elements multiply.
    """

    codes: Expr
    zero_point: int
    pairing: Pairing


@dataclass(frozen=True, eq=False)
class Multiplied:
    """Sums of products of a tensor and a factor.

    Attributes:
        codes: int8 or uint8 tensor.
        zero_point: subtracted from each code.
        factor: what they are multiplied by.
        groups: of channels, as of a convolution.
    """

    codes: Expr
    zero_point: int
    factor: Factor
    groups: int


def emit_multiplied(emit: Emit, multiplied: Multiplied) -> Expr:
    """Bind the int32 sums."""
    x, factor = multiplied, multiplied.factor
    left, right = x.codes, factor.codes
    elements = factor.pairing is Pairing.ELEMENTS
    if x.groups > 1 and not elements:
        left, right = _split(emit, left, x.groups), _split(emit, right, x.groups)
    if factor.pairing is Pairing.ROWS:
        right = emit(relax.op.permute_dims(right, _turned(right)))
    a = emit_term(emit, _term(left, x.zero_point), "int32")
    b = emit_term(emit, _term(right, factor.zero_point), "int32")
    if elements:
        return emit(relax.op.multiply(a, b))
    sums = emit(relax.op.matmul(a, b, out_dtype="int32"))
    return _joined(emit, sums) if x.groups > 1 else sums


def match_multiplied(graph: Graph, expr: Expr) -> Multiplied | str:
    """The products that ``expr`` is the sums of, or why it is none."""
    product = graph.match(expr, "multiply")
    if product is not None:
        return _match_elements(graph, product)
    groups, matmul = _match_joined(graph, expr)
    if matmul is None:
        return "is no sum of products"
    left, right = (_match_centred(graph, arg) for arg in matmul.args)
    if left is None or right is None or dtype_of(matmul) != "int32":
        return NO_TENSORS
    pairing, b = Pairing.COLUMNS, right.codes
    turned = graph.match(b, "permute_dims")
    if turned is not None and ints(turned.attrs.axes) == _turned(b):
        pairing, b = Pairing.ROWS, turned.args[0]
    a = left.codes
    if groups > 1:
        a, b = _match_split(graph, a, groups), _match_split(graph, b, groups)
    ranks = [0 if codes is None else len(shape_of(codes)) for codes in (a, b)]
    if ranks not in ([3, 3], [4, 4]):
        return "multiplies matrices that are no rows of images, their channels split in groups"
    return Multiplied(a, left.zero_point, Factor(b, right.zero_point, pairing), groups)


def _match_elements(graph: Graph, product: Expr) -> Multiplied | str:
    left, right = (_match_centred(graph, arg) for arg in product.args)
    if left is None or right is None:
        return NO_TENSORS
    shape = shape_of(product)[1:]
    if shape_of(left.codes)[1:] != shape:
        left, right = right, left
    if shape_of(left.codes)[1:] != shape or len(shape_of(right.codes)) != 1 + len(shape):
        return "broadcasts both of the tensors that it multiplies"
    factor = Factor(right.codes, right.zero_point, Pairing.ELEMENTS)
    return Multiplied(left.codes, left.zero_point, factor, shape[-1])


def _term(codes: Expr, zero_point: int) -> Term:
    return Term(codes, zero_point, 1, np.zeros((), np.int64))


def _match_centred(graph: Graph, expr: Expr) -> Term | None:
    """Codes less their zero point, neither multiplied nor shifted."""
    term = match_term(graph, expr)
    if term is None or dtype_of(expr) != "int32" or term.multiplier != 1 or np.any(term.shift):
        return None
    return term


def _turned(matrices: Expr) -> tuple[int, ...]:
    """Axes with the last two exchanged."""
    rank = len(shape_of(matrices))
    return (*range(rank - 2), rank - 1, rank - 2)


def _groups_first(rank: int) -> tuple[int, ...]:
    """[..., T, g, C] becomes [..., g, T, C], and back."""
    return (*range(rank - 3), rank - 2, rank - 3, rank - 1)


def _split(emit: Emit, codes: Expr, groups: int) -> Expr:
    """[..., T, C] as [..., groups, T, C / groups]."""
    *outer, c = shape_of(codes)
    split = emit(relax.op.reshape(codes, (*outer, groups, c // groups)))
    return emit(relax.op.permute_dims(split, _groups_first(len(outer) + 2)))


def _match_split(graph: Graph, expr: Expr, groups: int) -> Expr | None:
    permuted = graph.match(expr, "permute_dims")
    if permuted is None or not _exchanges_groups(permuted):
        return None
    split = graph.match(permuted.args[0], "reshape")
    if split is None or shape_of(split)[1:-1] != (*shape_of(split.args[0])[1:-1], groups):
        return None
    return split.args[0]


def _exchanges_groups(permuted: Expr) -> bool:
    axes = ints(permuted.attrs.axes)
    return len(axes) > 3 and axes == _groups_first(len(axes))


def _joined(emit: Emit, sums: Expr) -> Expr:
    """[..., groups, T, K / groups] as [..., T, K]."""
    *outer, groups, t, k = shape_of(sums)
    turned = emit(relax.op.permute_dims(sums, _groups_first(len(outer) + 3)))
    return emit(relax.op.reshape(turned, (*outer, t, groups * k)))


def _match_joined(graph: Graph, expr: Expr) -> tuple[int, Expr | None]:
    """The groups of sums, and the matmul that they are from."""
    joined = graph.match(expr, "reshape")
    if joined is None:
        return 1, graph.match(expr, "matmul")
    permuted = graph.match(joined.args[0], "permute_dims")
    if permuted is None or not _exchanges_groups(permuted):
        return 1, None
    *outer, groups, k = shape_of(permuted)[1:]
    matmul = graph.match(permuted.args[0], "matmul")
    return groups, matmul if shape_of(joined)[1:] == (*outer, groups * k) else None
