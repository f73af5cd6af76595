"""From a calibration to a complete plan: choose all steps, then derive the rest."""

from __future__ import annotations

from functools import reduce

from targets.code_range import code_range
from tvmq.calibrate.calibrate import Calibration, Progress
from tvmq.calibrate.observers import Histogram, choose_codes
from tvmq.float_model import FloatModel
from tvmq.plan.bias_correction import correct_biases
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.layer_weights import choose_weights
from tvmq.plan.plan import Plan, ValuePlan
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
    precise = _precise_values(model, regions)
    matrices = (layer for layer in regions.layers.values() if layer.kind == "matmul")
    centred = {name for layer in matrices for name in layer.inputs}
    plans = {}
    for names in regions.tied:
        bits = settings.activation_bits
        if precise.intersection(names):
            bits = max(bits, settings.first_last_bits)
        histogram = reduce(Histogram.merge, (calibration.histograms[name] for name in names))
        free = choose_codes(histogram, bits, settings)
        codes = free
        shared = f", one step for {', '.join(names)}" if len(names) > 1 else ""
        if free.zero_point and centred.intersection(names):
            codes = choose_codes(histogram, bits, settings, symmetric=True)
            shared += "; zero point 0, since matrices are multiplied as raw codes"
        low, high = code_range(bits, codes.signed)
        for name in names:
            plans[name] = ValuePlan(
                codes.step, codes.zero_point, low, high, codes.signed, bits, codes.reason + shared
            )
    return {name: plans[name] for name in regions.values}


def _precise_values(model: FloatModel, regions: Regions) -> set[str]:
    """Inputs of the network, of its last layers, and outputs that are held in codes."""
    (output,) = model.graph_module.graph.find_nodes(op="output")
    precise = {name for name, value in regions.values.items() if not value.layer}
    precise |= {name for layer in regions.last for name in regions.layers[layer].inputs}
    precise |= {
        regions.carried[n.name] for n in output.all_input_nodes if n.name in regions.carried
    }
    return precise
