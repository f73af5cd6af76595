"""From a run of layers to one program.

    choose the tensors that stay in ACT -> place the others in DRAM -> schedule each layer ->
    generate its instructions -> tokens from hazards -> HALT

What does not stay in ACT lives in the arena, a region of DRAM whose bytes are reused once nobody
reads them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from targets.layers import Layer, Move, Value
from targets.npu.constraints import schedule
from targets.npu.emit.codegen import Scratchpads, generate
from targets.npu.emit.emitted import Emitted, Place
from targets.npu.emit.tokens import Footprint, derive_tokens
from targets.npu.machine import isa
from targets.npu.machine.program import ARENA, CONSTANTS, INPUTS, OUTPUTS, LayerSpan, Program
from targets.npu.machine.spec import NpuSpec
from targets.npu.resident import act_left, choose_residents
from targets.npu.schedule.storage import choose_storage, host_bytes, stored_bytes

_ALIGN = 64
_ITEMSIZE = {"int8": 1, "uint8": 1, "int32": 4}


def compile_layers(
    layers: Sequence[Layer], inputs: Sequence[Value], outputs: Sequence[Value], spec: NpuSpec
) -> Program:
    """Compile layers, given in order, into a program for one image.

    Args:
        layers: layers that ``constraints.refusal`` accepts.
        inputs: tensors that come from outside; they lie one behind the other in region 2.
        outputs: tensors that are needed outside; one behind the other in region 3.
        spec: the machine.
    """
    layers = _copied_where_needed(layers, inputs, outputs)
    layers = choose_storage(layers, inputs, outputs, spec.array.precisions)
    layers, residents = choose_residents(layers, inputs, outputs, spec)
    near = {name: resident.place for resident in residents for name in resident.names}
    places, arena_bytes = _place_tensors(layers, inputs, outputs, near)
    constants = _Constants()
    scratchpads = Scratchpads()
    emitted: list[Emitted] = []
    spans = []
    for index, layer in enumerate(layers):
        begin = len(emitted)
        if not (isinstance(layer, Move) and layer.reshape):
            free = act_left(index, residents, spec)
            scheduled = schedule(layer, free)
            tensors = [*layer.inputs, layer.output]
            names = [b.name for b in scheduled.func.params]
            where = {
                n: constants.add(scheduled.constants[n]) for n in names if n in scheduled.constants
            }
            rest = [n for n in names if n not in where]
            for name, tensor in zip(rest, tensors, strict=True):
                where[name] = places[tensor.name]
            made = generate(scheduled.func, where, free, scratchpads)
            fills = [load for r in residents if r.first == index for load in r.border_fills()]
            emitted += _with_fills(made, fills)
        spans.append((begin, len(emitted), layer))
    instructions, moved = _with_tokens(emitted, spec.issue.token_depth)
    return Program(
        machine=spec.name,
        digest=spec.digest,
        instructions=(*instructions, isa.Halt()),
        constants=constants.bytes(),
        arena_bytes=arena_bytes,
        input_bytes=sum(host_bytes(v) for v in inputs),
        output_bytes=sum(host_bytes(v) for v in outputs),
        layers=tuple(
            LayerSpan(moved[begin], moved[end], layer.name, layer.source, layer.kind, layer.macs)
            for begin, end, layer in spans
        ),
    )


class _Constants:
    """Region 0: every constant once."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._known: dict[bytes, int] = {}

    def add(self, array: np.ndarray) -> Place:
        data = np.ascontiguousarray(array).tobytes()
        if data not in self._known:
            self._data += bytes(-len(self._data) % _ALIGN)
            self._known[data] = len(self._data)
            self._data += data
        return Place(CONSTANTS, self._known[data], array.dtype.itemsize, dram=True)

    def bytes(self) -> bytes:
        return bytes(self._data)


def _copied_where_needed(
    layers: Sequence[Layer], inputs: Sequence[Value], outputs: Sequence[Value]
) -> list[Layer]:
    """The layers, a reshape turned into a copy where sharing its input's bytes would not do.

    Inputs and outputs of a program have places of their own, so a reshape of one into another has
    to move bytes.
    """
    wanted = {value.name for value in outputs}
    reshaped = {layer.output.name for layer in layers if isinstance(layer, Move) and layer.reshape}
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


def _with_fills(made: list[Emitted], fills: list[Emitted]) -> list[Emitted]:
    """A layer's instructions, its output's border written before anything is computed."""
    first = next((n for n, e in enumerate(made) if e.instruction.unit != isa.LD), len(made))
    return [*made[:first], *fills, *made[first:]]


def _place_tensors(
    layers: Sequence[Layer],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    near: Mapping[str, Place],
) -> tuple[dict[str, Place], int]:
    """Places of all tensors by name, those in ``near`` given, and the arena's size."""
    root = {
        layer.output.name: layer.inputs[0].name
        for layer in layers
        if isinstance(layer, Move) and layer.reshape
    }

    def storage(name: str) -> str:
        while name in root:
            name = root[name]
        return name

    places = dict(near)
    for region, values in ((INPUTS, inputs), (OUTPUTS, outputs)):
        offset = 0
        for value in values:
            places[storage(value.name)] = Place(region, offset, _ITEMSIZE[value.dtype], dram=True)
            offset += host_bytes(value)
    last_use = {storage(v.name): n for n, layer in enumerate(layers) for v in layer.inputs}
    live: list[tuple[int, int, int]] = []  # begin, end, last use
    size = 0
    for n, layer in enumerate(layers):
        name = storage(layer.output.name)
        live = [block for block in live if block[2] >= n]
        if name not in places:
            begin, needed = 0, stored_bytes(layer.output)
            for taken_begin, taken_end, _ in sorted(live):
                if begin + needed <= taken_begin:
                    break
                begin = max(begin, -(-taken_end // _ALIGN) * _ALIGN)
            places[name] = Place(ARENA, begin, _ITEMSIZE[layer.output.dtype], dram=True)
            live.append((begin, begin + needed, last_use.get(name, n)))
            size = max(size, begin + needed)
        places[layer.output.name] = places[name]
    return places, size


def _with_tokens(emitted: Sequence[Emitted], depth: int) -> tuple[list[isa.Instruction], list[int]]:
    """Instructions with their tokens and NOPs, and for each old position its new one."""
    footprints = [Footprint(e.instruction.unit, e.reads, e.writes) for e in emitted]
    waits, early = derive_tokens(footprints, depth)
    instructions: list[isa.Instruction] = []
    moved = []
    pending = deque(early)
    for index, (item, wait) in enumerate(zip(emitted, waits, strict=True)):
        moved.append(len(instructions))
        while pending and pending[0].position == index:
            pop = pending.popleft()
            instructions.append(isa.Nop(on=pop.unit, pop=1 << pop.source))
        mask = {"pop": _mask(wait.pop), "push": _mask(wait.push)}
        instructions.append(replace(item.instruction, **mask))
    moved.append(len(instructions))
    return instructions, moved


def _mask(units: set[int]) -> int:
    return sum(1 << unit for unit in units)
