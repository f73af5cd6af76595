"""Sums of products that are scaled group by group of the input channels, before a bias.

nn.conv2d(codes, weight of each group, groups=groups of channels)     partial sums, then
reshape to [..., g, m, K / g] -> multiply by factors[g, m, K / g] -> sum over m -> reshape

``g`` counts the groups of a grouped convolution, ``m`` the groups of input channels within one of
them. A dense layer has its vectors split instead: [..., m, 1, C / m] times [m, C / m, K].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import relax

from relay_passes.relax_nodes import (
    Array,
    Emit,
    Expr,
    Graph,
    array_of,
    constant,
    dtype_of,
    ints,
    is_constant,
    shape_of,
)
from targets.product_factors import ProductFactors


@dataclass(frozen=True, eq=False)
class Split:
    """A weight cut along its input channels, and the factor of each part.

    Attributes:
        weight: int8[g * m * K / g, R, S, C / g / m], parts outside outputs.
        factors: int32[g, m, K / g].
    """

    weight: npt.NDArray[np.int8]
    factors: npt.NDArray[np.int32]


def split(weight: npt.NDArray[np.int8], factors: ProductFactors, groups: int) -> Split:
    """Cut a weight int8[K, R, S, C] into parts of equal size with one factor per output each."""
    K, R, S, C = weight.shape
    size = math.gcd(factors.channels, C)
    parts = weight.reshape(groups, K // groups, R, S, C // size, size).transpose(0, 4, 1, 2, 3, 5)
    each = factors.spread(C)[:, ::size].reshape(groups, K // groups, C // size).transpose(0, 2, 1)
    return Split(parts.reshape(-1, R, S, size), np.ascontiguousarray(each))


def joined(parts: Split) -> tuple[npt.NDArray[np.int8], ProductFactors | None]:
    """The weight and the factors that were split."""
    g, m, k = parts.factors.shape
    _, R, S, size = parts.weight.shape
    weight = parts.weight.reshape(g, m, k, R, S, size).transpose(0, 2, 3, 4, 1, 5)
    each = np.repeat(parts.factors.transpose(0, 2, 1).reshape(g * k, m), size, axis=1)
    return np.ascontiguousarray(weight.reshape(g * k, R, S, m * size)), ProductFactors.of(each)


def split_vectors(emit: Emit, vectors: Expr, parts: int) -> Expr:
    """The vectors of a dense layer as [..., m, 1, C / m]."""
    *outer, C = shape_of(vectors)
    return emit(relax.op.reshape(vectors, (*outer, parts, 1, C // parts)))


def match_split_vectors(graph: Graph, expr: Expr) -> Expr | None:
    """What ``split_vectors`` was given."""
    shaped = graph.match(expr, "reshape")
    if shaped is None:
        return None
    *outer, parts, _, size = shape_of(shaped)[1:]
    return shaped.args[0] if shape_of(shaped.args[0])[1:] == (*outer, parts * size) else None


def emit_scaled(emit: Emit, partial: Expr, factors: Array, axes: int) -> Expr:
    """Bind the scaled sums, int32[..., K].

    Args:
        emit: binds an expression.
        partial: int32 sums of each part; their last axes are split into those of ``factors``.
        factors: int32[g, m, K / g].
        axes: of ``partial``, its last ones, that hold parts and outputs.
    """
    outer = shape_of(partial)[:-axes]
    g, m, k = factors.shape
    apart = emit(relax.op.reshape(partial, (*outer, g, m, k)))
    scaled = emit(relax.op.multiply(apart, constant(factors, "int32")))
    total = emit(relax.op.sum(scaled, axis=len(outer) + 1))
    return emit(relax.op.reshape(total, (*outer, g * k)))


def match_scaled(graph: Graph, expr: Expr) -> tuple[Expr, npt.NDArray[np.int32] | None]:
    """The partial sums and factors that ``expr`` is scaled from; itself and None if it isn't."""
    flat = graph.match(expr, "reshape")
    total = None if flat is None else graph.match(flat.args[0], "sum")
    scaled = None if total is None else graph.match(total.args[0], "multiply")
    if flat is None or total is None or scaled is None or not is_constant(scaled.args[1]):
        return expr, None
    apart, factors = graph.match(scaled.args[0], "reshape"), array_of(scaled.args[1])
    if apart is None or factors.ndim != 3 or dtype_of(expr) != "int32":
        return expr, None
    outer, (g, m, k) = shape_of(expr)[1:-1], factors.shape
    if shape_of(apart)[1:] != (*outer, g, m, k) or shape_of(expr)[-1] != g * k:
        return expr, None
    if ints(total.attrs.axis) != (len(outer) + 2,) or bool(total.attrs.keepdims):
        return expr, None
    return apart.args[0], factors
