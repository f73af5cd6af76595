"""Steps of weights: symmetric, one per layer or per output channel."""

from __future__ import annotations

import math

import torch

from targets.arithmetic import MAX_SHIFT_SPREAD
from targets.rounding import HALF
from tvmq.calibrate.observers import EXPONENTS, FRACTIONS
from tvmq.plan.plan import WeightPlan
from tvmq.settings import Settings, learned_range, weight_limit

EMPTY_STEP = 2.0**-7
"""For a layer whose weights are all zero: any step does, this one keeps the bias precise."""


def choose_weight_steps(weight: torch.Tensor, bits: int, settings: Settings) -> WeightPlan:
    """The steps with the smallest error, or those that the range method fixes.

    A channel whose weights are below 2**-15 of the layer's largest is dead: it gets the coarsest
    step, at which its weights round to zero, since a fine step would make its bias overflow.

    Args:
        weight: float32[K, ...].
        bits: of a code.
        settings: granularity, scales and method.
    """
    limit = weight_limit(bits)
    rows = weight.detach().double().reshape(len(weight), -1)
    if settings.granularity == "tensor":
        rows = rows.reshape(1, -1)
    extremes = rows.abs().amax(dim=1)
    if float(extremes.max()) == 0.0:
        return WeightPlan((EMPTY_STEP,) * len(rows), bits, "all weights are 0")
    alive = extremes > extremes.max() * 2.0**-MAX_SHIFT_SPREAD
    peaks = peaks_of(rows, settings)
    full = torch.where(alive, peaks, peaks.max()) / limit
    low = learned_range(bits)[0] if settings.learned_method else -limit
    steps = _search(rows, full, (low, limit), settings)
    steps = torch.where(alive, steps, steps.max())  # all steps fit a dead channel equally well
    # Shifts are a 4-bit field around the layer's; free steps may straddle one more exponent.
    spread = MAX_SHIFT_SPREAD if settings.pot else MAX_SHIFT_SPREAD - 1
    steps = torch.maximum(steps, steps.max() * 2.0**-spread)
    dead = int((~alive).sum())
    clipped = float((rows.abs() > (limit + 0.5) * steps[:, None]).double().mean())
    reason = f"{settings.calib_method}, {100 * clipped:.2g} % of the weights clipped"
    if dead:
        reason += f", {dead} of {len(rows)} channels are dead and get the coarsest step"
    return WeightPlan(tuple(float(step) for step in steps), bits, reason)


def peaks_of(rows: torch.Tensor, settings: Settings) -> torch.Tensor:
    """float64[rows]: the largest magnitude of each row, or the percentile that was asked for."""
    peaks = rows.abs().amax(dim=1)
    if settings.calib_method != "percentile":
        return peaks
    rank = max(1, math.ceil(rows.shape[1] * settings.percentile / 100))
    ranked = rows.abs().kthvalue(rank, dim=1).values
    return torch.where(ranked > 0, ranked, peaks)


def weight_codes(weight: torch.Tensor, plan: WeightPlan) -> torch.Tensor:
    """int64[K, ...]: learned codes, or those that ``fake_quantize`` rounds a weight to."""
    if plan.codes:
        learned = torch.frombuffer(bytearray(plan.codes), dtype=torch.int8)
        return learned.reshape(weight.shape).long()
    limit = weight_limit(plan.bits)
    steps = torch.tensor(plan.steps, dtype=torch.float64).reshape(-1, *[1] * (weight.dim() - 1))
    scaled = weight.detach().double() / steps
    return scaled.add_(HALF).floor_().clamp_(-limit, limit).long()


def _search(
    rows: torch.Tensor, full: torch.Tensor, codes: tuple[int, int], settings: Settings
) -> torch.Tensor:
    """float64[rows]: for each row the best of the candidate steps."""
    search = settings.calib_method in ("mse", "lp")
    if settings.pot:
        ceiling = torch.exp2(torch.ceil(torch.log2(full) - 1e-9))
        candidates = [ceiling * 2.0**e for e in (EXPONENTS if search else (0,))]
    else:
        candidates = [full * f for f in (FRACTIONS if search else (1.0,))]
    power = 2.4 if settings.calib_method == "lp" else 2.0
    best, least = candidates[0], torch.full_like(full, torch.inf)
    for candidate in candidates:
        steps = candidate[:, None]
        rounded = (rows / steps).add_(0.5).floor_().clamp_(*codes).mul_(steps)
        errors = rounded.sub_(rows).abs_().pow_(power).sum(dim=1)
        better = errors < least
        best = torch.where(better, candidate, best)
        least = torch.where(better, errors, least)
    return best
