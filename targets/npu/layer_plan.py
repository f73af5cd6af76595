"""Everything about a program but its instructions: what is stored where, and how layers are cut.

    widths of the tensors -> tensors that stay in ACT -> a choice for each layer, with its cost

No TIR is made, so this is also how a layer is priced before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from targets.errors import CapacityError
from targets.layers import Constant, Layer, Move, Value
from targets.npu.kinds.cost import NOTHING
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
    outside = {v.name for v in (*inputs, *outputs)}
    return LayerPlan(*choose_residents(_planned(layers, outside, spec), outside, spec))


def _planned(layers: Sequence[Layer], outside: set[str], spec: NpuSpec) -> list[Planned]:
    """The layers with all tensors in DRAM, as narrow as they can be.

    Narrow codes fill more lanes of the array, so that a tile has more weights: a layer that fits
    with bytes may not fit with them, and then gets bytes.
    """
    as_bytes = set(outside)
    while True:
        bits = _stored_bits(layers, as_bytes, spec.array.precisions)
        planned, narrow = [], set[str]()
        for layer in layers:
            tensors = {v.name: Stored(v, bits[v.name]) for v in (*layer.inputs, layer.output)}
            job = Job(layer, tensors, spec, spec.sram.act.bytes)
            if isinstance(layer, Constant) and layer.output.name not in outside:
                planned.append(Planned(job, None, NOTHING))
                continue
            try:
                planned.append(plan(job))
            except CapacityError:
                own = {name for name in tensors if bits[name] < 8}
                if not own:
                    raise
                narrow |= own
        if not narrow:
            return planned
        as_bytes |= narrow


def _stored_bits(
    layers: Sequence[Layer], as_bytes: Iterable[str], widths: Sequence[int]
) -> dict[str, int]:
    """Every tensor's width: the least that all who touch it can work on.

    Args:
        layers: in order, all in one program.
        as_bytes: names of tensors that are bytes in any case.
        widths: what the machine's array computes with, in bits.
    """
    values = [v for layer in layers for v in (*layer.inputs, layer.output)]
    bits = {v.name: v.bits if v.bits in widths else 8 for v in values}
    bits |= dict.fromkeys(as_bytes, 8)
    while bytewise := {
        name for layer in layers for name in kind_of(layer).bytewise(layer, bits) if bits[name] != 8
    }:
        bits |= dict.fromkeys(bytewise, 8)
    return bits


def _copied_where_needed(
    layers: Sequence[Layer], inputs: Sequence[Value], outputs: Sequence[Value]
) -> list[Layer]:
    """The layers, a reshape turned into a copy where sharing its input's bytes would not do.

    Inputs, outputs and constants of a program have places of their own, so a reshape of one into
    another has to move bytes.
    """
    wanted = {value.name for value in outputs}
    reshaped = {layer.output.name for layer in layers if kind_of(layer).same_bytes(layer)}
    constants = {layer.output.name for layer in layers if isinstance(layer, Constant)}
    fixed = {value.name for value in inputs} | constants | wanted - reshaped
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
