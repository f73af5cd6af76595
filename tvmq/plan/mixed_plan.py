"""The plan of a network whose channels are sorted by the factors of products that they want."""

from __future__ import annotations

import torch

from tvmq.calibrate.calibrate import Calibration, Progress
from tvmq.execute_graph import GraphRun
from tvmq.float_model import FloatModel, Mixing
from tvmq.plan.equalized_plan import Planned
from tvmq.plan.mix_channels import mix_channels, mixed_calibration
from tvmq.plan.planner import make_plan

TOLERANCE = 1e-3
"""Of the largest output; sums in another order differ by less than a hundredth of it."""


def plan_mixed(planned: Planned, progress: Progress | None = None) -> Planned:
    """Mix the channels of a planned network and plan it anew.

    The order is left as it was where the two networks do not give the same outputs for images, up
    to the order of their sums.

    Args:
        planned: a network, its calibration with images, and its plan.
        progress: told about bias correction.
    """
    model, settings = planned.model, planned.plan.settings
    mixed = mix_channels(model, planned.plan.weights)
    assert mixed.mixing is not None
    if mixed.mixing.orders and not same_outputs(model, mixed, planned.calibration):
        reason = "left out, since the network would compute something else"
        return planned.noted(mixing=Mixing({}, reason))
    if not mixed.mixing.orders:
        return planned.noted(mixing=mixed.mixing)
    calibration = mixed_calibration(model, planned.calibration, mixed.mixing)
    return Planned(mixed, calibration, make_plan(mixed, calibration, settings, progress))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def same_outputs(model: FloatModel, other: FloatModel, calibration: Calibration) -> bool:
    """Whether two networks give the same for two images, up to the order of their sums."""
    images = next(calibration.batches())
    some = tuple(tensor[:2] for tensor in images)
    both = (GraphRun(m.graph_module).run(*some) for m in (model, other))
    return all(
        bool(((a - b).abs().max() <= TOLERANCE * a.abs().max().clamp_min(1e-30)).item())
        for a, b in zip(*both, strict=True)
    )
