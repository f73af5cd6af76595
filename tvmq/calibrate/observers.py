"""What is known about the distribution of one tensor, and the step that suits it best.

A tensor is never kept: a histogram of fixed size takes every batch as it comes. Its range is a
power of two and doubles when a value lies outside, which merges pairs of bins exactly, so the
result does not depend on how the images were cut into batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from targets.code_range import code_range
from tvmq.calibrate.count_bins import count_bins
from tvmq.settings import Settings

SIDE_BINS = 4096
"""Bins on each side of zero; at least half of them lie within the values seen."""

FRACTIONS = np.arange(10, 101) / 100
"""Parts of the full range that a search for a free step tries."""

SMALLEST_EXPONENT = -100
"""Of a histogram's limit: float32 holds the reciprocal of a bin, and what is smaller is 0."""

STEP_OF_ZEROS = 2.0**-16
"""Of a tensor that is always 0: the sums of its reader are its bias, in multiples of this."""

WORTH_A_ZERO_POINT = 0.5
"""Of the squared error with codes about zero, at most, for codes with a zero point instead."""

EXPONENTS = range(-4, 1)
"""Offsets from the power of two that just holds the full range."""

Floats = npt.NDArray[np.float64]


@dataclass
class Histogram:
    """Counts of a tensor's elements over [-limit, limit) in 2 * SIDE_BINS equal bins.

    Attributes:
        counts: float64[2 * SIDE_BINS]; probabilities or counts, only ratios matter.
        limit: a power of two; 0 while nothing but zeros was seen.
        low: smallest element, inf while nothing was seen.
        high: largest element.
        note: where the numbers are from, for the reasons in a plan.
    """

    counts: Floats = field(default_factory=lambda: np.zeros(2 * SIDE_BINS))
    limit: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    note: str = ""

    def add(self, tensor: torch.Tensor, extremes: tuple[float, float] | None = None) -> None:
        """Count the elements of a tensor, float32, any shape.

        Args:
            tensor: whose elements are counted.
            extremes: its smallest and its largest element, where they are known.

        Raises:
            ValueError: an element is not finite.
        """
        tensor = tensor.float()
        low, high = extremes or (float(x) for x in torch.aminmax(tensor))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("not finite")
        self.extend(low, high)
        if self.limit:
            self.counts += count_bins(tensor.reshape(-1), self.limit, 2 * SIDE_BINS)

    def extend(self, low: float, high: float) -> None:
        """Note the extremes and make room for them."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        peak = max(abs(low), abs(high))
        if peak > 0.0:
            # > peak, so that a bin holds it
            self._grow(2.0 ** max(math.frexp(peak)[1], SMALLEST_EXPONENT))

    def _grow(self, limit: float) -> None:
        self.limit = self.limit or limit
        while self.limit < limit:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(2 * SIDE_BINS)
            self.counts[SIDE_BINS // 2 : -SIDE_BINS // 2] = pairs
            self.limit *= 2

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both tensors together."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        limit = max(self.limit, other.limit)
        mine, theirs = (replace(h, counts=h.counts.copy()) for h in (self, other))
        if limit:
            mine._grow(limit)
            theirs._grow(limit)
        return Histogram(mine.counts + theirs.counts, limit, low, high, self.note)

    @property
    def edges(self) -> Floats:
        """float64[2 * SIDE_BINS + 1]: where the bins begin and end."""
        return np.linspace(-self.limit, self.limit, 2 * SIDE_BINS + 1)

    def occupied(self) -> tuple[Floats, Floats]:
        """Centres and counts of the bins that hold anything; centres within [low, high]."""
        edges = self.edges
        where = np.flatnonzero(self.counts)
        centres = (edges[where] + edges[where + 1]) / 2
        return np.clip(centres, self.low, self.high), self.counts[where]

    def percentile(self, percent: float) -> tuple[float, float]:
        """Bounds symmetric about zero, cut to the extremes, that hold ``percent`` of elements."""
        magnitudes = self.counts[:SIDE_BINS][::-1] + self.counts[SIDE_BINS:]
        share = np.cumsum(magnitudes) / magnitudes.sum()
        index = int(np.searchsorted(share, percent / 100 - 1e-12))
        bound = self.limit * min(index + 1, SIDE_BINS) / SIDE_BINS
        return max(self.low, -bound), min(self.high, bound)


@dataclass(frozen=True)
class Codes:
    """How a tensor is written in codes: ``step * (code - zero_point)``.

    Attributes:
        step: positive.
        zero_point: the code of 0.0.
        signed: int8 codes, otherwise uint8.
        reason: one line, for the plan.
    """

    step: float
    zero_point: int
    signed: bool
    reason: str


def choose_codes(
    histogram: Histogram,
    bits: int,
    settings: Settings,
    *,
    symmetric: bool = False,
    signed: bool = False,
) -> Codes:
    """The best step, zero point and type for a tensor.

    Nothing negative: unsigned. Both signs: signed about zero; but if one side is less than a
    quarter of the other (a SiLU), or that halves the error (a leaky ReLU), unsigned with a zero
    point, which wastes fewer codes, unless the codes must be ``symmetric``: then zero is the code
    of 0.0 in any case. What must be ``signed`` is symmetric and int8, whatever its signs.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if low == high == 0.0 or histogram.limit == 0.0:
        return Codes(STEP_OF_ZEROS, 0, signed, "always 0")
    smaller, larger = sorted((-low, high))
    symmetric |= signed
    signed |= low < 0 and (symmetric or smaller >= larger / 4)
    error, step, zero = _best(histogram, bits, signed, settings)
    if signed and not symmetric:
        other = _best(histogram, bits, False, settings)
        if other[0] < WORTH_A_ZERO_POINT * error:
            signed, (error, step, zero) = False, other
    first, last = code_range(bits, signed)
    centres, counts = histogram.occupied()
    lost = float(counts[(centres < (first - zero - 0.5) * step)].sum())
    lost += float(counts[(centres > (last - zero + 0.5) * step)].sum())
    reason = (
        f"{settings.calib_method} of {histogram.note}: values in [{histogram.low:.4g}, "
        f"{histogram.high:.4g}], {100 * lost / counts.sum():.2g} % beyond the codes"
    )
    return Codes(step, zero, signed, reason)


def _best(
    histogram: Histogram, bits: int, signed: bool, settings: Settings
) -> tuple[float, float, int]:
    """The smallest error of all candidates, with its step and zero point."""
    centres, counts = histogram.occupied()
    power = 2.4 if settings.calib_method == "lp" else 2.0
    codes = code_range(bits, signed)
    found = (
        (_error(centres, counts, step, zero, codes, power), step, zero)
        for step, zero in _candidates(histogram, bits, signed, settings)
    )
    return min(found, key=lambda candidate: candidate[0])


def relative_error(
    histogram: Histogram, step: float, zero_point: int, bits: int, signed: bool
) -> float:
    """Squared error of rounding a tensor to codes, relative to its squares; 0 for a zero tensor."""
    centres, counts = histogram.occupied()
    whole = float(counts @ centres**2)
    codes = code_range(bits, signed)
    return _error(centres, counts, step, zero_point, codes, 2.0) / whole if whole else 0.0


def _candidates(
    histogram: Histogram, bits: int, signed: bool, settings: Settings
) -> list[tuple[float, int]]:
    """Steps and zero points to choose from; one alone where the method fixes the range."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    search = settings.calib_method in ("mse", "lp")
    if settings.calib_method == "percentile":
        low, high = histogram.percentile(settings.percentile)
        low, high = min(low, 0.0), max(high, 0.0)
    first, last = code_range(bits, signed)
    full = max(-low / -first, high / last) if signed else (high - low) / last
    if settings.pot:
        ceiling = math.ceil(math.log2(full) - 1e-9)
        steps = [2.0 ** (ceiling + e) for e in (EXPONENTS if search else (0,))]
    else:
        steps = [float(full * f) for f in (FRACTIONS if search else (1.0,))]
    if signed or low == 0.0:
        return [(step, 0) for step in steps]
    return [
        (step, min(max(math.floor(last * -low / (high - low) + 0.5), 0), last)) for step in steps
    ]


def _error(
    centres: Floats,
    counts: Floats,
    step: float,
    zero: int,
    codes: tuple[int, int],
    power: float,
) -> float:
    code = np.clip(np.floor(centres / step + 0.5) + zero, *codes)
    return float(counts @ np.abs(centres - step * (code - zero)) ** power)
