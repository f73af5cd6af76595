"""What borders cost: the same network with and without them, on the same machine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from targets.npu.machine.program import Program
from targets.npu.machine.spec import NpuSpec
from targets.rounding import HALF_UP
from tvmq.float_model import FloatModel
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.plan import Plan
from tvmq.profile.plan_price import Price, compared
from tvmq.regions import shape_of


@dataclass(frozen=True)
class BorderCost:
    """What the borders of a plan cost.

    Attributes:
        values: that have borders.
        table_bytes: of these, a byte each.
        comparisons: for one image, one per element of such a value.
        with_borders: of the programs; None without an NPU.
        without: of those of the same plan with all values rounded half up.
    """

    values: int
    table_bytes: int
    comparisons: int
    with_borders: Price | None
    without: Price | None

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def border_cost(
    model: FloatModel, plan: Plan, programs: Iterable[Program] | None, spec: NpuSpec | None
) -> BorderCost | None:
    """Compare a plan with itself without borders; None where it has none.

    Args:
        model: the float network of the plan.
        plan: complete.
        programs: of the plan by rule; None if they are to be compiled.
        spec: the machine, or None.
    """
    bordered = {name: value for name, value in plan.values.items() if value.rounding.borders}
    if not bordered:
        return None
    return BorderCost(
        len(bordered),
        sum(value.rounding.rows.size for value in bordered.values()),
        sum(math.prod(shape_of(model.nodes[name])[1:]) for name in bordered),
        *compared(model, plan, programs, spec, partial(_without, model, plan)),
    )


def _without(model: FloatModel, plan: Plan) -> tuple[FloatModel, Plan]:
    values = {
        name: replace(value, rounding=HALF_UP) if value.rounding.borders else value
        for name, value in plan.values.items()
    }
    return model, complete_plan(
        model, plan.settings, plan.calibration, values, plan.weights, plan.biases
    )
