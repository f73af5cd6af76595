"""Sums of products of codes, rounded to the codes of a quantize: how lowering passes end."""

from __future__ import annotations

from fractions import Fraction

from relay_passes.forms.quantization import Quantize, exact_step
from relay_passes.forms.requantize import Requantization, emit_requantization
from relay_passes.relax_nodes import Expr, Rewriter, Var
from targets.arithmetic import INT32_MAX
from targets.errors import ArithmeticRangeError
from targets.scale import derive_scale
from targets.sum_bounds import SumBounds, needs_int64


def requantize_sums(
    rewriter: Rewriter, var: Var, quantize: Quantize, sums: Expr, unit: Fraction, bounds: SumBounds
) -> Expr:
    """Bind the codes.

    Args:
        rewriter: of the module.
        var: the old codes, after which the new ones are named.
        quantize: what made them.
        sums: int32[..., K], channels last.
        unit: what 1 of the sums is worth.
        bounds: of the sums.

    Raises:
        ArithmeticRangeError: no integers express the ratio, or the sums do not fit; names the node.
    """
    name = quantize.source.name
    try:
        scale = derive_scale([unit / exact_step(quantize.step)])
    except ArithmeticRangeError as error:
        raise ArithmeticRangeError(f"{name}: {error}") from None
    if bounds.reach << scale.fraction > INT32_MAX:
        raise ArithmeticRangeError(
            f"{name}: the sums reach {bounds.reach} and need {scale.fraction} fraction bits, more "
            "than int32 holds. Use fewer bits."
        )
    requantization = Requantization(
        sums,
        scale,
        None,
        needs_int64(bounds, scale, None, quantize.zero_point),
        quantize.zero_point,
        quantize.low,
        quantize.high,
        quantize.dtype,
        quantize.rounding,
    )
    return emit_requantization(rewriter.emit, requantization, var.name)
