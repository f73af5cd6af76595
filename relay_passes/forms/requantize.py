"""From int32 sums to codes: the numbers, exact from the steps, and the Relax they become.

    t = ((sums << fraction) * multiplier[k]) + (((r - zero) * N) << r_shift[k])
    y = clip(((t + half[k]) >> shift[k]) + zero_point, low, high)

A real ratio of steps must be ``M / 2**s`` with a 16-bit M. The planner snaps the steps so that it
is; float64 steps carry a relative error below 2**-50, and two such fractions differ by at least
2**-32, so the nearest one within 2**-40 is the one that was meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from tvm import relax

from relay_passes.relax_nodes import Array, Emit, Expr, constant, dtype_of
from targets.errors import ArithmeticRangeError

LARGEST_MULTIPLIER = 65535
LARGEST_SHIFT = 47
LARGEST_RESIDUAL_SHIFT = 31
LARGEST_FRACTION = 15
INT32 = 2**31
CODE_SPAN = 255
"""Largest |code - zero point|, and above every |zero point|."""


@dataclass(frozen=True, eq=False)
class ResidualScale:
    """``((r - zero_point) * multiplier) << shift[k]``."""

    zero_point: int
    multiplier: int
    shift: Array


@dataclass(frozen=True, eq=False)
class Scale:
    """The numbers of one requantization.

    Attributes:
        fraction: left shift of the sums.
        multiplier: int64[K].
        shift: int64[K], right.
        residual: or None.
        wide: whether the arithmetic after the sums needs int64.
    """

    fraction: int
    multiplier: Array
    shift: Array
    residual: ResidualScale | None
    wide: bool


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


def dyadic(ratio: Fraction, where: str) -> tuple[int, int]:
    """Write a ratio of steps as ``M / 2**s`` with M odd.

    Args:
        ratio: positive.
        where: layer and channel, for the error.

    Returns:
        M in [1, 65535] and s, which may be negative.

    Raises:
        ArithmeticRangeError: no 16-bit M gives the ratio.
    """
    s = 15 - math.floor(math.log2(ratio))
    scaled = ratio * Fraction(2) ** s
    M = round(scaled)
    if abs(scaled - M) > scaled / 2**40:
        raise ArithmeticRangeError(
            f"{where}: the ratio of steps {float(ratio)!r} is not M / 2**s with a 16-bit M. "
            "Snap the steps when planning, or use power-of-two steps."
        )
    zeros = (M & -M).bit_length() - 1
    return M >> zeros, s - zeros


def plan_scale(
    name: str,
    ratios: list[Fraction],
    bound: int,
    residual: tuple[Fraction, int] | None = None,
) -> Scale:
    """Choose multiplier, shifts and fraction bits of a layer.

    Args:
        name: of the layer, for errors.
        ratios: step of the sums over step of the output, per channel.
        bound: largest |sum|.
        residual: (its step over the output's step, its zero point), or None.

    Raises:
        ArithmeticRangeError: a ratio or a shift does not fit; names layer and channel.
    """
    pairs = [dyadic(ratio, f"{name}, channel {k}") for k, ratio in enumerate(ratios)]
    M = np.array([m for m, _ in pairs], dtype=np.int64)
    s = np.array([shift for _, shift in pairs], dtype=np.int64)
    M, s = _alike(M, s)
    N, n = (1, 0) if residual is None else dyadic(residual[0], f"{name}, residual")
    least = n if residual is not None else 0  # the residual is shifted left by s - n
    missing = np.maximum(np.maximum(least, 0) - s, 0)
    if (M[0] == M).all():
        missing[:] = missing.max()  # one multiplier stays one
    fraction = 0
    if (M == 1).all() or (M << missing).max() > LARGEST_MULTIPLIER:
        fraction = int(missing.max())
        s = s + fraction
    else:
        M, s = M << missing, s + missing
    r_shift = s - n
    _check_fields(name, fraction, s, r_shift if residual is not None else np.zeros_like(s))
    if bound << fraction >= INT32:
        raise ArithmeticRangeError(
            f"{name}: the sums reach {bound} and need {fraction} fraction bits, more than int32 "
            "holds. Use a coarser step for the residual or fewer bits."
        )
    scale = None
    most = (bound << fraction) * M + _half(s) + CODE_SPAN  # the output's zero point
    if residual is not None:
        scale = ResidualScale(residual[1], N, r_shift)
        most = most + np.array([(CODE_SPAN * N) << int(shift) for shift in r_shift])
    wide = bool((M != 1).any() or N != 1 or most.max() >= INT32 or s.max() > 30)
    return Scale(fraction, M, s, scale, wide)


def _alike(M: Array, s: Array) -> tuple[Array, Array]:
    """The same ratios with shifts as equal as 16-bit multipliers allow: their spread has 4 bits."""
    if (M[0] == M).all():
        return M, s  # shifts of one multiplier differ as those of its steps, which the plan checked
    room = 15 - np.floor(np.log2(M)).astype(np.int64)
    more = np.minimum(s.max() - s, room)
    return M << more, s + more


def _check_fields(name: str, fraction: int, shift: Array, residual_shift: Array) -> None:
    for what, value, largest in (
        ("fraction bits", fraction, LARGEST_FRACTION),
        ("a right shift of", int(shift.max()), LARGEST_SHIFT),
        ("a residual's left shift of", int(residual_shift.max()), LARGEST_RESIDUAL_SHIFT),
    ):
        if value > largest:
            raise ArithmeticRangeError(
                f"{name}: needs {what} {value}, at most {largest} fit. "
                "Its steps differ too much; calibrate again or exclude the layer."
            )


def _half(shift: Array) -> Array:
    """What is added before a right shift so that it rounds half up; 0 for no shift."""
    return np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)


def emit_requantize(
    emit: Emit, sums: Expr, scale: Scale, target: Target, residual: Expr | None, name: str
) -> Expr:
    """Bind the requantization of int32 sums in its normal form.

    Args:
        emit: binds an expression.
        sums: int32, bias added, channels last.
        scale: the numbers.
        target: the codes to make.
        residual: codes of the shape of ``sums``, if ``scale`` has a residual.
        name: of the resulting codes.
    """
    dtype = "int64" if scale.wide else "int32"
    t = sums
    if scale.fraction:
        t = emit(relax.op.left_shift(t, constant(scale.fraction, "int32")))
    if scale.wide:
        t = emit(relax.op.astype(t, "int64"))
    if (scale.multiplier != 1).any():
        t = emit(relax.op.multiply(t, constant(scale.multiplier, "int64")))
    if scale.residual is not None:
        r = scale.residual
        t = emit(
            relax.op.add(
                t, emit_operand(emit, residual, r.zero_point, r.multiplier, r.shift, dtype)
            )
        )
    return emit_rounding(emit, t, scale.shift, target, name)


def emit_operand(
    emit: Emit, codes: Expr, zero_point: int, multiplier: int, shift: Array, dtype: str
) -> Expr:
    """Bind ``((codes - zero_point) * multiplier) << shift`` in int32 or int64."""
    x = emit(relax.op.astype(codes, dtype))
    if zero_point:
        x = emit(relax.op.subtract(x, constant(zero_point, dtype)))
    if multiplier != 1:
        x = emit(relax.op.multiply(x, constant(multiplier, dtype)))
    return emit(relax.op.left_shift(x, constant(shift, dtype))) if np.any(shift) else x


def emit_rounding(emit: Emit, t: Expr, shift: Array, target: Target, name: str) -> Expr:
    """Bind ``clip(((t + half) >> shift) + zero_point, low, high)`` as codes."""
    dtype = dtype_of(t)
    if np.any(shift):
        t = emit(relax.op.add(t, constant(_half(shift), dtype)))
        t = emit(relax.op.right_shift(t, constant(shift, dtype)))
    if target.zero_point:
        t = emit(relax.op.add(t, constant(target.zero_point, dtype)))
    clipped = emit(relax.op.clip(t, target.low, target.high))
    return emit(relax.op.astype(clipped, target.dtype), name)
