"""Layers that work at the same time, stripe by stripe, and what is between them rolls by in ACT.

A layer's output that ACT can't hold would go to DRAM and come back, and a layer of the vector unit
alone would let the array wait. In a cascade a layer makes the rows that a stripe of the next one
needs, then that stripe is computed, and its rows give way to new ones (``emit/rolling.py``):

    stem   rows 0-2 |       3, 4 |       5, 6 |       7, 8 |
    pool            | row 0      | row 1      | row 2      | row 3

The instructions of the layers are merged into one order that is right one after the other; so all
that is said of hazards, tokens and the order of issue holds for them as for any others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from targets.errors import CapacityError
from targets.layers import Conv2d, Layer, MaxPool2d, Weights
from targets.npu.choices import CascadeChoice
from targets.npu.emit.emitted import Emission, Rolling
from targets.npu.kinds.cost import ceil_div
from targets.npu.kinds.table import Planned, kind_of, plan
from targets.npu.machine.spec import NpuSpec
from targets.npu.resident import LONGEST_PITCH, Cascade, Resident, aligned
from targets.npu.schedule.job import Job
from targets.npu.schedule.storage import NO_BORDER, Stored

LONGEST = 3
"""Layers of a cascade: expand, depthwise, project."""
HEIGHTS = (2, 4, 8)
"""Rows of the last layer's stripes that are tried; one row where ACT holds no more."""
WORTHWHILE = 32
"""A cascade that gains less than one part in so many of its layers' cycles is not worth it."""


def choose_cascades(
    planned: Sequence[Planned],
    alone: Sequence[Planned],
    outside: set[str],
    spec: NpuSpec,
    given: Mapping[str, CascadeChoice] = MappingProxyType({}),
) -> list[Cascade]:
    """The cascades that gain cycles by estimate.

    Args:
        planned: the layers in order, all tensors in DRAM.
        alone: likewise, as they would be without cascades, some tensors in ACT.
        outside: names of the program's inputs and outputs.
        spec: the machine.
        given: those that are not for the estimates to say, by what the first layer makes.

    Raises:
        CapacityError: one of those can't be.
    """
    cascades = []
    readers = _readers(planned)
    decided = {n for n, each in enumerate(planned) if each.job.output.value.name in given}
    first = 0
    while first < len(planned):
        best, most = None, 0
        if first in decided:
            name = planned[first].job.output.value.name
            found = _given(planned, first, given[name], readers, outside, spec)
            cascades += found
            first = found[0].span.stop if found else first + 1
            continue
        for last in range(first + 1, min(first + LONGEST, len(planned))):
            if last in decided:
                break
            if not _may_roll(planned[last - 1].job, planned[last].job, readers, outside):
                break
            span = range(first, last + 1)
            costs = [alone[n].cost for n in span]
            before = sum(cost.cycles for cost in costs)
            busy = max(sum(cost.array for cost in costs), sum(cost.vector for cost in costs))
            if before - busy <= before // WORTHWHILE:
                continue
            jobs = [planned[n].job for n in span]
            tried = [_planned(jobs, span, height, spec) for height in HEIGHTS]
            for each in tried if any(tried) else [_planned(jobs, span, 1, spec)]:
                gain = before - _cycles(each) if each else 0
                if gain > max(most, before // WORTHWHILE):
                    best, most = each, gain
        if best is not None:
            cascades.append(best)
        first = best.span.stop if best is not None else first + 1
    return cascades


def possible_cascades(
    planned: Sequence[Planned], outside: set[str], spec: NpuSpec
) -> list[tuple[str, CascadeChoice]]:
    """All that ``choose_cascades`` may be given, by what the first layer makes."""
    found = []
    readers = _readers(planned)
    for first, each in enumerate(planned):
        for last in range(first + 1, min(first + LONGEST, len(planned))):
            if not _may_roll(planned[last - 1].job, planned[last].job, readers, outside):
                break
            jobs = [one.job for one in planned[first : last + 1]]
            for rows in (1, *HEIGHTS):
                if _planned(jobs, range(first, last + 1), rows, spec) is not None:
                    choice = CascadeChoice(len(jobs), rows)
                    found.append((each.job.output.value.name, choice))
    return found


def _given(
    planned: Sequence[Planned],
    first: int,
    choice: CascadeChoice,
    readers: Counter[str],
    outside: set[str],
    spec: NpuSpec,
) -> list[Cascade]:
    """The cascade that is to begin with a layer; none if that is to work by itself."""
    if choice.layers == 1:
        return []
    span = range(first, first + choice.layers)
    inside = choice.layers <= LONGEST and span.stop <= len(planned)
    if inside and all(
        _may_roll(planned[n].job, planned[n + 1].job, readers, outside) for n in span[:-1]
    ):
        jobs = [planned[n].job for n in span]
        found = _planned(jobs, span, choice.rows, spec)
        if found is not None:
            return [found]
    raise CapacityError(
        f"{planned[first].job.layer.name}: {choice.layers} layers from there can't work in stripes "
        f"of {choice.rows} rows"
    )


def _readers(planned: Sequence[Planned]) -> Counter[str]:
    """How many layers read a tensor, by name."""
    return Counter(v.name for p in planned for v in p.job.layer.inputs)


def _cycles(cascade: Cascade) -> int:
    """Estimated: those of the busiest unit, and of the first stripes."""
    costs = [each.cost for each in cascade.layers]
    twice = 0
    for cost, rows in zip(costs, cascade.rolling, strict=False):
        assert rows.rolling is not None
        twice += cost.vector * rows.rolling.overlap // rows.rolling.period
    busiest = max(
        sum(cost.array for cost in costs),
        sum(cost.vector + cost.decode for cost in costs) + twice,
        sum(cost.data + cost.fetch for cost in costs),
    )
    return busiest + sum(cost.decode + cost.part for cost in costs)


def _may_roll(
    source: Job[Layer], reader: Job[Layer], readers: Counter[str], outside: set[str]
) -> bool:
    """Whether a layer makes rows of codes of which the next one, and no other, reads windows."""
    made, layer = source.output, reader.layer
    if not isinstance(source.layer, Conv2d | MaxPool2d) or not isinstance(
        layer, Conv2d | MaxPool2d
    ):
        return False
    if any(
        isinstance(one, Conv2d) and not isinstance(one.right, Weights)
        for one in (source.layer, layer)
    ):
        return False
    name = made.value.name
    if layer.input.name != name or readers[name] != 1 or name in outside or made.dtype == "int32":
        return False
    return kind_of(source.layer).makes_near and min(made.shape[0], layer.output.shape[0]) > 1


def _planned(jobs: Sequence[Job[Layer]], span: range, height: int, spec: NpuSpec) -> Cascade | None:
    """A cascade whose last layer has stripes of some height; None if that can't be."""
    stripes, rolling, top = [(height, height)], list[Resident](), spec.sram.act.bytes
    if height > jobs[-1].output.shape[0] or spec.acc_rows < 2 * len(jobs):
        return None
    for n in range(len(jobs) - 1, 0, -1):
        tensor, roll = _rolling(jobs[n - 1], jobs[n], stripes[0][0], spec)
        above = (tensor.border or NO_BORDER)[0]
        whole = roll.rows * tensor.row_bytes >= tensor.bordered_bytes
        if tensor.row_bytes > LONGEST_PITCH or whole or roll.period <= above:
            return None
        fill = kind_of(jobs[n].layer).padding(jobs[n].layer, tensor.value, tensor.bits)
        resident = Resident(
            tensor,
            frozenset({tensor.value.name}),
            fill.code if fill else 0,
            0,
            span[n - 1],
            span[n],
            roll,
        )
        top = aligned(top - resident.end(spec))
        if top < 0:
            return None
        rolling.insert(0, replace(resident, address=top))
        rows = min(stripes[0][0] * _step(jobs[n].layer), jobs[n - 1].output.shape[0])
        stripes.insert(0, (1 if n == 1 else rows, rows))
    near = {each.tensor.value.name: each.tensor for each in rolling}
    shared = _shared(spec, len(jobs))
    layers = []
    for job, stripe in zip(jobs, stripes, strict=True):
        tensors = {name: near.get(name, stored) for name, stored in job.tensors.items()}
        job = replace(
            job,
            tensors=tensors,
            spec=shared,
            act_bytes=top // len(jobs),
            beside=0,
            stripe=stripe,
            sharing=len(jobs),
        )
        try:
            layers.append(plan(job))
        except CapacityError:
            return None
    return Cascade(span, tuple(layers), tuple(rolling))


def _step(layer: Layer) -> int:
    """Rows from a window to the one below."""
    assert isinstance(layer, Conv2d | MaxPool2d)
    return layer.strides[0]


def _window(layer: Layer) -> int:
    """Rows of a window."""
    assert isinstance(layer, Conv2d | MaxPool2d)
    rows = layer.kernel[0] if isinstance(layer, MaxPool2d) else layer.weight_shape[1]
    return (rows - 1) * layer.dilation[0] + 1


def _rolling(
    source: Job[Layer], reader: Job[Layer], height: int, spec: NpuSpec
) -> tuple[Stored, Rolling]:
    """The tensor between two layers, and how it rolls by the second one's stripes."""
    made = source.output
    padding = kind_of(reader.layer).padding(reader.layer, made.value, made.bits)
    tensor = replace(made, border=padding.border if padding else NO_BORDER)
    step = height * _step(reader.layer)
    overlap = max(0, _window(reader.layer) - _step(reader.layer))
    # A window's rows and those that come with its last one, a stripe of at most a step; and a step,
    # for the stripe after it is made while the window is read.
    rows = step + overlap + 2 * step - 1
    return tensor, Rolling(tensor.row_bytes, ceil_div(rows, step) * step, overlap)


def _shared(spec: NpuSpec, layers: int) -> NpuSpec:
    """The machine with a layer's part of its memories; that of ACT is in its job."""
    sram = spec.sram
    row = 4 * spec.array.cols
    acc = sram.acc.model_copy(update={"bytes": sram.acc.bytes // layers // row * row})
    wgt = sram.wgt.model_copy(update={"bytes": sram.wgt.bytes // layers})
    par = sram.par.model_copy(update={"bytes": sram.par.bytes // layers // 4 * 4})
    parts = sram.model_copy(update={"acc": acc, "wgt": wgt, "par": par})
    return spec.model_copy(update={"sram": parts})


def merged(makers: Emission, takers: Emission, maker: int, rolling: Rolling) -> Emission:
    """The instructions of two layers in one order, each stripe as soon as its rows are there.

    Args:
        makers: of the layer that makes the rows, and of those before it.
        takers: of the one that reads them.
        maker: index of the layer that makes the rows.
        rolling: how they lie.

    Raises:
        CapacityError: rows would be written over others that are still needed.
    """
    taken, written = takers.takes, makers.makes
    owners = makers.order[:, 0].tolist()
    made = [rows if owner == maker else None for rows, owner in zip(written, owners, strict=True)]
    height = 1 + max(takes.end for takes in taken if takes)
    made_by = [-1] * height  # the last of the makers of this row and those above
    for index, makes in enumerate(made):
        if makes:
            for row in range(makes.begin, min(makes.end, height)):
                made_by[row] = index
    for row in range(1, height):
        made_by[row] = max(made_by[row], made_by[row - 1])
    never = max((makes.end for makes in written if makes), default=0)
    needed = never  # the first row that is still needed, from the end backwards
    still = [never] * (len(taken) + 1)
    for index in range(len(taken) - 1, -1, -1):
        takes = taken[index]
        needed = min(needed, takes.begin) if takes else needed
        still[index] = needed
    start = next(n for n, takes in enumerate(taken) if takes)
    order: list[int] = []  # of the makers, and the takers behind them
    done = 0

    def make(until: int, needed: int) -> Iterator[int]:
        for index in range(done, until):
            makes = made[index]
            if makes and makes.end - 1 - rolling.period >= needed:
                raise CapacityError("rows of a cascade are needed longer than they stay in ACT")
            yield index

    for index, takes in enumerate(taken):
        if takes:
            until = max(done, made_by[takes.end - 1] + 1)
            order += make(until, still[index])
            done = until
        if index == start:
            order += range(len(made), len(made) + start)
        if index >= start:
            order.append(len(made) + index)
    order += make(len(made), still[len(taken)])
    return Emission.joined([makers, takers]).part(np.array(order, np.int64))
