"""The plan of a network, with everything that methods change about the network first."""

from __future__ import annotations

from tvmq.calibrate.calibrate import Calibration, Progress
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import FloatModel
from tvmq.plan.equalized_plan import Planned, plan_equalized
from tvmq.plan.mixed_plan import plan_mixed
from tvmq.plan.planner import make_plan
from tvmq.plan.scaled_plan import plan_scaled
from tvmq.reconstruct.methods import combined
from tvmq.settings import Settings


def plan_network(
    model: FloatModel,
    calibration: Calibration,
    settings: Settings,
    preprocessing: Preprocessing | None = None,
    progress: Progress | None = None,
) -> Planned:
    """Plan a network, and the one that equalizing, scaling and mixing make of it.

    Args:
        model: as captured.
        calibration: of this network.
        settings: what was asked for.
        preprocessing: as for ``ranges_from_batch_norm``, where there are no images.
        progress: told about bias correction, once for each plan that is made.

    Raises:
        ArithmeticRangeError: as ``make_plan``.
        InputError: likewise.
    """
    if "equalize" in settings.method:
        found = plan_equalized(model, calibration, settings, preprocessing, progress)
    else:
        plan = make_plan(model, calibration, settings, progress)
        found = Planned(model, calibration, plan)
    if settings.pot and combined(settings.method).scales:
        found = plan_scaled(found, progress)
    if "waps" in settings.method:
        found = plan_mixed(found, progress)
    return found
