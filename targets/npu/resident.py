"""Which tensors stay in ACT between the layers of a program, and where.

A tensor that one layer makes and later ones read need not pass through DRAM. It lies at the top of
ACT while it is live, with the padding that its readers want around it, and the layers beside it
stream through what is left below. Tensors are taken in program order, each if every layer still
fits and none of the estimates of their cycles, taken together, grows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from targets.errors import CapacityError
from targets.layers import Layer
from targets.npu.emit.dma import fill_rows
from targets.npu.emit.emitted import ACT, Emitted, Place, Rolling, Rows
from targets.npu.kinds.table import Planned, kind_of, plan
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.job import Job
from targets.npu.schedule.storage import NO_BORDER, Stored

_ALIGN = 64
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
        tensor: with its border; the shape is that with which it is made.
        names: its own, and those of reshapes that share its bytes.
        fill: the code in its border.
        address: of its first byte, the border's.
        first: index of the layer that makes it.
        last: index of the last layer that reads it.
        rolling: of a tensor of which only the rows that are needed at a time are there.
    """

    tensor: Stored
    names: frozenset[str]
    fill: int
    address: int
    first: int
    last: int
    rolling: Rolling | None = None

    @property
    def place(self) -> Place:
        """Where code generation finds it."""
        return Place(ACT, self.address, 1, dram=False, rolling=self.rolling)

    @property
    def bytes(self) -> int:
        """Of ACT that it takes, the border included."""
        rolling = self.rolling
        return rolling.rows * rolling.row_bytes if rolling else self.tensor.bordered_bytes

    def end(self, spec: NpuSpec) -> int:
        """Address behind it, and behind what the array may read past it."""
        return self.address + self.bytes + spec.array.overrun

    def border_fills(self) -> list[Emitted]:
        """Loads that write the border: before it, between its rows, behind it.

        Where rows roll, what is behind the last one is written once that is there.
        """
        tensor = self.tensor
        top, left, bottom, right = tensor.border or NO_BORDER
        row, pixel, height = tensor.row_bytes, tensor.pixel_bytes, tensor.shape[0]
        if self.rolling is not None:
            height, bottom = self.rolling.rows - top, 0
        behind = (top + height) * row - right * pixel
        runs = (
            (0, 1, top * row + left * pixel),
            ((top + 1) * row - right * pixel, height - 1, (left + right) * pixel),
            (behind, 1, right * pixel + bottom * row),
        )
        code = tensor.repeated(self.fill)
        makes = Rows(0, max(top, 1)) if self.rolling else None  # a window may be of nothing else
        return [
            replace(load, makes=makes)
            for at, rows, length in runs
            for load in fill_rows(self.place, at, rows, length, row, code)
        ]

    def closing_fills(self) -> list[Emitted]:
        """Loads that write the border behind the last row of a tensor whose rows roll."""
        if self.rolling is None:
            return []
        tensor, row = self.tensor, self.rolling.row_bytes
        top, _, bottom, _ = tensor.border or NO_BORDER
        end, code = top + tensor.shape[0], tensor.repeated(self.fill)
        return [
            replace(load, makes=Rows(first, last))
            for n in range(end, end + bottom)
            for first, last, place in self.rolling.written(n, n + 1)
            for load in fill_rows(self.place, place * row, last - first, row, row, code)
        ]


@dataclass(frozen=True)
class Cascade:
    """Layers that are at work at the same time, stripe by stripe.

    Attributes:
        span: indices of the layers, each of which reads what the one before makes.
        layers: planned with nothing else in ACT.
        rolling: the tensors between them.
    """

    span: range
    layers: tuple[Planned, ...]
    rolling: tuple[Resident, ...]


def choose_residents(
    planned: Sequence[Planned],
    outside: set[str],
    spec: NpuSpec,
    cascades: Sequence[Cascade] = (),
    stays: Mapping[str, bool] = MappingProxyType({}),
    with_tensor: Callable[[Planned, Resident], Planned] | None = None,
) -> tuple[list[Planned], list[Resident]]:
    """The layers, planned anew where a tensor stays in ACT; and those tensors.

    Args:
        planned: the layers in order, those of cascades as planned there; tensors are in DRAM.
        outside: names of the program's inputs and outputs, which lie in DRAM.
        spec: the machine.
        cascades: layers that are at work at the same time; their tensors are among those returned.
        stays: whether a tensor does, by its name, where that is not for the estimates to say.
        with_tensor: ``with_resident``, or what remembers what that gave before.

    Raises:
        CapacityError: a tensor is to stay that can't.
    """
    with_tensor = with_tensor or with_resident
    chosen = list(planned)
    residents = [each for cascade in cascades for each in cascade.rolling]
    beside: dict[int, list[Resident]] = defaultdict(list)  # by layer, what is in ACT meanwhile
    together = {n: cascade.span for cascade in cascades for n in cascade.span}
    for cascade in cascades:
        for n in cascade.span:
            beside[n] += cascade.rolling
    rolling = {name for each in residents for name in each.names}
    candidates = _candidates([each.job for each in planned], outside | rolling)
    never = {name for name, does in stays.items() if does}
    never -= {candidate.tensor.value.name for candidate in candidates}
    if never:
        raise _can_not_stay(min(never))
    for candidate in candidates:
        wanted = stays.get(candidate.tensor.value.name)
        if wanted is False:
            continue
        ends = (candidate.first, candidate.last)
        first, last = (together.get(n, range(n, n + 1)) for n in ends)
        span = range(first.start, last.stop)
        resident = _placed(candidate, {r for n in span for r in beside[n]}, spec)
        if resident is None:
            if wanted:
                raise _can_not_stay(candidate.tensor.value.name)
            continue
        try:
            trial = {n: with_tensor(chosen[n], resident) for n in span}
        except CapacityError:
            if wanted:
                raise
            continue
        if wanted or sum(trial[n].cost.cycles - chosen[n].cost.cycles for n in span) <= 0:
            residents.append(resident)
            for n in span:
                beside[n].append(resident)
                chosen[n] = trial[n]
    return chosen, residents


def may_stay(planned: Sequence[Planned], outside: set[str]) -> list[str]:
    """Names of the tensors that ``choose_residents`` looks at, if none is in a cascade."""
    jobs = [each.job for each in planned]
    return [candidate.tensor.value.name for candidate in _candidates(jobs, outside)]


def _can_not_stay(name: str) -> CapacityError:
    return CapacityError(f"{name}: can't stay in ACT")


def _candidates(jobs: Sequence[Job[Layer]], outside: set[str]) -> list[Resident]:
    """Tensors that all who touch them could work on in ACT; not placed yet."""
    readers: dict[str, list[int]] = defaultdict(list)
    for n, job in enumerate(jobs):
        for name in {value.name for value in job.layer.inputs}:
            readers[name].append(n)
    candidates = []
    for first, producer in enumerate(jobs):
        if kind_of(producer.layer).makes_near and producer.output.dtype != "int32":
            candidate = _candidate(jobs, readers, first)
            if candidate is not None and not candidate.names & outside:
                candidates.append(candidate)
    return candidates


def _candidate(
    jobs: Sequence[Job[Layer]], readers: dict[str, list[int]], first: int
) -> Resident | None:
    """The output of a layer with the border that its readers want; None if they can't share it."""
    made = jobs[first].output
    names, borders, fills, last = [made.value.name], [NO_BORDER], set(), first
    for name in names:  # grows by the reshapes that are found
        for n in readers[name]:
            layer, last = jobs[n].layer, max(last, n)
            if kind_of(layer).same_bytes(layer) is not None:
                names.append(layer.output.name)
                continue
            for read in layer.inputs:
                if read.name != name:
                    continue
                padding = kind_of(layer).padding(layer, read, made.bits)
                if padding is None:
                    return None
                if any(padding.border):
                    borders.append(padding.border)
                    fills.add(padding.code)
    top, left, bottom, right = (max(sides) for sides in zip(*borders, strict=True))
    border = (top, left, bottom, right)
    shared = len(names) > 1 and border != NO_BORDER
    if last == first or len(fills) > 1 or shared:
        return None
    tensor = replace(made, border=border)
    return Resident(tensor, frozenset(names), fills.pop() if fills else 0, 0, first, last)


def _placed(tensor: Resident, live: set[Resident], spec: NpuSpec) -> Resident | None:
    """The tensor at the highest free place while it is live; None if there is none."""
    if tensor.tensor.row_bytes > LONGEST_PITCH:
        return None
    size = tensor.end(spec)
    begin = aligned(spec.sram.act.bytes - size)
    for other in sorted(live, key=lambda r: -r.address):
        if begin < other.end(spec):
            begin = min(begin, aligned(other.address - size))
    return replace(tensor, address=begin) if begin >= 0 else None


def aligned(address: int) -> int:
    """The address, or the next one below at which a tensor may begin."""
    return address // _ALIGN * _ALIGN


def with_resident(planned: Planned, resident: Resident) -> Planned:
    """The layer with the tensor in ACT, which ends where the first tensor that stays begins.

    Raises:
        CapacityError: the layer doesn't fit what is left of ACT.
    """
    job = planned.job
    border = resident.tensor.border
    moved = {n: replace(job.tensors[n], border=border) for n in resident.names & set(job.tensors)}
    left = min(job.act_bytes, resident.address // job.sharing)
    if not moved and left == job.act_bytes:
        return planned
    if planned.idle:
        return replace(planned, job=replace(job, tensors={**job.tensors, **moved}))
    return plan(replace(job, tensors={**job.tensors, **moved}, act_bytes=left))
