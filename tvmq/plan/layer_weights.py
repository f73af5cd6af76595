"""Bits and steps of all weights: what the settings say about each layer of a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatch

import torch

from targets.errors import InputError
from targets.rows import gain_step
from tvmq.float_model import FloatModel
from tvmq.plan.plan import ValuePlan, WeightPlan
from tvmq.plan.weight_steps import choose_weight_steps
from tvmq.plan.wess import Surroundings, choose_shifted_steps
from tvmq.regions import WEIGHTED, Layer, Regions, factor_of, norm_weights, window_of
from tvmq.settings import Settings


def choose_weights(
    model: FloatModel, regions: Regions, values: Mapping[str, ValuePlan], settings: Settings
) -> dict[str, WeightPlan]:
    """A plan for every layer with weights, average pooling included.

    Args:
        model: the float network.
        regions: its layers.
        values: steps of what the layers read and make.
        settings: what was asked for.

    Raises:
        InputError: a glob of ``settings.exclude`` that fits no layer.
    """
    products = [name for name, layer in regions.layers.items() if layer.kind in WEIGHTED]
    modules = {name: model.origins[name].module for name in products if name in model.origins}
    excluded = _excluded(dict.fromkeys(products, "") | modules, settings.exclude)
    plans = {}
    for layer in regions.layers.values():
        node = model.nodes[layer.name]
        if layer.kind == "pool":
            divisor = window_of(node).divisor
            plans[layer.name] = WeightPlan((1 / divisor,), 8, f"average over {divisor}")
        elif layer.kind in ("multiply", "matmul", "softmax"):
            plans[layer.name] = WeightPlan((factor_of(node),), 8, "factor of all sums")
        elif layer.kind == "norm":
            step = gain_step(*(w.numpy() for w in norm_weights(model, node)))
            plans[layer.name] = WeightPlan((step,), 8, "factors of 16 bits")
        elif layer.name in products:
            bits, why = settings.weight_bits, ""
            if layer.name in regions.first | regions.last and settings.first_last_bits > bits:
                bits, why = settings.first_last_bits, ", first or last layer"
            if layer.name in excluded:
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
    node = model.nodes[layer.name]
    bias = model.bias_of(node)
    return Surroundings(
        values[layer.inputs[0]].step,
        values[layer.output].step if layer.output else None,
        values[layer.residual].step if layer.residual else None,
        torch.zeros(len(model.weight_of(node)), dtype=torch.float64)
        if bias is None
        else bias.double(),
    )


def _excluded(modules: Mapping[str, str], globs: Iterable[str]) -> set[str]:
    """Layers whose own name or whose module fits a glob.

    Args:
        modules: layer -> module, of all layers with weights.
        globs: such as ``layer1.*``.
    """
    excluded = set()
    for glob in globs:
        fitting = {n for n, module in modules.items() if fnmatch(n, glob) or fnmatch(module, glob)}
        if not fitting:
            raise InputError(
                f"--exclude {glob}: no layer with weights and no module of one has such a name. "
                "`tvmq inspect MODEL` lists both."
            )
        excluded |= fitting
    return excluded
