"""The proof that no input can overflow what a layer holds in 32 bits.

Each sum's extremes are known exactly: every product is largest at one end of the code range. The
bounds are therefore reached by an input (``tests/targets/test_sum_bounds.py`` builds it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from targets.arithmetic import INT32_MAX
from targets.scale import AddScale, Scale

Ints = npt.NDArray[np.int64]

BLOCK = 1 << 18
"""Weights that are looked at together, so that wider copies of them stay in a cache."""


@dataclass(frozen=True)
class CodeRange:
    """The codes that a tensor can hold, and the code of 0.0 among them."""

    low: int
    high: int
    zero_point: int = 0


@dataclass(frozen=True, eq=False)
class SumBounds:
    """Bounds per output channel, int64[K].

    Attributes:
        partial: largest magnitude of any partial sum of products, and of the bias.
        smallest: of the sum of products and bias.
        largest: likewise.
    """

    partial: Ints
    smallest: Ints
    largest: Ints

    @property
    def reach(self) -> int:
        """Largest magnitude of a sum, whole or partial, with or without its bias."""
        return int(_magnitude(self.partial, self.smallest, self.largest).max())


def bound_sums(
    weight: npt.NDArray[np.integer], bias: npt.NDArray[np.integer], low: int, high: int
) -> SumBounds:
    """Bounds of a layer's sums over all inputs, and of their parts in whatever order.

    Args:
        weight: codes, int[K, ...], one row of products per output channel.
        bias: int[K], what is added to sums of raw codes: the input's zero point is folded in.
        low: lowest input code; padding lies in the range, too.
        high: highest input code.
    """
    rows = weight.reshape(len(weight), -1).astype(np.int64, copy=False)
    offset: Ints = bias.astype(np.int64, copy=False)
    positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    # A partial sum may leave out the products that are smallest of all.
    most = positive * max(high, 0) + negative * min(low, 0)
    least = positive * min(low, 0) + negative * max(high, 0)
    return SumBounds(
        _magnitude(least, most, offset),
        positive * low + negative * high + offset,
        positive * high + negative * low + offset,
    )


def neighbours_fit_int16(weight: npt.NDArray[np.integer], low: int, high: int) -> bool:
    """Whether the products of neighbours, summed two by two, fit 16 bits whatever the input.

    Args:
        weight: codes of at most 16 bits, int[K, ..., C]; neighbours are 0 and 1, 2 and 3, ... of
            the last axis.
        low: lowest input code.
        high: highest input code.
    """
    largest = max(int(weight.max()), -int(weight.min()))
    if 2 * largest * max(abs(low), abs(high)) <= np.iinfo(np.int16).max:
        return True
    rows = max(1, BLOCK // weight[0].size)
    blocks = (weight[first : first + rows] for first in range(0, len(weight), rows))
    return all(_neighbours_fit_int16(block, low, high) for block in blocks)


def _neighbours_fit_int16(weight: npt.NDArray[np.integer], low: int, high: int) -> bool:
    even, odd = weight[..., ::2], weight[..., 1::2]
    positive = np.maximum(even, 0).astype(np.int32)
    negative = np.minimum(even, 0).astype(np.int32)
    positive[..., : odd.shape[-1]] += np.maximum(odd, 0)
    negative[..., : odd.shape[-1]] += np.minimum(odd, 0)
    ends = np.iinfo(np.int16)
    return bool(
        (positive * high + negative * low).max() <= ends.max
        and ends.min <= (positive * low + negative * high).min()
    )


def bound_products(
    left: CodeRange, right: CodeRange, count: int, bias: npt.NDArray[np.integer]
) -> SumBounds:
    """Bounds of sums of ``count`` products of two tensors' codes, less their zero points each.

    The factors are taken as independent; of a tensor multiplied by itself the bounds hold, too.

    Args:
        left: of one tensor.
        right: of the other.
        count: products of a sum.
        bias: int[K], added to sums.
    """
    offset: Ints = bias.astype(np.int64, copy=False)
    extremes = [
        (a - left.zero_point) * (b - right.zero_point)
        for a in (left.low, left.high)
        for b in (right.low, right.high)
    ]
    least, most = (np.full_like(offset, count * pick(extremes)) for pick in (min, max))
    return SumBounds(_magnitude(least, most, offset), least + offset, most + offset)


def held_bound(
    bounds: SumBounds, scale: Scale | None, residual: CodeRange | None = None, zero_point: int = 0
) -> Ints:
    """Largest magnitude of what a layer's requantization holds in 32 bits, int64[K].

    With multipliers only the shifted sums are: products are 64-bit, at most 2**31 * 2**16 plus a
    residual below 2**8 * 2**16 * 2**31, far inside. Without any, residual, rounding and the
    output's zero point stay in 32 bits and count. Rounding by borders adds nothing in front of the
    shift, so what is proved half up holds for it.

    Args:
        bounds: of the sums.
        scale: None where the sums themselves are the output.
        residual: the codes that are added, if ``scale`` has a residual.
        zero_point: of the output.
    """
    if scale is None:
        return _magnitude(bounds.partial, bounds.smallest, bounds.largest)
    low, high = bounds.smallest << scale.fraction, bounds.largest << scale.fraction
    held = _magnitude(bounds.partial, low, high)
    if scale.multiplies:
        return held
    if residual is not None:
        left = np.array(scale.residual_shift, np.int64)
        low = low + ((residual.low - residual.zero_point) << left)
        high = high + ((residual.high - residual.zero_point) << left)
    shift = np.array(scale.shift, np.int64)
    high = high + ((np.int64(1) << shift) >> 1)
    return np.maximum(held, _magnitude(low, high, low + zero_point, high + zero_point))


def needs_int64(
    bounds: SumBounds, scale: Scale, residual: CodeRange | None, zero_point: int
) -> bool:
    """Whether 32 bits are too few for what follows the sums; arguments as ``held_bound``."""
    held = held_bound(bounds, scale, residual, zero_point)
    return scale.multiplies or max(scale.shift) > 30 or int(held.max()) > INT32_MAX


def add_needs_int64(scale: AddScale, a: CodeRange, b: CodeRange, zero_point: int) -> bool:
    """Whether 32 bits are too few for a sum of two values."""
    reach = 0
    for codes, multiplier, left in zip((a, b), scale.multipliers, scale.shifts, strict=True):
        largest = max(codes.high - codes.zero_point, codes.zero_point - codes.low)
        reach += (largest * multiplier) << left
    held = reach + (1 << scale.shift >> 1) + abs(zero_point)
    return scale.shift > 30 or held > INT32_MAX


def _magnitude(*bounds: Ints) -> Ints:
    magnitude: Ints = np.abs(np.stack(np.broadcast_arrays(*bounds))).max(axis=0)
    return magnitude
