"""From the steps of a network to the integers of its requantizations: the one derivation of them.

A step is what one code is worth. Sums of products come in steps of ``source * weight``, codes of
the output in steps of ``output``, so sums become codes by the ratio of the two, which must be
``M / 2**s`` with a 16-bit M (1 for steps that are powers of two). Whoever plans steps and whoever
lowers a network to them calls this file, so that what was planned is what is executed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from targets.arithmetic import (
    MAX_FRACTION,
    MAX_MULTIPLIER,
    MAX_RESIDUAL_SHIFT,
    MAX_SHIFT,
    MAX_SHIFT_SPREAD,
)
from targets.errors import ArithmeticRangeError

_BITS = MAX_MULTIPLIER.bit_length()


class TooFineError(ArithmeticRangeError):
    """A step is so fine that the sums would have to be shifted left too far.

    Attributes:
        which: the value whose step must be coarser; of an addition an operand.
    """

    def __init__(
        self, which: Literal["output", "residual", "first", "second"], message: str
    ) -> None:
        super().__init__(message)
        self.which = which


class TooFineWeightsError(ArithmeticRangeError):
    """Steps of weights are so fine that their sums would have to be shifted right too far.

    Attributes:
        excess: places, one per ratio; steps larger by two to the power of it would do.
    """

    def __init__(self, excess: tuple[int, ...], message: str) -> None:
        super().__init__(message)
        self.excess = excess


@dataclass(frozen=True)
class Scale:
    """The integers between sums and codes (``targets/arithmetic.py``).

    Attributes:
        fraction: left shift of the sums, in [0, 15].
        multiplier: one, or one per output channel, in [1, 65535].
        shift: likewise, right, in [0, 47], at most 15 apart.
        residual_multiplier: in [1, 65535]; 1 without a residual.
        residual_shift: like ``shift``, left, in [0, 31]; empty without a residual.
    """

    fraction: int
    multiplier: tuple[int, ...]
    shift: tuple[int, ...]
    residual_multiplier: int = 1
    residual_shift: tuple[int, ...] = ()

    @property
    def multiplies(self) -> bool:
        """Whether anything but shifts is needed."""
        return any(m != 1 for m in (*self.multiplier, self.residual_multiplier))


@dataclass(frozen=True)
class AddScale:
    """The integers of a sum of two values: ``(a * multipliers[0] << shifts[0]) + ... >> shift``.

    Attributes:
        multipliers: of both sides, in [1, 65535].
        shifts: of both sides, left, in [0, 31].
        shift: right, in [0, 47].
    """

    multipliers: tuple[int, int]
    shifts: tuple[int, int]
    shift: int


def nearest_multiplier(ratio: Fraction) -> tuple[int, int]:
    """The nearest ``M / 2**s``: M = 1 if the ratio is a power of two, else 2**15 <= M < 2**16."""
    exponent = math.frexp(ratio)[1] - 1
    if ratio == power_of_two(exponent):
        return 1, -exponent
    shift = _BITS - 1 - exponent
    multiplier = math.floor(ratio * power_of_two(shift) + Fraction(1, 2))
    if multiplier > MAX_MULTIPLIER:
        return 1 << (_BITS - 1), shift - 1
    return multiplier, shift


def exact_multiplier(ratio: Fraction) -> tuple[int, int]:
    """The ``M / 2**s`` that a ratio of float64 steps stands for, with M odd.

    Steps are snapped so that their ratio is such a number, and then rounded to float64, which
    leaves a relative error below 2**-50. Two numbers with 16-bit M differ by at least 2**-32, so
    the one within 2**-40 is the one that was meant.

    Returns:
        M in [1, 65535] and s, which may be negative.

    Raises:
        ArithmeticRangeError: no 16-bit M gives the ratio.
    """
    M, s = nearest_multiplier(ratio)
    if abs(M * power_of_two(-s) - ratio) > ratio / 2**40:
        raise ArithmeticRangeError(
            f"the ratio of steps {float(ratio)!r} is not M / 2**s with a 16-bit M. "
            "Snap the steps when planning, or use power-of-two steps."
        )
    zeros = (M & -M).bit_length() - 1
    return M >> zeros, s - zeros


def derive_scale(ratios: Sequence[Fraction], residual: Fraction | None = None) -> Scale:
    """The integers of a requantization.

    Args:
        ratios: step of the sums over step of the output; one, or one per output channel.
        residual: step of the value that is added over step of the output, or None.

    Raises:
        TooFineError: a coarser output or residual would do.
        TooFineWeightsError: coarser weights would do.
        ArithmeticRangeError: a ratio is no 16-bit multiplier, or a shift leaves its field; names
            the channel.
    """
    pairs = _per_channel(ratios)
    N, n = (1, 0) if residual is None else exact_multiplier(residual)
    # The residual is shifted left by s - n, and nothing is shifted right by less than nothing.
    least = max(n, 0)
    M, s, fraction = _with_shifts_from(pairs, least)
    if fraction > MAX_FRACTION:
        _, _, alone = _with_shifts_from(pairs, 0)
        raise TooFineError(
            "output" if alone == fraction else "residual",
            f"needs {fraction} fraction bits, at most {MAX_FRACTION} fit. "
            "Its steps differ too much; calibrate again or exclude the layer.",
        )
    left = tuple(shift - n for shift in s) if residual is not None else ()
    _check_shifts(s, n if residual is not None else None)
    return Scale(fraction, M, s, N, left)


def derive_addition(first: Fraction, second: Fraction) -> AddScale:
    """The integers of a sum of two values, both brought to the finer of their two grids.

    Args:
        first: step of one side over step of the output.
        second: of the other side.

    Raises:
        TooFineError: a side has so fine a grid that the other's codes can't be brought to it.
        ArithmeticRangeError: as ``derive_scale``.
    """
    (ma, sa), (mb, sb) = exact_multiplier(first), exact_multiplier(second)
    shift = max(sa, sb, 0)
    shifts = (shift - sa, shift - sb)
    if shift > MAX_SHIFT or max(shifts) > MAX_RESIDUAL_SHIFT:
        raise TooFineError(
            "first" if sa > sb else "second",
            f"needs a right shift of {shift} and a left shift of {max(shifts)} of an operand, at "
            f"most {MAX_SHIFT} and {MAX_RESIDUAL_SHIFT} fit",
        )
    return AddScale((ma, mb), shifts, shift)


def power_of_two(exponent: int) -> Fraction:
    """``2**exponent``, exactly."""
    return Fraction(2**exponent) if exponent >= 0 else Fraction(1, 2**-exponent)


def _per_channel(ratios: Sequence[Fraction]) -> list[tuple[int, int]]:
    known: dict[Fraction, tuple[int, int]] = {}
    for k, ratio in enumerate(ratios):
        if ratio not in known:
            try:
                known[ratio] = exact_multiplier(ratio)
            except ArithmeticRangeError as error:
                raise ArithmeticRangeError(f"channel {k}: {error}") from None
    return [known[ratio] for ratio in ratios]


def _with_shifts_from(
    pairs: list[tuple[int, int]], least: int
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Multipliers and shifts of the same ratios, all shifts from ``least`` on, and the fraction.

    A multiplier grows by powers of two as far as its 16 bits go; the sums make up for the rest.
    Layers without a multiplier get none, and one multiplier for all channels stays one.
    """
    M, s = [m for m, _ in pairs], [shift for _, shift in pairs]
    room = [_BITS - m.bit_length() for m in M]
    if len(set(M)) > 1:  # the field of a channel's shift is narrow: make them as equal as may be
        grown = [min(max(s) - shift, free) for shift, free in zip(s, room, strict=True)]
        # what the channel with the least room leaves is left to the sums, which all channels share:
        # another one that grew further would only be farther from it
        within = min(least, *(shift + free for shift, free in zip(s, room, strict=True)))
        grown = [max(up, within - shift) for shift, up in zip(s, grown, strict=True)]
    else:
        free = 0 if M[0] == 1 else room[0]
        grown = [min(max(least - min(s), 0), free)] * len(s)
    M = [m << up for m, up in zip(M, grown, strict=True)]
    s = [shift + up for shift, up in zip(s, grown, strict=True)]
    fraction = max(least - min(s), 0)
    return tuple(M), tuple(shift + fraction for shift in s), fraction


def _check_shifts(s: tuple[int, ...], n: int | None) -> None:
    """Right shifts fit their field, beside each other, and the left ones of a residual."""
    limits = [
        ("a right shift", 0, MAX_SHIFT),
        ("shifts that differ by up to", min(s), MAX_SHIFT_SPREAD),
    ]
    if n is not None:
        limits.append(("a residual's left shift", n, MAX_RESIDUAL_SHIFT))
    what, first, field = min(limits, key=lambda limit: limit[1] + limit[2])
    excess = tuple(max(shift - first - field, 0) for shift in s)
    if any(excess):
        raise TooFineWeightsError(
            excess,
            f"needs {what} of {max(s) - first}, at most {field} fit. "
            "Its steps differ too much; calibrate again or exclude the layer.",
        )
