"""Everything about a program but its instructions: what is stored where, and how layers are cut.

    widths of the tensors -> tensors that stay in ACT -> a choice for each layer, with its cost

No TIR is made, so this is also how a layer is priced before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from targets.layers import Layer, Move, Value
from targets.npu.kinds.table import Planned, kind_of, plan
from targets.npu.machine.spec import NpuSpec
from targets.npu.resident import Resident, choose_residents
from targets.npu.schedule.job import Job
from targets.npu.schedule.storage import Stored


@dataclass(frozen=True)
class LayerPlan:
    """The layers of a program, and the tensors between them that stay in ACT."""

    layers: list[Planned]
    residents: list[Resident]

    @property
    def cycles(self) -> list[int]:
        """Estimated cycles that each layer adds to the program."""
        added, before = [], 0
        for planned in self.layers:
            cost = planned.cost
            added.append(cost.cycles - min(cost.ahead, before))
            before = cost.cycles or before
        return added


def plan_layers(
    layers: Sequence[Layer], inputs: Sequence[Value], outputs: Sequence[Value], spec: NpuSpec
) -> LayerPlan:
    """Decide everything about a program but its instructions.

    Args:
        layers: in order; ``constraints.refusal`` accepts each.
        inputs: tensors that come from outside.
        outputs: tensors that are needed outside.
        spec: the machine.
    """
    layers = _copied_where_needed(layers, inputs, outputs)
    bits = _stored_bits(layers, [*inputs, *outputs], spec.array.precisions)
    planned = []
    for layer in layers:
        tensors = {v.name: Stored(v, bits[v.name]) for v in (*layer.inputs, layer.output)}
        planned.append(plan(Job(layer, tensors, spec, spec.sram.act.bytes)))
    return LayerPlan(*choose_residents(planned, {v.name for v in (*inputs, *outputs)}, spec))


def _stored_bits(
    layers: Sequence[Layer], edges: Sequence[Value], widths: Sequence[int]
) -> dict[str, int]:
    """Every tensor's width: the least that all who touch it can work on.

    Args:
        layers: in order, all in one program.
        edges: tensors from outside and for outside; they are bytes.
        widths: what the machine's array computes with, in bits.
    """
    values = [v for layer in layers for v in (*layer.inputs, layer.output)]
    bits = {v.name: v.bits if v.bits in widths else 8 for v in values}
    bits |= dict.fromkeys((v.name for v in edges), 8)
    while bytewise := {
        name for layer in layers for name in kind_of(layer).bytewise(layer, bits) if bits[name] != 8
    }:
        bits |= dict.fromkeys(bytewise, 8)
    return bits


def _copied_where_needed(
    layers: Sequence[Layer], inputs: Sequence[Value], outputs: Sequence[Value]
) -> list[Layer]:
    """The layers, a reshape turned into a copy where sharing its input's bytes would not do.

    Inputs and outputs of a program have places of their own, so a reshape of one into another has
    to move bytes.
    """
    wanted = {value.name for value in outputs}
    reshaped = {layer.output.name for layer in layers if kind_of(layer).same_bytes(layer)}
    fixed = {value.name for value in inputs} | wanted - reshaped
    root: dict[str, str] = {}
    result: list[Layer] = []
    for layer in layers:
        name = layer.output.name
        if name in reshaped and isinstance(layer, Move):
            (source,) = layer.inputs
            shared = root.get(source.name, source.name)
            if name in wanted and shared in fixed:
                output = replace(layer.output, shape=source.shape)  # the same bytes
                layer = replace(layer, output=output, reshape=False)
                shared = name
            root[name] = shared
            if name in wanted:
                fixed.add(shared)
        result.append(layer)
    return result
