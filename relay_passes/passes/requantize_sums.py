"""Sums of products of codes, rounded to the codes of a quantize: how lowering passes end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from relay_passes.forms.quantization import Dequantize, Quantize, exact_step
from relay_passes.forms.requantize import Requantization, emit_requantization
from relay_passes.relax_nodes import Expr, Rewriter, Var
from targets.arithmetic import INT32_MAX
from targets.errors import ArithmeticRangeError
from targets.scale import derive_scale
from targets.sum_bounds import CodeRange, SumBounds, needs_int64


@dataclass(frozen=True, eq=False)
class Sums:
    """What is rounded.

    Attributes:
        name: of the torch node that makes them.
        expr: int32[..., K], channels last.
        units: what 1 of them is worth; one, or one per channel.
        bounds: of them.
    """

    name: str
    expr: Expr
    units: Sequence[Fraction]
    bounds: SumBounds


def requantize_sums(
    rewriter: Rewriter,
    var: Var,
    quantize: Quantize,
    sums: Sums,
    residual: tuple[Dequantize, CodeRange] | None = None,
) -> Expr:
    """Bind the codes.

    Args:
        rewriter: of the module.
        var: the old codes, after which the new ones are named.
        quantize: what made them.
        sums: that are rounded.
        residual: a tensor of the old graph that is added before, and its codes.

    Raises:
        ArithmeticRangeError: no integers express the ratio, or the sums do not fit; names the node.
    """
    name, bounds, step = sums.name, sums.bounds, exact_step(quantize.step)
    codes = added = other = None
    if residual is not None:
        tensor, codes = residual
        added = rewriter.get(tensor.codes), tensor.zero_point
        other = exact_step(tensor.step) / step
    try:
        scale = derive_scale([unit / step for unit in sums.units], other)
    except ArithmeticRangeError as error:
        raise ArithmeticRangeError(f"{name}: {error}", node=name) from None
    if bounds.reach << scale.fraction > INT32_MAX:
        raise ArithmeticRangeError(
            f"{name}: the sums reach {bounds.reach} and need {scale.fraction} fraction bits, more "
            "than int32 holds. Use a coarser step for the residual or fewer bits.",
            node=name,
        )
    requantization = Requantization(
        sums.expr,
        scale,
        added,
        needs_int64(bounds, scale, codes, quantize.zero_point),
        quantize.zero_point,
        quantize.low,
        quantize.high,
        quantize.dtype,
        quantize.rounding,
    )
    return emit_requantization(rewriter.emit, requantization, var.name)
