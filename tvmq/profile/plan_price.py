"""The price of a plan on a machine: what two plans of a network are compared by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from relay_passes.place import place
from relay_passes.read_layers import read_layers
from targets.npu.machine.program import Program
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.layer_costs import price
from tvmq.float_model import FloatModel
from tvmq.lowering import lower
from tvmq.plan.annotate import annotate
from tvmq.plan.plan import Plan


@dataclass(frozen=True)
class Price:
    """Of the NPU programs of a network, for one image.

    Attributes:
        cycles: on the modelled machine.
        dram_bytes: moved, instructions included.
        picojoules: relative energy.
    """

    cycles: int
    dram_bytes: int
    picojoules: float


def compared(
    model: FloatModel,
    plan: Plan,
    programs: Iterable[Program] | None,
    spec: NpuSpec | None,
    other: Callable[[], tuple[FloatModel, Plan]],
) -> tuple[Price | None, Price | None]:
    """The price of a plan, and of another one; None without a machine.

    Args:
        model: the network of the plan.
        plan: complete.
        programs: of the plan by rule; None if they are to be compiled.
        spec: the machine, or None.
        other: makes the other plan and its network.
    """
    if spec is None:
        return None, None
    return plan_price(model, plan, spec, programs), plan_price(*other(), spec)


def plan_price(
    model: FloatModel, plan: Plan, spec: NpuSpec, programs: Iterable[Program] | None = None
) -> Price:
    """Of the programs that a plan of a network leads to by rule.

    Args:
        model: the network of the plan.
        plan: complete.
        spec: the machine.
        programs: these, if they are there already.
    """
    if programs is None:
        integer = lower(model, annotate(model, plan))
        programs = place(integer, read_layers(integer), spec).programs
    layers = [layer for program in programs for layer in price(program, spec).layers]
    return Price(
        sum(layer.cycles for layer in layers),
        sum(layer.dram_bytes for layer in layers),
        sum(layer.picojoules for layer in layers),
    )
