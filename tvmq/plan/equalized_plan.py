"""Whether a network is equalized: its plan with and without, compared on held-out images.

What the images of one half show decides how channels are scaled, and what the other half shows
whether they are. Without images, or with one, there is nothing to decide by; then the rule stands
for itself, by which no step becomes coarser.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule

from tvmq.calibrate.batch_norm_ranges import ranges_from_batch_norm
from tvmq.calibrate.calibrate import Calibration, Inputs, Progress, calibrate, calibrate_again
from tvmq.data.preprocessing import Preprocessing
from tvmq.execute_graph import GraphRun
from tvmq.float_model import Equalization, FloatModel, Mixing, TensorScaling
from tvmq.plan.annotate import annotate
from tvmq.plan.bias_correction import halves_of
from tvmq.plan.equalize import equalize
from tvmq.plan.plan import Plan
from tvmq.plan.planner import make_plan
from tvmq.settings import Settings


@dataclass(frozen=True)
class Planned:
    """A network, how it is distributed, and its plan; all three of one network.

    Attributes:
        model: equalized, or as it was; ``equalization`` says which.
        calibration: of ``model``.
        plan: of ``model``.
    """

    model: FloatModel
    calibration: Calibration
    plan: Plan

    def noted(self, **change: Equalization | TensorScaling | Mixing) -> Planned:
        """The same; model and plan say what was changed of the network, or why nothing was."""
        changes: dict[str, Any] = dict(change)
        return replace(
            self, model=replace(self.model, **changes), plan=replace(self.plan, **changes)
        )


def plan_equalized(
    model: FloatModel,
    calibration: Calibration,
    settings: Settings,
    preprocessing: Preprocessing | None = None,
    progress: Progress | None = None,
) -> Planned:
    """Plan a network with its channels equalized, if that helps.

    Args:
        model: as captured.
        calibration: of this network.
        settings: what was asked for.
        preprocessing: as for ``ranges_from_batch_norm``, where there are no images.
        progress: told about bias correction, once for each of the two plans.

    Raises:
        ArithmeticRangeError: as ``make_plan``.
        InputError: likewise.
    """
    teaching, held_out = halves_of(model, calibration) if calibration.samples else ([], [])
    taught = calibrate(model, teaching) if teaching else calibration
    per_channel = settings.granularity == "channel" or "wess" in settings.method
    changed = equalize(model, taught.channels, per_channel=per_channel)
    rule = changed.equalization
    assert rule is not None
    if not rule.exponents:
        return _left(model, calibration, settings, rule.reason, progress)
    if calibration.samples:
        ranges = calibrate_again(changed, calibration)
    else:
        ranges = ranges_from_batch_norm(changed, preprocessing)
    equalized = Planned(changed, ranges, make_plan(changed, ranges, settings, progress))
    if not teaching:
        why = "one image is" if calibration.samples else "no images are"
        return _said(equalized, f"not compared, since {why} there: {rule.reason}")
    left = _left(model, calibration, settings, "", progress)
    before, after = (_error(model.graph_module, planned, held_out) for planned in (left, equalized))
    count = sum(len(part[0]) for part in held_out)
    numbers = f"squared error {before:.4g} -> {after:.4g} on {count} held-out images"
    if after < before:
        return _said(equalized, f"kept: {numbers}; {rule.reason}")
    return _said(left, f"left out: {numbers}; {rule.reason}")


def _left(
    model: FloatModel,
    calibration: Calibration,
    settings: Settings,
    reason: str,
    progress: Progress | None,
) -> Planned:
    """The network as it was."""
    model = replace(model, equalization=Equalization({}, reason))
    return Planned(model, calibration, make_plan(model, calibration, settings, progress))


def _said(planned: Planned, reason: str) -> Planned:
    """The same with what was decided, and why."""
    before = planned.model.equalization
    assert before is not None
    return planned.noted(equalization=replace(before, reason=reason))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _error(exact: GraphModule, planned: Planned, parts: list[Inputs]) -> float:
    """Squared error of the outputs, each relative to its squares, summed over the outputs."""
    quantized = annotate(planned.model, planned.plan, torch.float32)
    sums: dict[int, torch.Tensor] = {}
    for part in parts:
        outputs = (GraphRun(graph).run(*part) for graph in (exact, quantized))
        for i, (one, other) in enumerate(zip(*outputs, strict=True)):
            numbers = torch.stack(
                [(one - other).double().square().sum(), one.double().square().sum()]
            )
            sums[i] = sums.get(i, torch.zeros(2, dtype=torch.float64)) + numbers
    return sum(float(noise / whole.clamp(min=1e-30)) for noise, whole in sums.values())
