"""From int32 sums to codes: the Relax that the integers of a requantization become.

    t = ((sums << fraction) * multiplier[k]) + (((r - zero) * N) << r_shift[k])
    y = clip(((t + half[k]) >> shift[k]) + zero_point, low, high)

``targets/scale.py`` derives the integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from tvm import relax

from relay_passes.relax_nodes import Array, Emit, Expr, constant, dtype_of, shape_of
from targets.scale import Scale

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Target:
    """The codes a requantization makes."""

    step: Fraction
    zero_point: int
    low: int
    high: int
    dtype: str


def exact_step(step: float | Array) -> Fraction:
    """A float64 as the rational that it is."""
    return Fraction(float(step))


def emit_requantize(
    emit: Emit,
    sums: Expr,
    scale: Scale,
    wide: bool,
    target: Target,
    residual: tuple[Expr, int] | None,
    name: str,
) -> Expr:
    """Bind the requantization of int32 sums in its normal form.

    Args:
        emit: binds an expression.
        sums: int32[..., K], bias added, channels last.
        scale: the numbers.
        wide: whether what follows the sums needs int64.
        target: the codes to make.
        residual: codes of the shape of ``sums`` and their zero point, if ``scale`` has a residual.
        name: of the resulting codes.
    """
    K = shape_of(sums)[-1]
    dtype = "int64" if wide else "int32"
    t = sums
    if scale.fraction:
        t = emit(relax.op.left_shift(t, constant(scale.fraction, "int32")))
    if wide:
        t = emit(relax.op.astype(t, "int64"))
    if any(m != 1 for m in scale.multiplier):
        t = emit(relax.op.multiply(t, constant(_spread(scale.multiplier, K), "int64")))
    if residual is not None:
        codes, zero_point = residual
        shift = _spread(scale.residual_shift, K)
        term = emit_operand(emit, codes, zero_point, scale.residual_multiplier, shift, dtype)
        t = emit(relax.op.add(t, term))
    return emit_rounding(emit, t, _spread(scale.shift, K), target, name)


def _spread(numbers: tuple[int, ...], channels: int) -> Ints:
    return np.broadcast_to(np.array(numbers, np.int64), (channels,))


def emit_operand(
    emit: Emit, codes: Expr, zero_point: int, multiplier: int, shift: Ints, dtype: str
) -> Expr:
    """Bind ``((codes - zero_point) * multiplier) << shift`` in int32 or int64."""
    x = emit(relax.op.astype(codes, dtype))
    if zero_point:
        x = emit(relax.op.subtract(x, constant(zero_point, dtype)))
    if multiplier != 1:
        x = emit(relax.op.multiply(x, constant(multiplier, dtype)))
    return emit(relax.op.left_shift(x, constant(shift, dtype))) if np.any(shift) else x


def emit_rounding(emit: Emit, t: Expr, shift: Ints, target: Target, name: str) -> Expr:
    """Bind ``clip(((t + half) >> shift) + zero_point, low, high)`` as codes."""
    dtype = dtype_of(t)
    if np.any(shift):
        half = (np.int64(1) << shift) >> 1  # 0 where nothing is shifted out
        t = emit(relax.op.add(t, constant(half, dtype)))
        t = emit(relax.op.right_shift(t, constant(shift, dtype)))
    if target.zero_point:
        t = emit(relax.op.add(t, constant(target.zero_point, dtype)))
    clipped = emit(relax.op.clip(t, target.low, target.high))
    return emit(relax.op.astype(clipped, target.dtype), name)
