"""Bits and steps of all weights: what the settings say about each layer of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch

import torch

from tvmq.float_model import FloatModel
from tvmq.plan import ValuePlan, WeightPlan
from tvmq.regions import Layer, Regions, window_of
from tvmq.rounded_bias import node_of
from tvmq.scheme import Settings
from tvmq.weight_steps import choose_weight_steps
from tvmq.wess import Surroundings, choose_shifted_steps


def choose_weights(
    model: FloatModel, regions: Regions, values: Mapping[str, ValuePlan], settings: Settings
) -> dict[str, WeightPlan]:
    """A plan for every layer with weights, average pooling included.

    Args:
        model: the float network.
        regions: its layers.
        values: steps of what the layers read and make.
        settings: what was asked for.
    """
    plans = {}
    for layer in regions.layers.values():
        node = node_of(model, layer.name)
        if layer.kind == "pool":
            divisor = window_of(node).divisor
            plans[layer.name] = WeightPlan((1 / divisor,), 8, f"average over {divisor}")
        elif layer.kind in ("conv", "linear"):
            bits, why = settings.weight_bits, ""
            if layer.name in regions.first | regions.last and settings.first_last_bits > bits:
                bits, why = settings.first_last_bits, ", first or last layer"
            module = model.origins[layer.name].module if layer.name in model.origins else ""
            if any(fnmatch(n, glob) for n in (layer.name, module) for glob in settings.exclude):
                bits, why = 8, ", excluded from fewer bits"
            weight = model.weight_of(node)
            if "wess" in settings.method:
                around = _surroundings(model, layer, values)
                plan = choose_shifted_steps(weight, bits, settings, around)
            else:
                plan = choose_weight_steps(weight, bits, settings)
            plans[layer.name] = replace(plan, reason=plan.reason + why)
    return plans


def _surroundings(model: FloatModel, layer: Layer, values: Mapping[str, ValuePlan]) -> Surroundings:
    node = node_of(model, layer.name)
    bias = model.bias_of(node)
    return Surroundings(
        values[layer.inputs[0]].step,
        values[layer.output].step if layer.output else None,
        values[layer.residual].step if layer.residual else None,
        torch.zeros(len(model.weight_of(node)), dtype=torch.float64)
        if bias is None
        else bias.double(),
    )
