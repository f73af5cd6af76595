"""What layers cost, before anything is compiled.

A layer on the NPU is planned with those of its program, so what overlaps and what stays in ACT is
in its price. A layer on the CPU is priced as if the rule that it breaks were lifted: that is what
changing the model would gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay_passes.place import Placement, boundary, integer_layers, readers_of, segments
from relay_passes.read_layers import AnyLayer, IntegerNetwork, IslandLayer, OpaqueLayer
from targets.errors import CapacityError
from targets.npu.input_blocks import in_blocks
from targets.npu.kinds.cost import Cost, bus_cycles
from targets.npu.kinds.table import KINDS, plan
from targets.npu.layer_plan import plan_layers
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.job import Job
from targets.npu.schedule.storage import host_bytes

MAX_DOUBLINGS = 16
"""Of the memories, until a layer that does not fit them does."""


@dataclass(frozen=True)
class Estimate:
    """The estimated price of a layer.

    Attributes:
        cycles: NPU cycles that it adds to one image; on the CPU: that it would add on the NPU.
        bound: what bounds it, in the words of a profile.
    """

    cycles: int
    bound: str


def estimate(network: IntegerNetwork, placed: Sequence[Placement], spec: NpuSpec) -> list[Estimate]:
    """The price of every layer, in order.

    Args:
        network: from ``read_layers``.
        placed: where its layers run, from ``placements``.
        spec: the machine.
    """
    readers = readers_of(network)
    estimates = []
    for on_npu, layers in segments(network.layers, placed):
        if on_npu:
            run = integer_layers(layers)
            inputs, outputs = boundary(run, readers)
            blocked = in_blocks(run, inputs, outputs, spec)
            planned = plan_layers(blocked.layers, blocked.inputs, outputs, spec)
            for cycles, each in zip(planned.cycles, planned.layers, strict=True):
                estimates.append(Estimate(cycles, each.cost.bound))
        else:
            cost = _if_taken(layers[0], spec)
            estimates.append(Estimate(cost.cycles, cost.bound))
    return estimates


def _if_taken(layer: AnyLayer, spec: NpuSpec) -> Cost:
    """The cost of a layer that the machine refuses, on one that does not."""
    if isinstance(layer, OpaqueLayer | IslandLayer) or type(layer) not in KINDS:
        return _moved(layer, spec)
    for doublings in range(MAX_DOUBLINGS):
        try:
            return plan(Job.alone(layer, _roomier(spec, 2**doublings))).cost
        except CapacityError:
            continue
    return _moved(layer, spec)


def _moved(layer: AnyLayer, spec: NpuSpec) -> Cost:
    """Reading and writing the tensors, which takes as long for any operation on them."""
    moved = sum(bus_cycles(spec, 1, host_bytes(v)) for v in (*layer.inputs, layer.output))
    return Cost(moved, data=moved)


def _roomier(spec: NpuSpec, factor: int) -> NpuSpec:
    banks = {
        name: bank.model_copy(update={"bytes": bank.bytes * factor}) for name, bank in spec.sram
    }
    return spec.model_copy(update={"sram": spec.sram.model_copy(update=banks)})
