"""The arithmetic of operators on rows, softmax and norms: integers throughout, defined here.

A row is C codes x. Both divide by a number of the row, d > 0, as the requantizer multiplies: by 16
bits, then a shift that is the row's own.

    b = bits of d (2^(b-1) <= d < 2^b)      R = floor((2^(15+b) - 1) / d), of 16 bits
    u / d = (u * R) / 2^(15+b), too low by less than 2^-15 of itself

softmax, in units of 2^-30:

    e[c] = table[max x - x[c]]              table[i] = round(2^15 * exp(-i * step))
    y[c] = (e[c] * R) >> (b - 15)           d = sum e

layer norm, n in units of 2^-f:         without the mean (root mean square, L2):

    D[c] = C * x[c] - sum x                 D[c] = C * (x[c] - z)
    V    = C * sum x^2 - (sum x)^2          V    = C * sum (x - z)^2
    d    = floor(sqrt((V << 2j) + E))       E = eps in these units
    n[c] = (D[c] * R + half) >> (15 + b - j - f)
    y[c] = n[c] * gain[c] + bias[c]

Neither mean nor zero point z is rounded: D and V are free of them. All end in sums like those of a
product, which the requantizer makes codes of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from targets.errors import ArithmeticRangeError
from targets.sum_bounds import SumBounds

Ints = npt.NDArray[np.int64]

SOFTMAX_BITS = 30
"""Sums of a softmax are in units of 2^-30."""

EXPONENTIAL_BITS = 15
RECIPROCAL_BITS = 15
LONGEST_ROW = 1 << 15
"""Codes of a row, so that its sums fit 32 bits: of squares 2^16 each, of exponentials 2^15."""

LONGEST_NORM = 1 << 18
"""Codes that a norm may have, in sums of 64 bits if they are more than LONGEST_ROW: their variance
is below 2^50. Without the mean, half as many."""

NORM_BITS = 15

GAIN_BITS = 16
DIVISOR_BITS = 32
"""Of what a row is divided by: a sum of exponentials, or half the bits of what a root is of."""

ROOT_BITS = 52
"""What a root is taken of is below 2^52, where that of a float64, rounded down, is exact."""

LARGEST_VARIANCE = 255 * 255 // 4 + 1
"""Of codes, rounded up."""

LARGEST_SQUARE = 255 * 255
"""Of a code less its zero point: what a variance without the mean is at most."""


def exponentials(step: float) -> npt.NDArray[np.int32]:
    """int32[256]: what a code counts that is 0 to 255 below the largest of its row."""
    distance = np.arange(256) * step
    return np.floor(np.exp(-distance) * (1 << EXPONENTIAL_BITS) + 0.5).astype(np.int32)


def softmax_bounds() -> SumBounds:
    """Of the sums of a softmax, for one channel."""
    most = np.array([1 << SOFTMAX_BITS])
    return SumBounds(most, np.zeros_like(most), most)


@dataclass(frozen=True, eq=False)
class NormScale:
    """The integers of a norm.

    Attributes:
        epsilon: E, positive, and such that no shift of a normalized code is below 1.
        lift: j, such that a root has as many bits as fit.
        fraction: f, of a normalized code.
        gain: int32[C], at most 2^15 - 1 in magnitude.
        bias: int32[C].
        centred: whether the mean is subtracted.
        zero_point: z; 0 where the mean is subtracted, which z goes with.
    """

    epsilon: int
    lift: int
    fraction: int
    gain: npt.NDArray[np.int32]
    bias: npt.NDArray[np.int32]
    centred: bool = True
    zero_point: int = 0

    @property
    def bounds(self) -> SumBounds:
        """Of its sums, per channel."""
        reach = np.abs(self.gain.astype(np.int64)) * norm_limit(len(self.gain))
        bias = self.bias.astype(np.int64)
        most = np.maximum(np.abs(bias - reach), np.abs(bias + reach))
        return SumBounds(np.maximum(most, reach), bias - reach, bias + reach)


def norm_fraction(count: int) -> int:
    """Bits behind the point of a normalized code: none of a row of ``count`` exceeds its root."""
    return NORM_BITS - math.ceil(math.log2(count) / 2)


def longest_norm(*, centred: bool) -> int:
    """Most codes of a row whose variance, or mean square, fits."""
    return LONGEST_NORM if centred else LONGEST_NORM // 2


def norm_limit(count: int) -> int:
    """Of a normalized code: the root of C - 1 in its units, and what a root rounded down adds."""
    return (1 << NORM_BITS) + (32 if count <= LONGEST_NORM // 2 else 64)


def gain_step(gamma: npt.NDArray[Any], beta: npt.NDArray[Any]) -> float:
    """The finest step at which factors and summands of a layer norm fit, a power of two."""
    limit = (1 << (GAIN_BITS - 1)) - 1
    by_gain = float(np.abs(gamma).max()) / limit
    by_bias = float(np.abs(beta).max()) * 2.0 ** (norm_fraction(len(gamma)) - 30)
    return 2.0 ** math.ceil(math.log2(max(by_gain, by_bias, 2.0**-40)))


def largest_variance(count: int, *, centred: bool) -> int:
    """V of a row of ``count`` codes at most."""
    return count * count * (LARGEST_VARIANCE if centred else LARGEST_SQUARE)


def derive_norm(
    gamma: npt.NDArray[Any],
    beta: npt.NDArray[Any],
    eps: float,
    step: float,
    gain_step: float,
    *,
    centred: bool = True,
    zero_point: int = 0,
) -> NormScale:
    """The integers of a norm.

    Args:
        gamma: float[C].
        beta: float[C].
        eps: added to the variance.
        step: of the codes that are normalized.
        gain_step: of gamma.
        centred: whether the mean is subtracted.
        zero_point: of the codes; of no account where the mean is subtracted.

    Raises:
        ArithmeticRangeError: a row is too long, or beta is too large for its place.
    """
    count = len(gamma)
    longest = longest_norm(centred=centred)
    if count > longest:
        raise ArithmeticRangeError(
            f"normalizes rows of {count} channels, at most {longest} fit; split them in groups."
        )
    fraction = norm_fraction(count)
    raised = min(eps * (count / step) ** 2, 2.0**ROOT_BITS)
    largest = largest_variance(count, centred=centred) + math.ceil(raised)
    lift = (ROOT_BITS - 1 - largest.bit_length()) // 2
    if lift < 0:
        raise ArithmeticRangeError(
            f"adds {eps:g} to variances of codes whose step is {step:g}, which is too much for "
            "them; calibrate with images of the usual size."
        )
    epsilon = max(round(raised * 4**lift), 4 ** max(0, lift + fraction - RECIPROCAL_BITS))
    gain = np.floor(np.asarray(gamma, np.float64) / gain_step + 0.5)
    bias = np.floor(np.asarray(beta, np.float64) / gain_step * 2.0**fraction + 0.5)
    limit = (1 << (GAIN_BITS - 1)) - 1
    if np.abs(bias).max() >= 2.0**31:
        raise ArithmeticRangeError(
            f"its bias reaches {np.abs(beta).max():g}, too much beside factors of "
            f"{np.abs(gamma).max():g}; use a coarser step of the factors."
        )
    return NormScale(
        epsilon,
        lift,
        fraction,
        np.clip(gain, -limit, limit).astype(np.int32),
        bias.astype(np.int64).astype(np.int32),
        centred,
        0 if centred else zero_point,
    )


def softmax_sums(codes: npt.NDArray[Any], table: npt.NDArray[Any]) -> Ints:
    """Softmax over the last axis of codes, any integer type; in units of 2^-30."""
    x = codes.astype(np.int64)
    e = table.astype(np.int64)[x.max(-1, keepdims=True) - x]
    reciprocal, bits = _reciprocal(e.sum(-1, keepdims=True))
    return (e * reciprocal) >> (bits - EXPONENTIAL_BITS)


def norm_sums(codes: npt.NDArray[Any], scale: NormScale) -> Ints:
    """A norm over the last axis of codes, any integer type."""
    return normalized(codes, scale) * scale.gain + scale.bias


def normalized(codes: npt.NDArray[Any], scale: NormScale) -> Ints:
    """The same without gain and bias, in units of 2^-f."""
    x = codes.astype(np.int64) - scale.zero_point
    count = x.shape[-1]
    total = x.sum(-1, keepdims=True) * scale.centred
    variance = count * (x * x).sum(-1, keepdims=True) - total * total
    square = (variance << (2 * scale.lift)) + scale.epsilon
    root = np.floor(np.sqrt(square.astype(np.float64))).astype(np.int64)
    reciprocal, bits = _reciprocal(root)
    shift = RECIPROCAL_BITS + bits - scale.lift - scale.fraction
    return ((count * x - total) * reciprocal + (np.int64(1) << (shift - 1))) >> shift


def _reciprocal(divisor: Ints) -> tuple[Ints, Ints]:
    """R and b of a row's divisor."""
    bits = np.zeros_like(divisor)
    for place in range(DIVISOR_BITS):
        bits += divisor >= np.int64(1) << place
    return ((np.int64(1) << (RECIPROCAL_BITS + bits)) - 1) // divisor, bits
