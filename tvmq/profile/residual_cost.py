"""What residuals of more bits cost: the same network with and without, on the same machine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from targets.code_range import code_range
from targets.npu.machine.program import Program
from targets.npu.machine.spec import NpuSpec
from tvmq.float_model import FloatModel
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.joined_values import tied_values
from tvmq.plan.plan import Plan, ValuePlan
from tvmq.plan.round_reads import whole_reads
from tvmq.plan.value_bits import raised, value_bits
from tvmq.profile.plan_price import Price, compared
from tvmq.regions import find_regions, is_rounding


@dataclass(frozen=True)
class ResidualCost:
    """What the residuals of a plan cost, for one image.

    Attributes:
        bits: that they have, where activations have fewer.
        values: with these bits for it.
        roundings: of such values, in front of what reads them with fewer bits.
        with_residuals: of the programs; None without an NPU.
        without: of those of the same plan with residuals of as many bits as all activations.
    """

    bits: int
    values: int
    roundings: int
    with_residuals: Price | None
    without: Price | None

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def residual_cost(
    model: FloatModel, plan: Plan, programs: Iterable[Program] | None, spec: NpuSpec | None
) -> ResidualCost | None:
    """Compare a plan with itself without ``residual_bits``; None where it has none.

    Args:
        model: the float network of the plan.
        plan: complete.
        programs: of the plan by rule; None if they are to be compiled.
        spec: the machine, or None.
    """
    settings = plan.settings
    if not settings.residual_bits:
        return None
    rich = raised(model, find_regions(model), settings)
    roundings = sum(is_rounding(node) for node in model.graph_module.graph.nodes)
    prices = compared(model, plan, programs, spec, partial(_without, model, plan, rich))
    return ResidualCost(settings.residual_bits, len(rich), roundings, *prices)


def _without(model: FloatModel, plan: Plan, rich: frozenset[str]) -> tuple[FloatModel, Plan]:
    """The network that reads all bits, and its plan, in which there are fewer."""
    model = whole_reads(model)
    settings, regions = replace(plan.settings, residual_bits=0), find_regions(model)
    bits = value_bits(model, regions, settings)
    values = {name: plan.values[name] for name in regions.values}
    for names in tied_values(regions, values):
        if rich.intersection(names):
            most = max(bits[name] for name in names)
            values |= {name: _coarser(values[name], most) for name in names}
    layers = {name: w for name, w in plan.weights.items() if name in regions.layers}
    return model, complete_plan(model, settings, plan.calibration, values, layers, plan.biases)


def _coarser(value: ValuePlan, bits: int) -> ValuePlan:
    """The same range in fewer bits."""
    less = max(0, value.bits - bits)
    low, high = code_range(value.bits - less, value.signed)
    step, zero_point = math.ldexp(value.step, less), value.zero_point >> less
    return replace(
        value, step=step, zero_point=zero_point, low=low, high=high, bits=value.bits - less
    )
