"""What factors of products cost: the same network with and without them, on the same machine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from targets.npu.machine.program import Program
from targets.npu.machine.spec import NpuSpec
from tvmq.float_model import FloatModel
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.plan import Plan
from tvmq.profile.plan_price import Price, compared
from tvmq.regions import find_regions, shape_of


@dataclass(frozen=True)
class ProductCost:
    """What the factors of a plan cost, for one image.

    Attributes:
        layers: that have factors.
        operations: shifts with an addition, one per output and group of input channels.
        macs: multiply-adds of all convolutions and dense layers.
        with_factors: of the programs; None without an NPU.
        without: of those of the same plan with factors of 1.
    """

    layers: int
    operations: int
    macs: int
    with_factors: Price | None
    without: Price | None

    @property
    def share(self) -> float:
        """Operations that factors add, relative to all multiply-adds."""
        return self.operations / self.macs

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "share": self.share}


def product_cost(
    model: FloatModel, plan: Plan, programs: Iterable[Program] | None, spec: NpuSpec | None
) -> ProductCost | None:
    """Compare a plan with itself without factors; None where it has none.

    Args:
        model: the float network of the plan.
        plan: complete.
        programs: of the plan by rule; None if they are to be compiled.
        spec: the machine, or None.
    """
    scaled = {name: w.products for name, w in plan.weights.items() if w.products is not None}
    if not scaled:
        return None
    operations = macs = 0
    for layer in find_regions(model).weighted:
        node = model.nodes[layer.name]
        outputs = math.prod(shape_of(node)[1:])
        inputs = model.weight_of(node).shape[1:]
        macs += outputs * math.prod(inputs)
        if layer.name in scaled:
            operations += outputs * len(scaled[layer.name].factors[0])
    prices = compared(model, plan, programs, spec, partial(_without, model, plan))
    return ProductCost(len(scaled), operations, macs, *prices)


def _without(model: FloatModel, plan: Plan) -> tuple[FloatModel, Plan]:
    weights = {name: replace(w, products=None) for name, w in plan.weights.items()}
    return model, complete_plan(
        model, plan.settings, plan.calibration, plan.values, weights, plan.biases
    )
