"""From a calibration to a complete plan: choose all steps, then derive the rest."""

from __future__ import annotations

from targets.code_range import code_range
from tvmq.calibrate.calibrate import Calibration, Progress
from tvmq.float_model import FloatModel
from tvmq.plan.bias_correction import correct_biases
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.joined_values import choose_joined
from tvmq.plan.layer_weights import choose_weights
from tvmq.plan.plan import Plan, ValuePlan
from tvmq.plan.value_bits import value_bits
from tvmq.regions import Regions, find_regions
from tvmq.settings import Settings


def make_plan(
    model: FloatModel,
    calibration: Calibration,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Quantize a network on paper.

    Args:
        model: the float network.
        calibration: how its values are distributed.
        settings: precision, scales, granularity and the rest; None: w8a8, powers of two.
        progress: told about bias correction, layer by layer.

    Raises:
        ArithmeticRangeError: an accumulator or shift can't be made to fit.
        InputError: a glob of ``settings.exclude`` that fits no layer.
    """
    settings = settings or Settings()
    regions = find_regions(model)
    values = _choose_values(model, regions, calibration, settings)
    weights = choose_weights(model, regions, values, settings)
    plan = complete_plan(model, settings, calibration.source, values, weights, {})
    if settings.bias_correction and calibration.samples and not settings.learned_method:
        biases = correct_biases(model, plan, calibration, progress)
        plan = complete_plan(model, settings, calibration.source, values, weights, biases)
    return plan


def _choose_values(
    model: FloatModel, regions: Regions, calibration: Calibration, settings: Settings
) -> dict[str, ValuePlan]:
    wanted = value_bits(model, regions, settings)
    codes = choose_joined(regions, calibration.histograms, wanted, settings)
    plans = {}
    for name, (bits, chosen) in codes.items():
        low, high = code_range(bits, chosen.signed)
        plans[name] = ValuePlan(
            chosen.step, chosen.zero_point, low, high, chosen.signed, bits, chosen.reason
        )
    return plans
