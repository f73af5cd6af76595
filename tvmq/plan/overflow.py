"""The proof that no input can overflow a layer's int32 accumulator.

Each sum's extremes are known exactly: every product is largest at one end of the code range. The
bounds are therefore reached by an input (``tests/tvmq/plan/test_overflow.py`` builds it),
except for padding, which only takes products away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from targets.errors import ArithmeticRangeError
from tvmq.plan.plan import AccumulatorProof, RequantizePlan, ValuePlan

LIMIT = 2**31 - 1

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SumBounds:
    """Bounds per output channel, int64[K].

    Attributes:
        partial: largest magnitude of any partial sum of ``weight * code``.
        smallest: of ``sum of weight * (code - zero_point) + bias``.
        largest: likewise.
    """

    partial: Ints
    smallest: Ints
    largest: Ints


def bound_sums(weights: Ints, bias: Ints, source: ValuePlan) -> SumBounds:
    """Bounds of a layer's sums.

    Args:
        weights: codes, int64[K, ...].
        bias: int64[K], without the part of the zero point.
        source: the codes that are read.
    """
    w = weights.reshape(len(weights), -1)
    positive, negative = np.maximum(w, 0).sum(axis=1), np.minimum(w, 0).sum(axis=1)
    low, high = min(source.low, 0), max(source.high, 0)
    above = positive * high + negative * low
    below = positive * low + negative * high
    # The int32 sum holds raw codes; its bias is bias - zero_point * sum(weights).
    folded = np.abs(bias - source.zero_point * w.sum(axis=1))
    centred_low, centred_high = source.low - source.zero_point, source.high - source.zero_point
    return SumBounds(
        np.maximum(np.maximum(above, -below), folded),
        positive * centred_low + negative * centred_high + bias,
        positive * centred_high + negative * centred_low + bias,
    )


def prove_accumulator(
    layer: str,
    bounds: SumBounds,
    requantize: RequantizePlan | None,
    residual: ValuePlan | None = None,
) -> AccumulatorProof:
    """Show that everything a layer holds in int32 fits.

    With multipliers the product is int64: at most 2**31 * 2**16 plus a residual below
    2**8 * 2**16 * 2**31, far inside. Without any, residual and rounding happen in int32 and count.

    Raises:
        ArithmeticRangeError: it does not fit; the message names layer and channel.
    """
    total = total_bound(bounds, requantize, residual)
    channel = int(np.argmax(total))
    if total[channel] > LIMIT:
        raise ArithmeticRangeError(
            f"the accumulator of {layer} can reach {total[channel]} in output channel {channel}, "
            f"int32 holds {LIMIT}; use fewer bits or coarser steps for this layer."
        )
    return AccumulatorProof(
        int(bounds.partial.max()),
        int(bounds.smallest.min()),
        int(bounds.largest.max()),
        int(total[channel]),
        LIMIT,
    )


def total_bound(
    bounds: SumBounds, requantize: RequantizePlan | None, residual: ValuePlan | None
) -> Ints:
    """Largest magnitude per channel of what int32 must hold; int64[K]."""
    if requantize is None:
        return np.maximum(bounds.partial, np.maximum(bounds.largest, -bounds.smallest))
    low, high = bounds.smallest << requantize.fraction, bounds.largest << requantize.fraction
    total = np.maximum(np.maximum(bounds.partial, high), -low)
    if any(m != 1 for m in (*requantize.multiplier, requantize.residual_multiplier)):
        return total
    shift = np.array(requantize.shift)
    if residual is not None:
        r_shift = np.array(requantize.residual_shift)
        low = low + ((residual.low - residual.zero_point) << r_shift)
        high = high + ((residual.high - residual.zero_point) << r_shift)
        total = np.maximum(total, np.maximum(high, -low))
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    return np.maximum(total, high + half)
