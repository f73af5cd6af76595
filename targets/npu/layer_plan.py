"""Everything about a program but its instructions: what is stored where, and how layers are cut.

    widths of the tensors -> tensors that stay in ACT -> a choice for each layer, with its cost

No TIR is made, so this is also how a layer is priced before anything is compiled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

from targets.errors import CapacityError
from targets.layers import Constant, Conv2d, Factor, Layer, Move, Piece, Value
from targets.npu.cascade import choose_cascades
from targets.npu.choices import NO_CHOICES, Choices
from targets.npu.kinds.cost import LONGEST_STEP, NOTHING
from targets.npu.kinds.table import Planned, kind_of, plan, replan
from targets.npu.machine.spec import NpuSpec
from targets.npu.resident import Cascade, Resident, choose_residents, with_resident
from targets.npu.schedule.job import Job
from targets.npu.schedule.storage import Stored

WORTH_STRIPES = 4 * LONGEST_STEP
"""Cycles of the vector unit that are worth narrower stripes of the layers beside it."""
PLANNED_KEPT = 8192
"""Layers beside a tensor in ACT that a planner remembers."""


@dataclass(frozen=True)
class _Made:
    """When a tensor is made, estimated: its layer's beginning, its first part, its last."""

    begin: int
    first: int
    last: int


@dataclass(frozen=True)
class LayerPlan:
    """The layers of a program, the tensors between them that stay in ACT, and the cascades."""

    layers: list[Planned]
    residents: list[Resident]
    cascades: Sequence[Cascade] = ()

    @property
    def cycles(self) -> list[int]:
        """Estimated cycles that each layer adds to the program, in which layers overlap.

        A layer begins with the first part of what it reads, and ends some time after the last one;
        no sooner than the array, the vector unit and the bus have done all that is theirs.
        """
        made: dict[str, _Made] = {}
        array = vector = bus = end = 0
        added = []
        for planned in self.layers:
            layer, cost = planned.job.layer, planned.cost
            read = [made[value.name] for value in layer.inputs if value.name in made]
            if planned.idle:
                if read:
                    made[layer.output.name] = read[0]
                added.append(0)
                continue
            whole = _right_operand(layer)
            spec = planned.job.spec
            handing = spec.array.fill_cycles + spec.vu.latency + 2 * spec.issue.decode
            begin = done = 0
            for value in layer.inputs:
                source = made.get(value.name)
                if source is not None:
                    parts = value.name != whole and cost.part > 0
                    there = source.first if parts else source.last
                    begin = max(begin, there - min(cost.ahead, there - source.begin) + handing)
                    rest = max(0, cost.part - cost.ahead) if parts else 0
                    done = max(done, source.last + handing + rest)
            if cost.array:
                array = max(array, begin) + cost.cycles - min(cost.ahead, array)
            vector = max(vector, begin) + (cost.vector and cost.vector + cost.decode)
            bus = max(bus, begin) + cost.data + cost.fetch
            busy = max(array if cost.array else 0, vector, bus)
            begin = max(begin, busy - cost.cycles)  # what it needs was taken until then
            done = max(done, begin + cost.cycles)
            made[layer.output.name] = _Made(begin, begin + (cost.part or cost.cycles), done)
            added.append(max(0, done - end))
            end = max(end, done)
        return added


Measure: TypeAlias = "Callable[[LayerPlan, range, NpuSpec], int]"
"""Cycles of some layers of a plan by themselves."""


def plan_layers(
    layers: Sequence[Layer],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    spec: NpuSpec,
    measure: Measure | None = None,
    choices: Choices = NO_CHOICES,
) -> LayerPlan:
    """Decide everything about a program but its instructions.

    Args:
        layers: in order; ``constraints.refusal`` accepts each.
        inputs: tensors that come from outside.
        outputs: tensors that are needed outside.
        spec: the machine.
        measure: decides which cascades are worth it; without it their estimates do.
        choices: that take the place of what is decided here.

    Raises:
        CapacityError: a layer doesn't fit, or one of the choices can't be made; says why.
    """
    return Planner(layers, inputs, outputs, spec).plan(measure, choices)


class Planner:
    """Plans the layers of one program, once or by one choice after the other.

    What a layer is beside a tensor that stays in ACT is remembered: choices differ in little.

    Attributes:
        outside: names of the program's inputs and outputs.
        in_dram: the layers as they are planned while all tensors are in DRAM and none is in a
            cascade.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        spec: NpuSpec,
    ) -> None:
        """Take the arguments of ``plan_layers``."""
        self._spec = spec
        self.outside = {v.name for v in (*inputs, *outputs)}
        self.in_dram = in_dram(copied_where_needed(layers, inputs, outputs), self.outside, spec)
        self._with_resident = lru_cache(PLANNED_KEPT)(with_resident)

    def plan(self, measure: Measure | None = None, choices: Choices = NO_CHOICES) -> LayerPlan:
        """As ``plan_layers``."""
        planned, outside, spec = self.in_dram, self.outside, self._spec
        check_names(choices, planned)
        plan = self._with_cascades((), choices)
        alone = plan
        cascades = choose_cascades(planned, alone.layers, outside, spec, choices.cascades)
        if cascades:
            plan = self._with_cascades(cascades, choices)
        given = [each for each in cascades if _first_of(each) in choices.cascades]
        if measure is not None and len(given) < len(cascades):
            faster = [
                each
                for each in cascades
                if each in given or measure(plan, each.span, spec) < measure(alone, each.span, spec)
            ]
            if len(faster) < len(cascades):
                plan = self._with_cascades(faster, choices) if faster else alone
        if not choices.cuts:
            return plan
        cut = [
            replan(each, choices.cuts[name])
            if (name := each.job.output.value.name) in choices.cuts
            else each
            for each in plan.layers
        ]
        return replace(plan, layers=cut)

    def _with_cascades(self, cascades: Sequence[Cascade], choices: Choices) -> LayerPlan:
        """The plan with cascades, and the tensors beside them that stay in ACT."""
        layers = list(self.in_dram)
        for cascade in cascades:
            layers[cascade.span.start : cascade.span.stop] = cascade.layers
        within = {name for cascade in cascades for each in cascade.rolling for name in each.names}
        stays = {name: does for name, does in choices.stays.items() if name not in within}
        chosen, residents = choose_residents(
            layers, self.outside, self._spec, cascades, stays, self._with_resident
        )
        return LayerPlan(chosen, residents, cascades)


def check_names(choices: Choices, planned: Iterable[Planned]) -> None:
    """Check that choices are about layers that there are.

    Raises:
        CapacityError: one isn't; names it.
    """
    unknown = {*choices.cuts, *choices.stays, *choices.cascades, *choices.turns.leads}
    unknown -= {each.job.output.value.name for each in planned}
    if unknown:
        raise CapacityError(f"{min(unknown)}: choices are given for it, and no layer makes it")


def in_dram(layers: Sequence[Layer], outside: set[str], spec: NpuSpec) -> list[Planned]:
    """The layers as they are planned while all tensors are in DRAM and none is in a cascade.

    Args:
        layers: in order, those copied that must be.
        outside: names of the program's inputs and outputs.
        spec: the machine.
    """
    return _overlapping(_planned(layers, outside, spec))


def _first_of(cascade: Cascade) -> str:
    """What its first layer makes."""
    return cascade.layers[0].job.output.value.name


def _right_operand(layer: Layer) -> str:
    """Name of a product's right operand, all of which is needed before anything; else ""."""
    if isinstance(layer, Conv2d) and isinstance(layer.right, Factor):
        return layer.right.value.name
    return ""


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
            job = Job(layer, tensors, spec, spec.sram.act.bytes, follows=layer is not layers[0])
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


def _overlapping(planned: Sequence[Planned]) -> list[Planned]:
    """The layers, convolutions planned anew that overlap with layers of the vector unit alone.

    Those read what it makes, or make what it reads.
    """
    touching: dict[str, list[Planned]] = defaultdict(list)
    for each in planned:
        for value in (*each.job.layer.inputs, each.job.layer.output):
            touching[value.name].append(each)
    result = []
    for each in planned:
        job = each.job
        if isinstance(job.layer, Conv2d) and each.cost.array:
            handed = (job.layer.input.name, job.layer.output.name)
            others = [other for name in handed for other in touching[name] if not other.cost.array]
            long = [cost for cost in (o.cost.vector for o in others) if cost >= WORTH_STRIPES]
            beside = sum(long) // 2  # what lies between two layers overlaps with both
            each = plan(replace(job, beside=beside)) if beside else each
        result.append(each)
    return result


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


def _copy(layer: Move) -> Move:
    """A reshape that moves its bytes, pixel by pixel: a row of many pixels may not fit ACT."""
    (piece,) = layer.pieces
    height, width, channels = piece.value.shape
    shape = (height * width, 1, channels)
    source = replace(piece.value, shape=shape)
    piece = Piece.box(source, (0, 0, 0), (1, 1, 1), shape, (0, 0, 0))
    return replace(layer, pieces=(piece,), output=replace(layer.output, shape=shape), reshape=False)


def copied_where_needed(
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
                layer = _copy(layer)
                shared = name
            root[name] = shared
            if name in wanted:
                fixed.add(shared)
        result.append(layer)
    return result
