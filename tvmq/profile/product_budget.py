"""Groups of products that a machine can afford, by what factors would take of its cycles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from targets.npu.machine.spec import NpuSpec
from targets.product_factors import FACTORS
from tvmq.float_model import FloatModel, groups_of
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.plan import Plan, ProductPlan
from tvmq.plan.product_groups import product_groups
from tvmq.profile.plan_price import plan_price


def within_cycles(model: FloatModel, plan: Plan, spec: NpuSpec) -> Plan:
    """The plan with groups so large that factors take at most the budget's share of all cycles.

    The count of operations decides first (``product_groups``); where that is too much for the
    machine, groups become multiples of twice as many channels, and so on. Factors that differ from
    group to group stand for those that will be found.

    Args:
        model: the network of the plan.
        plan: complete, without factors.
        spec: the machine.
    """
    settings, before = plan.settings, 0
    while not settings.product_channels:
        groups = product_groups(model, plan.weights, settings)
        inputs = {name: model.weight_of(model.nodes[name]).shape[1] for name in groups}
        if all(channels == inputs[name] for name, channels in groups.items()):
            break
        before = before or plan_price(model, plan, spec).cycles
        cycles = plan_price(model, with_factors(model, plan, groups), spec).cycles
        if cycles <= before * (1 + settings.product_budget / 100):
            break
        settings = replace(settings, product_unit=2 * settings.product_unit)
    return replace(plan, settings=settings)


def with_factors(model: FloatModel, plan: Plan, groups: Mapping[str, int]) -> Plan:
    """The plan with random factors in groups of so many channels, by layer."""
    rng, weights = np.random.default_rng(0), dict(plan.weights)
    for name, channels in groups.items():
        node = model.nodes[name]
        outputs, shape = ProductPlan.sizes(
            model.weight_of(node).shape, channels, plan.settings.product_outputs, groups_of(node)
        )
        factors = tuple(tuple(row) for row in rng.choice(FACTORS, shape).tolist())
        products = ProductPlan(channels, outputs, factors, "at random")
        weights[name] = replace(weights[name], products=products)
    return complete_plan(model, plan.settings, plan.calibration, plan.values, weights, plan.biases)
