"""Exact cycles of a program under choices, quickly: what is equal to the trial before is kept.

    a structure   what stays in ACT and which layers are in cascades: the plan of all layers
    cuts, turns   layers of a structure cut in other ways, instructions in another order

A change is timed in a window: with the last instructions of the layers before and the first ones of
those behind, which it overlaps with; in a program of few instructions that is all of it. What is
timed are the instructions that a build would issue, tokens and all, by the timing model itself.
Weights aren't looked at, and the instructions of a window without a cascade stay in the order of
writing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from targets import collector
from targets.layers import Layer, Value
from targets.npu.cascade import possible_cascades
from targets.npu.choices import NO_CHOICES, WRITTEN, CascadeChoice, Choices, Turns
from targets.npu.compiler import (
    Constants,
    Emissions,
    Issued,
    cycles_together,
    issued,
    layer_instructions,
    place_tensors,
    together,
)
from targets.npu.convolution.tile_cost import ConvTiling
from targets.npu.emit.emitted import Place
from targets.npu.kinds.table import Planned, kind_of, replan
from targets.npu.layer_plan import LayerPlan, Planner, check_names
from targets.npu.machine.program import CONSTANTS
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.critical_path import held_up
from targets.npu.price.timing import time_steps
from targets.npu.resident import may_stay
from targets.npu.written import Written

SPANS_KEPT = 256
"""Layers and cascades whose instructions are remembered, and cuts of layers."""
STRUCTURES_KEPT = 8
SMALL = 1000
"""Instructions of a program that is timed as a whole."""
BESIDE = 256
"""Most instructions on either side of what is changed that are timed with it."""


class Window(NamedTuple):
    """What of a program is timed.

    Attributes:
        layers: those that are changed, and what is beside them.
        changed: of these, those that all instructions count of.
    """

    layers: range
    changed: range


class Part(NamedTuple):
    """What a unit does of a layer."""

    layer: int
    unit: int


class Delay(NamedTuple):
    """A part of a layer that waits for what another one has; both could change places."""

    by: Part
    of: Part


@dataclass(frozen=True)
class Structure:
    """A plan of all layers, and where their tensors are.

    Attributes:
        choices: that made it, cascades all spelt out.
        plan: the layers.
        places: of the tensors, by name.
    """

    choices: Choices
    plan: LayerPlan
    places: Mapping[str, Place]


class Trials:
    """Times one program of one machine under one choice after the other."""

    def __init__(
        self,
        layers: Sequence[Layer],
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        spec: NpuSpec,
        rule: Choices | None = None,
    ) -> None:
        """Take the arguments of ``compile_layers``.

        Args:
            layers: as there.
            inputs: likewise.
            outputs: likewise.
            spec: likewise.
            rule: the choices of the attribute of that name, where they are known.
        """
        self.layers, self.inputs, self.outputs, self.spec = layers, inputs, outputs, spec
        self._constants = _AtZero()
        self._emissions = Emissions(SPANS_KEPT)
        self._planned: dict[Hashable, Planned] = {}
        self._uncut: OrderedDict[Hashable, Structure] = OrderedDict()
        self._cuts: OrderedDict[Hashable, Planned] = OrderedDict()
        self._planner = Planner(layers, inputs, outputs, spec)
        self._outside, self._in_dram = self._planner.outside, self._planner.in_dram
        self.rule = self._structure(rule) if rule is not None else self._spelt_out()
        self.may_stay = may_stay(self._in_dram, self._outside)
        self.possible_cascades = possible_cascades(self._in_dram, self._outside, spec)
        self.made_by = {each.job.output.value.name: n for n, each in enumerate(self._in_dram)}
        self.last_reader = {
            value.name: n for n, each in enumerate(self._in_dram) for value in each.job.layer.inputs
        }

    def _spelt_out(self) -> Structure:
        """By the rule's choices, so that its measuring isn't done again."""
        plan = self._planner.plan(cycles_together)
        names = [each.job.output.value.name for each in plan.layers]
        cascades = dict.fromkeys(names, CascadeChoice(1, 1))
        for each in plan.cascades:
            last = each.layers[-1].job
            rows = last.stripe[1] if last.stripe is not None else 1
            cascades[names[each.span.start]] = CascadeChoice(len(each.span), rows)
        made = self._structure(replace(NO_CHOICES, cascades=cascades))
        turns = Turns(self._issued(made).order)
        return replace(made, choices=replace(made.choices, turns=turns))

    def structure(self, choices: Choices) -> Structure:
        """The plan of all layers by choices; quick where they differ in cuts and turns alone.

        Args:
            choices: those about cascades are of all layers that ``rule`` has.

        Raises:
            CapacityError: they can't be made.
        """
        check_names(choices, self._in_dram)
        key = tuple(sorted(choices.stays.items())), tuple(sorted(choices.cascades.items()))
        uncut = self._uncut.get(key)
        if uncut is None:
            uncut = self._structure(Choices({}, choices.stays, choices.cascades))
            self._uncut[key] = uncut
            if len(self._uncut) > STRUCTURES_KEPT:
                self._uncut.popitem(last=False)
        self._uncut.move_to_end(key)
        layers = list(uncut.plan.layers)
        for name, cut in choices.cuts.items():
            n = self.made_by[name]
            layers[n] = self._cut(layers[n], cut)
        return Structure(choices, replace(uncut.plan, layers=layers), uncut.places)

    def _cut(self, planned: Planned, choice: ConvTiling | int) -> Planned:
        if (cut := self._cuts.get((planned, choice))) is None:
            self._cuts[planned, choice] = cut = replan(planned, choice)
            if len(self._cuts) > SPANS_KEPT:
                self._cuts.popitem(last=False)
        self._cuts.move_to_end((planned, choice))
        return cut

    def _structure(self, choices: Choices) -> Structure:
        made = self._planner.plan(choices=choices)
        layers = [self._known(each) for each in made.layers]
        plan = replace(made, layers=layers)
        places, _ = place_tensors(plan, self.inputs, self.outputs, self._constants)
        return Structure(choices, plan, places)

    def _known(self, planned: Planned) -> Planned:
        """The same layer in the same place as it was planned before, if it was."""
        job = planned.job
        key = (
            job.output.value.name,
            planned.choice,
            *(job.act_bytes, job.beside, job.stripe, job.sharing, job.follows, job.spec.digest),
            *(job.tensors[v.name] for v in (*job.layer.inputs, job.layer.output)),
        )
        return self._planned.setdefault(key, planned)

    def space(self, structure: Structure, layer: int) -> list[tuple[int, ConvTiling | int]]:
        """All ways to cut a layer with their estimated cycles, the fewest first."""
        planned = structure.plan.layers[layer]
        if planned.idle:
            return []
        kind, job = kind_of(planned.job.layer), planned.job
        space: list[ConvTiling | int] = kind.space(job)
        prices = [kind.price(job, choice) for choice in space]
        return [(prices[n], space[n]) for n in sorted(range(len(space)), key=prices.__getitem__)]

    @cached_property
    def small(self) -> bool:
        """Whether every trial is of the whole program."""
        return len(self._written(self.rule, list(together(self.rule.plan)))) <= SMALL

    def window(self, structure: Structure, layers: range) -> Window | None:
        """What a change of some layers is timed with: one more, or one more cascade, beside.

        None if that is the whole program.
        """
        if self.small:
            return None
        spans = list(together(structure.plan))
        touched = [n for n, span in enumerate(spans) if set(span) & set(layers)]
        first, last = max(0, touched[0] - 1), min(len(spans) - 1, touched[-1] + 1)
        window = range(spans[first].start, spans[last].stop)
        changed = range(spans[touched[0]].start, spans[touched[-1]].stop)
        return Window(window, changed) if len(window) < len(structure.plan.layers) else None

    def description(
        self, structure: Structure, window: Window | None = None, free: int | None = None
    ) -> str:
        """SHA-256 of all that the cycles of a window depend on but the machine.

        Args:
            structure: that the window is of.
            window: None for a whole program, whatever choices it is made by.
            free: a layer whose cut is left out.
        """
        whole = window is None
        every = range(len(self._in_dram)) if window is None else window.layers
        layers = self._in_dram if whole else structure.plan.layers[every.start : every.stop]
        made: dict[str, int] = {}
        parts: list[object] = []
        for n, each in zip(every, layers, strict=True):
            sources = [n - made[v.name] if v.name in made else 0 for v in each.job.layer.inputs]
            made[each.job.output.value.name] = n
            cut = None if whole or n == free else each.choice
            leaves = each.job.output.value.name in self._outside
            parts.append((kind_of(each.job.layer).form(each.job), sources, leaves, cut))
        if window is not None:
            first, changed = every.start, window.changed
            turns = structure.choices.turns
            parts += [turns.order, *(turns.leads.get(name) for name in made)]
            parts += [changed.start - first, changed.stop - first]
            parts += [
                (r.address, r.bytes, r.first - first, r.last - first, r.rolling)
                for r in structure.plan.residents
                if r.first < every.stop and r.last >= first
            ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def cycles(self, structure: Structure, window: Window | None = None) -> int:
        """Of the whole program, or of a window by itself.

        Raises:
            CapacityError: the scratchpads of a layer don't fit.
            TimingError: units wait for each other for ever.
        """
        plan, turns = structure.plan, structure.choices.turns
        if window is None:
            return self._issued(structure).cycles
        spans = [span for span in together(plan) if span.start in window.layers]
        if all(len(span) == 1 for span in spans):
            turns = replace(turns, order=WRITTEN)
        written = self._written(structure, spans)
        ends = window.changed.start, window.changed.stop
        before, behind = np.searchsorted(written.owners, ends).tolist()
        part = written.part(max(0, before - BESIDE), min(len(written), behind + BESIDE))
        return issued(part, plan, self.spec, turns).cycles

    @collector.paused()
    def held_up(self, structure: Structure) -> list[Delay]:
        """What waits for a unit or the bus that another layer has, on the chain that ends last.

        Raises:
            CapacityError: the scratchpads of a layer don't fit.
            TimingError: units wait for each other for ever.
        """
        made = self._issued(structure)
        steps = made.steps
        units = steps["unit"].tolist()
        parts = [Part(*each) for each in zip(made.owners.tolist(), units, strict=False)]
        pairs = held_up(time_steps(steps, self.spec), steps)
        delays = [Delay(parts[pair.earlier], parts[pair.later]) for pair in pairs]
        return [*dict.fromkeys(each for each in delays if each.by.layer != each.of.layer)]

    def _issued(self, structure: Structure) -> Issued:
        plan = structure.plan
        written = self._written(structure, list(together(plan)))
        return issued(written, plan, self.spec, structure.choices.turns)

    def _written(self, structure: Structure, spans: Sequence[range]) -> Written:
        places, known = structure.places, self._emissions
        return layer_instructions(structure.plan, spans, places, self._constants, self.spec, known)


class _AtZero(Constants):
    """Constants that nobody reads: how long a program takes doesn't depend on where they lie."""

    def add(self, array: np.ndarray) -> Place:
        """All at one place."""
        return Place(CONSTANTS, 0, array.dtype.itemsize, dram=True)
