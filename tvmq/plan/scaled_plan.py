"""The plan of a network whose tensors are scaled to steps that are powers of two.

What the images of one half show decides how large tensors become, and what the other half shows
whether they do: by what rounding leaves of them. (What it leaves of the outputs says nothing at few
bits: free steps are no better there than powers of two, before weights are learned.) Tensors inside
of what is learned as a unit are left to it (``tvmq/reconstruct/inner_scales.py``).
"""

from __future__ import annotations

from dataclasses import replace

from tvmq.calibrate.calibrate import Calibration, Inputs, Progress, calibrate, calibrate_again
from tvmq.calibrate.observers import relative_error
from tvmq.float_model import FloatModel, TensorScaling
from tvmq.plan.bias_correction import halves_of
from tvmq.plan.equalized_plan import Planned
from tvmq.plan.mixed_plan import same_outputs
from tvmq.plan.planner import make_plan
from tvmq.plan.scale_tensors import Family, find_families, scale_tensors
from tvmq.reconstruct.inner_scales import inner_families
from tvmq.reconstruct.methods import combined
from tvmq.reconstruct.units import find_units
from tvmq.regions import find_regions
from tvmq.settings import Settings


def plan_scaled(planned: Planned, progress: Progress | None = None) -> Planned:
    """Scale the tensors of a planned network, if that helps, and plan it anew.

    They are left as they are, by units too, where the two networks do not give the same outputs for
    images, up to the rounding of float32, or where there are no images.

    Args:
        planned: a network, its calibration, and its plan with steps that are powers of two.
        progress: told about bias correction.
    """
    model, calibration, settings = planned.model, planned.calibration, planned.plan.settings
    if not calibration.samples:
        return _left(planned, "since no images are there to see the network by")
    free = replace(settings.with_free_steps(settings.granularity), bias_correction=False)
    every = scale_tensors(model, make_plan(model, calibration, free).values)
    if not same_outputs(model, every, calibration):
        return _left(planned, "since the network would compute something else")
    inner = _inner(model, settings)
    teaching, held_out = halves_of(model, calibration)
    taught = calibrate(model, teaching) if teaching else calibration
    tried = scale_tensors(model, make_plan(model, taught, free).values, inner)
    assert tried.scaling is not None
    if not tried.scaling.factors:
        return planned.noted(scaling=tried.scaling)
    numbers = "not compared, since one image is there"
    if teaching:
        names = _names(model, tried.scaling)
        sides = ((model, taught), (tried, calibrate(tried, teaching)))
        before, after = (_error(*side, settings, held_out, names) for side in sides)
        count = sum(len(part[0]) for part in held_out)
        numbers = f"squared error {before:.4g} -> {after:.4g} on {count} held-out images"
        if not after < before:
            return planned.noted(scaling=TensorScaling({}, f"left out: {numbers}"))
    scaled = scale_tensors(model, make_plan(model, calibration, free).values, inner)
    again = calibrate_again(scaled, calibration)
    assert scaled.scaling is not None
    done = Planned(scaled, again, make_plan(scaled, again, settings, progress))
    reason = f"kept: {numbers}; {scaled.scaling.reason}"
    return done.noted(scaling=replace(scaled.scaling, reason=reason))


def _left(planned: Planned, why: str) -> Planned:
    """The network as it was, for good."""
    return planned.noted(scaling=TensorScaling({}, f"left out, {why}", left_out=True))


def _error(
    model: FloatModel,
    calibration: Calibration,
    settings: Settings,
    images: list[Inputs],
    names: set[str],
) -> float:
    """Squared error of values in codes, each relative to its squares, summed over the values."""
    values = make_plan(model, calibration, replace(settings, bias_correction=False)).values
    seen = calibrate(model, images).histograms
    return sum(
        relative_error(seen[n], v.step, v.zero_point, v.bits, v.signed)
        for n, v in values.items()
        if n in names
    )


def _names(model: FloatModel, scaling: TensorScaling) -> set[str]:
    """The nodes whose tensors are scaled."""
    families = find_families(model.graph_module)
    scaled = (f.tensors for f in families if f.makers and f.makers[0] in scaling.factors)
    return set().union(*scaled)


def _inner(model: FloatModel, settings: Settings) -> list[Family]:
    """What units scale while they are learned."""
    units = find_units(model, whole_blocks=combined(settings.method).units != "layers")
    families = find_families(model.graph_module)
    return [family for _, family, _ in inner_families(families, units, find_regions(model))]
