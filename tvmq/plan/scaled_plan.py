"""The plan of a network whose tensors are scaled to steps that are powers of two."""

from __future__ import annotations

from dataclasses import replace

from tvmq.calibrate.calibrate import Progress, calibrate_again
from tvmq.float_model import TensorScaling
from tvmq.plan.equalized_plan import Planned
from tvmq.plan.mixed_plan import same_outputs
from tvmq.plan.planner import make_plan
from tvmq.plan.scale_tensors import scale_tensors


def plan_scaled(planned: Planned, progress: Progress | None = None) -> Planned:
    """Scale the tensors of a planned network and plan it anew.

    They are left as they were where the two networks do not give the same outputs for images, up
    to the rounding of float32, or where there are no images.

    Args:
        planned: a network, its calibration, and its plan with steps that are powers of two.
        progress: told about bias correction.
    """
    model, calibration, settings = planned.model, planned.calibration, planned.plan.settings
    if not calibration.samples:
        reason = "left out, since no images are there to see the network by"
        return planned.noted(scaling=TensorScaling({}, reason))
    free = replace(settings.with_free_steps(settings.granularity), bias_correction=False)
    scaled = scale_tensors(model, make_plan(model, calibration, free).values)
    assert scaled.scaling is not None
    if scaled.scaling.factors and not same_outputs(model, scaled, calibration):
        reason = "left out, since the network would compute something else"
        return planned.noted(scaling=TensorScaling({}, reason))
    if not scaled.scaling.factors:
        return planned.noted(scaling=scaled.scaling)
    again = calibrate_again(scaled, calibration)
    return Planned(scaled, again, make_plan(scaled, again, settings, progress))
