"""Which tensors stay in ACT between the layers of a program, and where.

A tensor that one layer makes and later ones read need not pass through DRAM. It lies at the top of
ACT while it is live, with the padding that its readers want around it, and the layers beside it
stream through what is left below. Tensors are taken in program order, each if every layer still
fits and none of the estimates of their cycles, taken together, grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from targets.errors import CapacityError
from targets.layers import Add, Conv2d, Layer, Lut, MaxPool2d, Move, Value
from targets.npu.emit.dma import fill_rows
from targets.npu.emit.emitted import ACT, Emitted, Place
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.elementwise import run_bytes
from targets.npu.schedule.geometry import ConvGeometry
from targets.npu.schedule.move import move_rows
from targets.npu.schedule.pool import stripe_rows
from targets.npu.schedule.storage import (
    bordered_bytes,
    map_values,
    pixel_bytes,
    repeated,
    row_bytes,
)
from targets.npu.schedule.tile_cost import estimate_cycles
from targets.npu.schedule.tiling import tile_conv

_ALIGN = 64
NO_BORDER = (0, 0, 0, 0)
LONGEST_PITCH = min(
    isa.largest(isa.Load, "spm_ystride"),
    isa.largest(isa.Gemm, "as_m1", "as_k2"),
    isa.largest(isa.Depthwise, "as_m1", "as_ky"),
)
"""Bytes from row to row that the fields of LD, GEMM and DWC can say."""


@dataclass(frozen=True)
class Resident:
    """A tensor in ACT.

    Attributes:
        value: with its border; the shape is that with which it is made.
        names: its own, and those of reshapes that share its bytes.
        fill: the code in its border.
        address: of its first byte, the border's.
        first: index of the layer that makes it.
        last: index of the last layer that reads it.
    """

    value: Value
    names: frozenset[str]
    fill: int
    address: int
    first: int
    last: int

    @property
    def place(self) -> Place:
        """Where code generation finds it."""
        return Place(ACT, self.address, 1, dram=False)

    def border_fills(self) -> list[Emitted]:
        """Loads that write the border: before it, between its rows, behind it."""
        top, left, bottom, right = self.value.border or NO_BORDER
        row, pixel, height = row_bytes(self.value), pixel_bytes(self.value), self.value.shape[0]
        behind = (top + height) * row - right * pixel
        runs = (
            (0, 1, top * row + left * pixel),
            ((top + 1) * row - right * pixel, height - 1, (left + right) * pixel),
            (behind, 1, right * pixel + bottom * row),
        )
        code = repeated(self.fill, self.value)
        return [
            load
            for at, rows, length in runs
            for load in fill_rows(self.place, at, rows, length, row, code)
        ]


def choose_residents(
    layers: Sequence[Layer], inputs: Sequence[Value], outputs: Sequence[Value], spec: NpuSpec
) -> tuple[list[Layer], list[Resident]]:
    """The layers, with ``Value.border`` set where a tensor stays in ACT; and those tensors.

    Args:
        layers: in order, with the widths at which tensors are stored.
        inputs: tensors from outside; they lie in DRAM.
        outputs: tensors for outside; they too.
        spec: the machine.
    """
    chosen = list(layers)
    residents: list[Resident] = []
    for candidate in _candidates(layers, {value.name for value in (*inputs, *outputs)}):
        address = _address(candidate, residents, spec)
        if address is None:
            continue
        kept = [*residents, replace(candidate, address=address)]
        beside = range(candidate.first, candidate.last + 1)
        try:
            before = sum(_cycles(chosen[n], act_left(n, residents, spec)) for n in beside)
            trial = {n: _with_border(chosen[n], candidate) for n in beside}
            after = sum(_cycles(trial[n], act_left(n, kept, spec)) for n in beside)
        except CapacityError:
            continue
        if after <= before:
            residents = kept
            for n, layer in trial.items():
                chosen[n] = layer
    return chosen, residents


def act_left(index: int, residents: Sequence[Resident], spec: NpuSpec) -> NpuSpec:
    """The machine as a layer finds it: ACT ends where the first tensor that stays begins."""
    taken = [r.address for r in residents if r.first <= index <= r.last]
    act = spec.sram.act.model_copy(update={"bytes": min(taken, default=spec.sram.act.bytes)})
    return spec.model_copy(update={"sram": spec.sram.model_copy(update={"act": act})})


def _candidates(layers: Sequence[Layer], outside: set[str]) -> list[Resident]:
    """Tensors that all who touch them could work on in ACT; not placed yet."""
    candidates = []
    for first, producer in enumerate(layers):
        value = producer.output
        if not isinstance(producer, Conv2d | MaxPool2d) or value.dtype == "int32":
            continue
        names, borders, fills, last = {value.name}, [NO_BORDER], set(), first
        usable = True
        for n, layer in enumerate(layers[first + 1 :], first + 1):
            if not names & {v.name for v in layer.inputs}:
                continue
            last = n
            if isinstance(layer, Move) and layer.reshape:
                names.add(layer.output.name)
            elif isinstance(layer, Conv2d | MaxPool2d):
                if layer.inputs[0].name in names and any(layer.padding):
                    borders.append(layer.padding)
                    fills.add(_padding_code(layer))
            else:
                usable = False
        border = tuple(max(sides) for sides in zip(*borders, strict=True))
        shared = len(names) > 1 and border != NO_BORDER
        if usable and last > first and len(fills) <= 1 and not shared and not names & outside:
            held = replace(value, border=border)
            fill = fills.pop() if fills else 0
            candidates.append(Resident(held, frozenset(names), fill, 0, first, last))
    return candidates


def _padding_code(layer: Conv2d | MaxPool2d) -> int:
    if isinstance(layer, Conv2d):
        return layer.input_zero_point
    return 0 if layer.input.dtype == "uint8" else -(1 << (layer.input.bits - 1))


def _address(tensor: Resident, residents: Sequence[Resident], spec: NpuSpec) -> int | None:
    """The highest free place while it is live; None if there is none."""
    size = bordered_bytes(tensor.value) + spec.array.overrun
    begin = _aligned(spec.sram.act.bytes - size)
    live = [r for r in residents if r.first <= tensor.last and tensor.first <= r.last]
    for other in sorted(live, key=lambda r: -r.address):
        if begin < other.address + bordered_bytes(other.value) + spec.array.overrun:
            begin = min(begin, _aligned(other.address - size))
    fits_the_fields = row_bytes(tensor.value) <= LONGEST_PITCH
    return begin if begin >= 0 and fits_the_fields else None


def _aligned(address: int) -> int:
    return address // _ALIGN * _ALIGN


def _with_border(layer: Layer, tensor: Resident) -> Layer:
    border = tensor.value.border
    return map_values(layer, lambda v: replace(v, border=border) if v.name in tensor.names else v)


def _cycles(layer: Layer, spec: NpuSpec) -> int:
    """Estimated cycles of what has an estimate.

    Raises:
        CapacityError: the layer doesn't fit what is left of ACT.
    """
    if isinstance(layer, Conv2d):
        geometry = ConvGeometry(layer, spec)
        return estimate_cycles(geometry, tile_conv(geometry))
    if isinstance(layer, MaxPool2d):
        stripe_rows(layer, spec)
    elif isinstance(layer, Add | Lut):
        run_bytes(layer, spec)
    elif isinstance(layer, Move) and not layer.reshape:
        move_rows(layer, spec)
    return 0
