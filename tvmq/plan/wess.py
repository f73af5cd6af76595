"""WESS: one weight step per layer, and a 4-bit shift per output channel that equalizes ranges.

    r[c] = max |w[c]|      R = range of the layer      e[c] = clamp(floor(log2(R / r[c])), 0, 15)
    step[c] = s * 2**-e[c]                             s = R / (2**(bits-1) - 1)

Each channel then uses more than half of the codes (arXiv 2008.05767), so at most one bit is lost
against a step per channel. All ratios of steps of a layer differ by powers of two, so its channels
share one multiplier (none, with power-of-two steps) and differ in their right shifts alone. No
image is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch

from targets.arithmetic import MAX_SHIFT_SPREAD
from targets.errors import ArithmeticRangeError
from targets.rounding import HALF
from targets.scale import TooFineError, derive_scale, nearest_multiplier, power_of_two
from tvmq.plan.plan import WeightPlan
from tvmq.plan.weight_steps import EMPTY_STEP, peaks_of
from tvmq.settings import Settings, weight_limit

RANGES = tuple(n / 100 for n in range(100, 50, -1))
"""Parts of the full range that are tried as R; half of it gives the same steps, shifted by one."""

BIAS_BITS = 30
"""A bias keeps below 2**30 units, which leaves as much of int32 for the products."""


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What limits the shifts of a layer.

    Attributes:
        source: step of the value that is read.
        output: step of the value that is made; None where the sums leave the network.
        residual: step of the value added to the sums, or None.
        bias: float64[K].
    """

    source: float
    output: float | None
    residual: float | None
    bias: torch.Tensor


def choose_shifted_steps(
    weight: torch.Tensor, bits: int, settings: Settings, around: Surroundings
) -> WeightPlan:
    """The step of a layer times a power of two per channel.

    With ``calib_method`` "minmax" and "percentile" this is the rule above. "mse" and "lp" choose R
    and, for each channel, e or e + 1, by the error relative to the channel's size: a later layer
    may amplify a small channel, so all count alike.

    Args:
        weight: float32[K, ...].
        bits: of a code.
        settings: scales and method.
        around: what a shift must leave room for.
    """
    rows = weight.detach().double().reshape(len(weight), -1)
    peaks = peaks_of(rows, settings)
    largest = float(peaks.max())
    if largest == 0.0:
        return WeightPlan((EMPTY_STEP,) * len(rows), bits, "wess: all weights are 0")
    full = largest / weight_limit(bits)
    search = settings.calib_method in ("mse", "lp")
    if settings.pot:
        candidates = [2.0 ** _floor_log2(torch.tensor(full)).item()]
        candidates = [step if step >= full else 2 * step for step in candidates]
    else:
        candidates = [full * part for part in (RANGES if search else (1.0,))]
    best = min((_Shifted.choose(rows, peaks, s, bits, settings, around) for s in candidates),
               key=lambda shifted: shifted.error)  # fmt: skip
    return WeightPlan(tuple(best.steps.tolist()), bits, f"wess, {best.describe(settings)}")


@dataclass(frozen=True, eq=False)
class _Shifted:
    """The channels' shifts for one step of the layer.

    Attributes:
        step: of the layer.
        shifts: int64[K].
        error: mean over the channels, each relative to its own weights.
        dead: channels that round to zero.
        held: channels with a smaller shift than the rule gives, for lack of room.
        why: what lacks room.
    """

    step: float
    shifts: torch.Tensor
    error: float
    dead: int
    held: int

    @classmethod
    def choose(
        cls,
        rows: torch.Tensor,
        peaks: torch.Tensor,
        step: float,
        bits: int,
        settings: Settings,
        around: Surroundings,
    ) -> _Shifted:
        span = weight_limit(bits) * step
        # A finer step would not revive a dead channel, but would make its bias overflow.
        alive = peaks >= span * 2.0**-MAX_SHIFT_SPREAD
        wanted = _floor_log2(span / peaks.clamp(min=1e-300)).clamp(0, MAX_SHIFT_SPREAD)
        wanted = torch.where(alive, wanted, 0)
        room = _room(step, around)
        shifts = torch.minimum(wanted, room)
        power = 2.4 if settings.calib_method == "lp" else 2.0
        errors = _errors(rows, step * torch.exp2(-shifts.double()), bits, power)
        if settings.calib_method in ("mse", "lp"):
            finer = torch.minimum(shifts + alive, room)
            other = _errors(rows, step * torch.exp2(-finer.double()), bits, power)
            shifts = torch.where(other < errors, finer, shifts)
            errors = torch.minimum(other, errors)
        dead = int((~alive & (peaks > 0)).sum())
        return cls(step, shifts, float(errors.mean()), dead, int((wanted > room).sum()))

    @property
    def steps(self) -> torch.Tensor:
        """float64[K]."""
        return self.step * torch.exp2(-self.shifts.double())

    def describe(self, settings: Settings) -> str:
        spread = int(self.shifts.max() - self.shifts.min())
        text = f"{settings.calib_method}: one step, shifted by up to {spread} bits"
        if self.dead:
            text += f", {self.dead} of {len(self.shifts)} channels are dead and round to 0"
        if self.held:
            text += (
                f", {self.held} of {len(self.shifts)} channels held back, since their bias or "
                "right shift would not fit"
            )
        return text


def _room(step: float, around: Surroundings) -> torch.Tensor:
    """Largest shift of each channel, int64[K]: its bias must fit int32, its shift the field."""
    unit = 2.0**BIAS_BITS * around.source * step
    by_bias = _floor_log2(unit / around.bias.abs().clamp(min=1e-300))
    by_field = MAX_SHIFT_SPREAD
    while by_field and not _fits(step, by_field, around):
        by_field -= 1
    return by_bias.clamp(0, by_field)


def _fits(step: float, shift: int, around: Surroundings) -> bool:
    """Whether the requantization of a channel with this shift fits its fields."""
    if around.output is None:
        return True
    steps = (step, step * 2.0**-shift)
    output = Fraction(around.output)
    ratios = [Fraction(around.source) * Fraction(step) / output for step in steps]
    residual = None if around.residual is None else _snapped(Fraction(around.residual) / output)
    try:
        derive_scale([_snapped(ratio) for ratio in ratios], residual)
    except TooFineError:
        return True  # about other steps than the weights', which the planner makes coarser
    except ArithmeticRangeError:
        return False
    return True


def _snapped(ratio: Fraction) -> Fraction:
    """What snapping the steps will make of a ratio."""
    multiplier, shift = nearest_multiplier(ratio)
    return multiplier * power_of_two(-shift)


def _errors(rows: torch.Tensor, steps: torch.Tensor, bits: int, power: float) -> torch.Tensor:
    """float64[K]: sum of |error|**power of each channel, relative to that of the channel."""
    limit, steps = weight_limit(bits), steps[:, None]
    rounded = steps * torch.floor(rows / steps + HALF).clamp(-limit, limit)
    sizes = rows.abs().pow(power).sum(dim=1)
    return (rows - rounded).abs().pow(power).sum(dim=1) / sizes.clamp(min=1e-300)


def _floor_log2(x: torch.Tensor) -> torch.Tensor:
    """int64, exactly: the exponent of a float64 is its floor of log2."""
    return torch.frexp(x.double()).exponent.long() - 1
