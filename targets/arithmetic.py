"""The integer arithmetic that every layer ends in, once, in NumPy.

    t = (acc + bias) * multiplier + (((r - r_zero) * r_multiplier) << r_shift)
    y = clamp(round(t / 2^shift) + zero_point, low, high)

All intermediate numbers are int64. Within the ranges named below, no step overflows: |t| < 2^56.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from targets.errors import ArithmeticRangeError
from targets.rounding import Rounding, RoundingMode

Int64s: TypeAlias = npt.NDArray[np.int64]

MAX_MULTIPLIER = (1 << 16) - 1
MAX_SHIFT = 47
"""Widest right shift of a requantization."""
MAX_SHIFT_SPREAD = 15
"""Channels of a layer share a shift; each has its own distance from it in four bits."""
MAX_RESIDUAL_SHIFT = 31
"""Widest left shift of what is added to the sums."""
MAX_FRACTION = 15
"""Widest left shift of the sums themselves."""
INT32_MAX = (1 << 31) - 1
BORDER_BITS = 8
"""A border is a fraction of an output step in 1/256; 128 is half."""


def shift_round(t: npt.ArrayLike, shift: npt.ArrayLike, mode: RoundingMode) -> Int64s:
    """``t / 2^shift`` rounded to an integer.

    Args:
        t: |t| < 2^62.
        shift: broadcast against ``t``, in [0, 47].
        mode: any but BORDER, which needs a table (``shift_border``).

    Raises:
        ArithmeticRangeError: a shift lies outside its range.
    """
    t, shift = _int64(t), _checked_shift(shift)
    half = (np.int64(1) << shift) >> 1  # 0 where nothing is shifted out
    exact = shift == 0
    if mode is RoundingMode.FLOOR:
        addend = np.zeros_like(half)
    elif mode is RoundingMode.HALF_UP:
        addend = half
    elif mode is RoundingMode.HALF_AWAY:
        addend = np.where(exact, 0, half - (t < 0))
    elif mode is RoundingMode.HALF_EVEN:
        addend = np.where(exact, 0, half - 1 + ((t >> shift) & 1))
    else:
        msg = "rounding by border needs its level table: call shift_border"
        raise ValueError(msg)
    return (t + addend) >> shift


def shift_border(
    t: npt.ArrayLike, shift: npt.ArrayLike, table: npt.NDArray[np.uint8], first: int
) -> Int64s:
    """``t / 2^shift`` rounded up where its fraction reaches the border of its level.

    Args:
        t: int[..., K], |t| < 2^62.
        shift: broadcast against ``t``, in [0, 47].
        table: uint8[K, L - 1]; entry i is the border, in 1/256, between the codes i and i + 1
            above the lowest.
        first: what ``t >> shift`` is at the lowest code: low - zero_point.
    """
    t, shift = _int64(t), _checked_shift(shift)
    whole = t >> shift
    fraction = t & ((np.int64(1) << shift) - 1)
    fraction = np.where(
        shift >= BORDER_BITS,
        fraction >> np.maximum(shift - BORDER_BITS, 0),
        fraction << np.maximum(BORDER_BITS - shift, 0),
    )
    level = np.clip(whole - first, 0, table.shape[1] - 1)
    border = table[np.arange(table.shape[0]), level]
    return whole + (fraction >= border)


def border_thresholds(shift: npt.ArrayLike, table: npt.NDArray[np.uint8], first: int) -> Int64s:
    """Rounding by borders as a comparison with thresholds: the multi-threshold form.

    A code is the lowest one plus the number of thresholds that are at most ``t`` (which is what
    QONNX calls MultiThreshold): so it is for any ``t``, clamped to the codes of the table.

    Args:
        shift: [K] or one, in [0, 47].
        table: uint8[K, L - 1] as in ``shift_border``.
        first: likewise.

    Returns:
        int64[K, L - 1], rising along a row: the smallest ``t`` of each code but the lowest.
    """
    shift = _checked_shift(shift).reshape(-1, 1)
    level = first + np.arange(table.shape[1], dtype=np.int64)
    reached = ((_int64(table) << shift) + 255) >> BORDER_BITS
    return (level << shift) + reached


def saturate(x: npt.ArrayLike, low: int, high: int) -> Int64s:
    """``x`` clamped to [low, high]."""
    return np.clip(_int64(x), low, high)


def residual_term(
    residual: npt.ArrayLike, zero_point: int, multiplier: int, shift: npt.ArrayLike
) -> Int64s:
    """A residual's codes in the accumulator's domain: ``((r - zero_point) * multiplier) << shift``.

    Args:
        residual: codes, one byte each.
        zero_point: of these codes.
        multiplier: in [0, 65535].
        shift: broadcast against ``residual``, in [0, 31].
    """
    return ((_int64(residual) - zero_point) * multiplier) << _int64(shift)


def requantize(
    acc: npt.ArrayLike,
    bias: npt.ArrayLike,
    shift: npt.ArrayLike,
    *,
    rounding: Rounding,
    zero_point: int,
    low: int,
    high: int,
    multiplier: npt.ArrayLike = 1,
    residual: npt.ArrayLike = 0,
) -> Int64s:
    """Sums to codes.

    Args:
        acc: int32[..., K] sums, already shifted left by their fraction bits.
        bias: int32[K], in the domain of ``acc``.
        shift: [K] or one, in [0, 47].
        rounding: of the shift; borders of one row or K.
        zero_point: added after rounding.
        low: lowest code kept.
        high: highest code kept.
        multiplier: [K] or one, in [0, 65535].
        residual: what ``residual_term`` gives, or 0.

    Returns:
        int64[..., K] in [low, high].
    """
    t = (_int64(acc) + _int64(bias)) * _int64(multiplier) + _int64(residual)
    if rounding.mode is RoundingMode.BORDER:
        code = shift_border(t, shift, rounding.table(low, high), low - zero_point)
    else:
        code = shift_round(t, shift, rounding.mode)
    return saturate(code + zero_point, low, high)


def scale_product(
    product: npt.ArrayLike, fraction: int, a: int = 0, b: int = 0, sign: int = 0
) -> Int64s:
    """``product * (2^-a + sign * 2^-b) * 2^fraction``, exactly, by left shifts only.

    Args:
        product: |product| < 2^47.
        fraction: in [0, 15].
        a: in [0, fraction].
        b: in [0, fraction].
        sign: -1, 0 (without the second term) or 1.

    Raises:
        ArithmeticRangeError: a shift would be a right shift.
    """
    if not 0 <= max(a, b) <= fraction <= MAX_FRACTION or min(a, b) < 0:
        limits = f"0 <= a, b <= fraction <= {MAX_FRACTION}"
        msg = f"product scaling needs {limits}; got {a}, {b}, {fraction}"
        raise ArithmeticRangeError(msg)
    product = _int64(product)
    return (product << (fraction - a)) + sign * (product << (fraction - b))


def _int64(x: Any) -> Int64s:
    return np.asarray(x, dtype=np.int64)


def _checked_shift(shift: npt.ArrayLike) -> Int64s:
    shift = _int64(shift)
    if shift.size and (shift.min() < 0 or shift.max() > MAX_SHIFT):
        msg = f"right shift in [0, {MAX_SHIFT}] expected, got {shift.min()} to {shift.max()}"
        raise ArithmeticRangeError(msg)
    return shift
