"""Factors of products: ``sum over g of factor[k, g] * P[k, g]``, P being the sums over a group g.

The input channels of a layer are cut into groups, and what a group adds to a sum counts by a
factor of its own, which is ``2^-a``, or ``2^-a`` plus or minus ``2^-b``. In integers it is that
times ``2^fraction``, so that hardware shifts products to the left, twice at most, and adds: nothing
is rounded, and neither order nor tiling of the products matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from targets.arithmetic import MAX_FRACTION
from targets.errors import ArithmeticRangeError

Ints: TypeAlias = npt.NDArray[np.int32]

FACTOR_BITS = 4
"""Most fraction bits of a factor."""

FACTORS = tuple(
    sorted({1.0, *(1 + sign * 2.0**-k for k in range(1, FACTOR_BITS + 1) for sign in (-1, 1))})
)
"""What a factor can be: 1, and 1 plus or minus 2^-k for k = 1 to 4."""


@dataclass(frozen=True)
class Shifts:
    """A factor as ``2^-a + sign * 2^-b``; ``sign`` is -1, 0 (the first alone) or 1."""

    a: int = 0
    b: int = 0
    sign: int = 0


@cache
def shifts_of(factor: int, fraction: int) -> Shifts | None:
    """A factor, in units of ``2^-fraction``, by shifts, a sum rather than a difference.

    None where two shifts do not give it.
    """
    powers = range(fraction + 1)
    for a in powers:
        if factor == 1 << (fraction - a):
            return Shifts(a)
    for sign in (1, -1):
        for a in powers:
            for b in range(a + 1, fraction + 1):
                if factor == (1 << (fraction - a)) + sign * (1 << (fraction - b)):
                    return Shifts(a, b, sign)
    return None


def integer_factors(factors: npt.NDArray[Any]) -> tuple[Ints, int]:
    """Factors as integers, and the fewest fraction bits with which they are.

    Args:
        factors: float64, any shape.

    Raises:
        ArithmeticRangeError: a factor has too many bits; names it.
    """
    for fraction in range(FACTOR_BITS + 1):
        exact = np.ldexp(factors, fraction)
        if not np.any(exact % 1):
            return exact.astype(np.int32), fraction
    wrong = np.ldexp(exact[exact % 1 != 0].flat[0], -FACTOR_BITS)
    raise ArithmeticRangeError(
        f"the factor {wrong} of products has more than {FACTOR_BITS} fraction bits. "
        f"Use {', '.join(map(str, FACTORS))}."
    )


@dataclass(frozen=True, eq=False)
class ProductFactors:
    """The factors of one layer, of which at least one is not 1.

    Attributes:
        channels: input channels of a group, within a group of a grouped convolution; the last
            group may have fewer.
        factors: int32[K, groups].
    """

    channels: int
    factors: Ints

    @staticmethod
    def of(factors: Ints) -> ProductFactors | None:
        """Those of each input channel, in groups as large as may be; None where all are 1.

        Args:
            factors: int32[K, C / groups].

        Raises:
            ArithmeticRangeError: a factor is no sum or difference of two powers of two.
        """
        if (factors == 1).all():
            return None
        changes = np.flatnonzero((factors[:, 1:] != factors[:, :-1]).any(axis=0)) + 1
        channels = math.gcd(*changes.tolist()) if changes.size else factors.shape[1]
        found = ProductFactors(channels, factors[:, ::channels].astype(np.int32))
        _ = found.fraction
        return found

    @cached_property
    def fraction(self) -> int:
        """The fewest bits that the larger of two shifts must reach, in [0, 15]."""
        distinct = np.unique(self.factors).tolist()
        for fraction in range(MAX_FRACTION + 1):
            if all(shifts_of(factor, fraction) is not None for factor in distinct):
                return fraction
        raise ArithmeticRangeError(
            f"products are multiplied by {distinct}, which are not all sums or differences of two "
            f"powers of two up to 2^{MAX_FRACTION}. Use {', '.join(map(str, FACTORS))}."
        )

    @property
    def groups(self) -> int:
        """Of the input channels that an output reads."""
        return int(self.factors.shape[1])

    def spread(self, channels: int) -> Ints:
        """int32[K, C]: the factor of each of ``channels`` input channels."""
        return np.repeat(self.factors, self.channels, axis=1)[:, :channels]

    def scaled(self, weight: npt.NDArray[np.integer]) -> Ints:
        """int32[K, ..., C]: weights that give the same sums without factors."""
        K, C = weight.shape[0], weight.shape[-1]
        factors = self.spread(C).reshape(K, *[1] * (weight.ndim - 2), C)
        return weight.astype(np.int32) * factors
