"""From steps to the integers of requantization, and steps adjusted so that these are exact.

A ratio of steps becomes ``M / 2**s`` with a 16-bit M. With power-of-two steps M is 1; free steps
are moved by less than 2**-16 of themselves until the ratio *is* such a number, so that the network
in real steps and the one in integers are the same function, ties included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from targets.errors import ArithmeticRangeError
from tvmq.plan.plan import AddPlan, RequantizePlan

MULTIPLIER_BITS = 16
MAX_SHIFT = 47
MAX_FRACTION = 15
MAX_RESIDUAL_SHIFT = 31
MAX_SHIFT_SPREAD = 15


class TooFineError(ArithmeticRangeError):
    """A step is so fine that the sums would have to be shifted left too far.

    Attributes:
        which: "output" or "residual", the value whose step must be coarser.
    """

    def __init__(self, which: Literal["output", "residual"], message: str) -> None:
        super().__init__(message)
        self.which = which


def as_multiplier(ratio: Fraction) -> tuple[int, int]:
    """The nearest ``M / 2**s``: M = 1 if the ratio is a power of two, else 2**15 <= M < 2**16."""
    exponent = math.frexp(ratio)[1] - 1
    if ratio == _power(exponent):
        return 1, -exponent
    shift = MULTIPLIER_BITS - 1 - exponent
    multiplier = math.floor(ratio * _power(shift) + Fraction(1, 2))
    if multiplier == 2**MULTIPLIER_BITS:
        return 2 ** (MULTIPLIER_BITS - 1), shift - 1
    return multiplier, shift


def snap_weight_step(weight: float, source: float, output: float) -> float:
    """The weight step next to ``weight`` with ``source * step / output`` = M / 2**s."""
    ratio = Fraction(source) * Fraction(weight) / Fraction(output)
    multiplier, shift = as_multiplier(ratio)
    return float(Fraction(output) * multiplier / Fraction(source) * _power(-shift))


def snap_output_step(output: float, operand: float) -> float:
    """The step next to ``output`` with ``operand / step`` = N / 2**q."""
    multiplier, shift = as_multiplier(Fraction(operand) / Fraction(output))
    return float(Fraction(operand) / multiplier * _power(shift))


def snap_operand_step(operand: float, output: float) -> float:
    """The step next to ``operand`` with ``step / output`` = N / 2**q."""
    return snap_weight_step(operand, 1.0, output)


def requantize(
    source: float, weights: Sequence[float], output: float, residual: float | None = None
) -> RequantizePlan:
    """The integers of a layer; see ``targets/arithmetic.py``.

    Args:
        source: step of what is read.
        weights: one step, or one per output channel.
        output: step of what is made.
        residual: step of the value added to the sums.

    Raises:
        TooFineError: a coarser output or residual would do.
        ArithmeticRangeError: a shift leaves its field.
    """
    pairs = [as_multiplier(Fraction(source) * Fraction(w) / Fraction(output)) for w in weights]
    shifts = [shift for _, shift in pairs]
    missing = max(0, -min(shifts))  # sums coarser than the output are shifted left first
    fraction, n, q = missing, 1, 0
    if residual is not None:
        n, q = as_multiplier(Fraction(residual) / Fraction(output))
        fraction = max(missing, q - min(shifts))
    if fraction > MAX_FRACTION:
        which: Literal["output", "residual"] = "output" if missing == fraction else "residual"
        raise TooFineError(which, f"fraction {fraction} is above {MAX_FRACTION}")
    shifts = [shift + fraction for shift in shifts]
    residual_shifts = tuple(shift - q for shift in shifts) if residual is not None else ()
    if max(shifts) > MAX_SHIFT or max(residual_shifts, default=0) > MAX_RESIDUAL_SHIFT:
        raise ArithmeticRangeError(
            f"right shift {max(shifts)} is above {MAX_SHIFT} or left shift "
            f"{max(residual_shifts, default=0)} above {MAX_RESIDUAL_SHIFT}"
        )
    if max(shifts) - min(shifts) > MAX_SHIFT_SPREAD:
        raise ArithmeticRangeError(
            f"shifts from {min(shifts)} to {max(shifts)} differ by more than {MAX_SHIFT_SPREAD}"
        )
    return RequantizePlan(fraction, tuple(m for m, _ in pairs), tuple(shifts), n, residual_shifts)


def addition(first: float, second: float, output: float) -> AddPlan:
    """The integers of an addition of two values.

    Raises:
        ArithmeticRangeError: a shift leaves its field.
    """
    (ma, sa), (mb, sb) = (as_multiplier(Fraction(x) / Fraction(output)) for x in (first, second))
    shift = max(sa, sb, 0)
    plan = AddPlan((ma, mb), (shift - sa, shift - sb), shift)
    if shift > MAX_SHIFT or max(plan.shifts) > MAX_RESIDUAL_SHIFT:
        raise ArithmeticRangeError(f"shifts {plan.shifts} and {shift} of an addition are too large")
    return plan


def _power(exponent: int) -> Fraction:
    return Fraction(2**exponent) if exponent >= 0 else Fraction(1, 2**-exponent)
