"""Lower products of two quantized tensors to int32 sums and their requantization.

    quantize(dequantize(a) * dequantize(b))               -->  integer normal form, by elements
    quantize(tvmq.matmul_rows(dequantize(a), ...))        -->  by matrices, head by head

A constant factor of the left operand, 1 / sqrt(d) of attention, becomes part of the ratio of steps.

Needs: ConvertToNhwc, FoldActivations. Leaves: no product of two dequantized tensors in front of a
quantize.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import tvm
from tvm import IRModule, relax

from relay_passes.code_ranges import CodeRanges
from relay_passes.forms.factor import Factor
from relay_passes.forms.head_products import match_head_product
from relay_passes.forms.product import Product, emit_product
from relay_passes.forms.quantization import (
    Dequantize,
    exact_step,
    match_quantize,
    match_tensor,
)
from relay_passes.passes.requantize_sums import Sums, requantize_sums
from relay_passes.relax_nodes import (
    Expr,
    Graph,
    Rewriter,
    Var,
    array_of,
    is_scalar,
    rewrite,
    shape_of,
)
from targets.layers import Pairing
from targets.sum_bounds import CodeRange, bound_products


@tvm.transform.module_pass(opt_level=0, name="LowerProduct")
class LowerProduct:
    """Lower products of two quantized tensors to int32 sums and their requantization."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        ranges = CodeRanges(Graph(mod))
        return rewrite(mod, lambda rewriter, var, _: _lowered(rewriter, var, ranges))


@dataclass(frozen=True, eq=False)
class RealProduct:
    """A product of two tensors that still multiplies real numbers.

    Attributes:
        left: whose shape the result has, where it is by elements.
        factor: of each sum.
        groups: of channels; each is one where it is by elements.
        windows: rows of tokens that are multiplied by themselves.
        count: products of a sum.
    """

    name: str
    left: Dequantize
    right: Dequantize
    factor: Fraction
    pairing: Pairing
    groups: int
    windows: int
    count: int


def _lowered(rewriter: Rewriter, var: Var, ranges: CodeRanges) -> Expr | None:
    graph = rewriter.graph
    quantize = match_quantize(graph, var)
    product = None if quantize is None else match_real_product(graph, quantize.source)
    if quantize is None or product is None:
        return None
    left, right, channels = product.left, product.right, shape_of(var)[-1]
    unit = exact_step(left.step) * exact_step(right.step) * product.factor
    bias = np.zeros(channels, np.int32)
    a, b = (CodeRange(*ranges.of(side.codes), side.zero_point) for side in (left, right))
    bounds = bound_products(a, b, product.count, bias)
    sums = emit_product(
        rewriter.emit,
        Product(
            product.name,
            _in_windows(rewriter, left.codes, product.windows),
            Factor(
                _in_windows(rewriter, right.codes, product.windows),
                right.zero_point,
                product.pairing,
            ),
            bias,
            zero_point=left.zero_point,
            groups=product.groups,
        ),
    )
    codes = requantize_sums(rewriter, var, quantize, Sums(product.name, sums, [unit], bounds))
    if product.windows == 1:
        return codes
    return relax.op.reshape(rewriter.emit(codes, f"{product.name}_windows"), shape_of(var))


def _in_windows(rewriter: Rewriter, codes: Expr, windows: int) -> Expr:
    """Tokens (N, W * T, C) as an image (N, W, T, C), which is the same bytes."""
    held = rewriter.get(codes)
    if windows == 1:
        return held
    n, count, channels = shape_of(held)
    return rewriter.emit(relax.op.reshape(held, (n, windows, count // windows, channels)))


def match_real_product(graph: Graph, expr: Expr) -> RealProduct | None:
    """The product of two tensors of codes that ``expr`` is the result of, or None."""
    by_heads, elements = match_head_product(graph, expr), graph.match(expr, "multiply")
    if by_heads is not None:
        factor, (left, right) = _operands(graph, by_heads.left, by_heads.right)
    elif elements is not None:
        factor, (left, right) = _operands(graph, *elements.args)
    else:
        return None
    if left is None or right is None:
        return None
    if by_heads is not None:
        depth = int(shape_of(left.codes)[-1]) // by_heads.heads
        heads, pairing = by_heads.heads, by_heads.pairing
        windows = by_heads.windows
        return RealProduct(expr.name, left, right, factor, pairing, heads, windows, depth)
    if shape_of(left.codes)[1:] != shape_of(expr)[1:]:
        left, right = right, left
    groups = int(shape_of(expr)[-1])
    return RealProduct(expr.name, left, right, factor, Pairing.ELEMENTS, groups, 1, 1)


def _operands(
    graph: Graph, left: Expr, right: Expr
) -> tuple[Fraction, tuple[Dequantize | None, Dequantize | None]]:
    """Both tensors, if they are of codes, and the constant that the left one is multiplied by."""
    factor = Fraction(1)
    a = match_tensor(graph, left)
    scaled = graph.match(left, "multiply")
    if a is None and scaled is not None and is_scalar(scaled.args[1]):
        factor, a = exact_step(array_of(scaled.args[1])), match_tensor(graph, scaled.args[0])
    return factor, (a, match_tensor(graph, right))
