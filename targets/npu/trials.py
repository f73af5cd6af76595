"""Exact cycles of a program under choices, quickly: what is equal to the trial before is kept.

    a structure   what stays in ACT and which layers are in cascades: the plan of all layers
    a cut         one layer of a structure cut in another way, all else as it is

A cut is timed in a window: the layers before and behind, which it overlaps with. What is timed are
the instructions that a build would issue, tokens and all, by the timing model itself. Weights
aren't looked at, and the instructions of a window without a cascade stay in the order of writing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from targets.layers import Layer, Value
from targets.npu.cascade import possible_cascades
from targets.npu.choices import NO_CHOICES, CascadeChoice, Choices
from targets.npu.compiler import (
    Constants,
    Emissions,
    cycles_together,
    issued,
    layer_instructions,
    place_tensors,
    together,
)
from targets.npu.convolution.tile_cost import ConvTiling
from targets.npu.emit.emitted import Place
from targets.npu.kinds.table import Planned, kind_of, replan
from targets.npu.layer_plan import LayerPlan, copied_where_needed, in_dram, plan_layers
from targets.npu.machine.program import CONSTANTS
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.timing import simulate_timing
from targets.npu.resident import may_stay

SPANS_KEPT = 256
"""Layers and cascades whose instructions are remembered."""


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

    def cut(self, layer: int, planned: Planned) -> Structure:
        """The same with one layer cut in another way."""
        layers = list(self.plan.layers)
        layers[layer] = planned
        name = planned.job.output.value.name
        cuts = {**self.choices.cuts, name: planned.choice}
        return replace(
            self, plan=replace(self.plan, layers=layers), choices=replace(self.choices, cuts=cuts)
        )


class Trials:
    """Times one program of one machine under one choice after the other."""

    def __init__(
        self,
        layers: Sequence[Layer],
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        spec: NpuSpec,
    ) -> None:
        """Take the arguments of ``compile_layers``."""
        self.layers, self.inputs, self.outputs, self.spec = layers, inputs, outputs, spec
        self._constants = _AtZero()
        self._emissions = Emissions(SPANS_KEPT)
        self._planned: dict[Hashable, Planned] = {}
        outside = {v.name for v in (*inputs, *outputs)}
        self._outside = outside
        self._in_dram = in_dram(copied_where_needed(layers, inputs, outputs), outside, spec)
        self.rule = self._structure(self._spelt_out())
        self.may_stay = may_stay(self._in_dram, outside)
        self.possible_cascades = possible_cascades(self._in_dram, outside, spec)
        self.made_by = {each.job.output.value.name: n for n, each in enumerate(self._in_dram)}
        self.last_reader = {
            value.name: n for n, each in enumerate(self._in_dram) for value in each.job.layer.inputs
        }

    def _spelt_out(self) -> Choices:
        """The rule's choices, so that its measuring isn't done again."""
        plan = plan_layers(self.layers, self.inputs, self.outputs, self.spec, cycles_together)
        names = [each.job.output.value.name for each in plan.layers]
        cascades = dict.fromkeys(names, CascadeChoice(1, 1))
        for each in plan.cascades:
            last = each.layers[-1].job
            rows = last.stripe[1] if last.stripe is not None else 1
            cascades[names[each.span.start]] = CascadeChoice(len(each.span), rows)
        return replace(NO_CHOICES, cascades=cascades)

    def structure(self, choices: Choices) -> Structure:
        """The plan of all layers by choices.

        Args:
            choices: those about cascades are of all layers that ``rule`` has.

        Raises:
            CapacityError: they can't be made.
        """
        return self._structure(choices)

    def _structure(self, choices: Choices) -> Structure:
        made = plan_layers(self.layers, self.inputs, self.outputs, self.spec, None, choices)
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

    def cut(
        self, structure: Structure, layer: int, choice: ConvTiling | int, *, keep: bool = False
    ) -> Structure:
        """One layer cut in another way.

        Args:
            structure: left as it is.
            layer: its position.
            choice: how it is cut.
            keep: it may be wanted again.

        Raises:
            CapacityError: it can't be cut so.
        """
        planned = replan(structure.plan.layers[layer], choice)
        return structure.cut(layer, self._known(planned) if keep else planned)

    def space(self, structure: Structure, layer: int) -> list[tuple[int, ConvTiling | int]]:
        """All ways to cut a layer with their estimated cycles, the fewest first."""
        planned = structure.plan.layers[layer]
        if planned.idle:
            return []
        kind, job = kind_of(planned.job.layer), planned.job
        space: list[ConvTiling | int] = kind.space(job)
        prices = [kind.price(job, choice) for choice in space]
        return [(prices[n], space[n]) for n in sorted(range(len(space)), key=prices.__getitem__)]

    def window(self, structure: Structure, layers: range) -> range:
        """The layers that a change of some is timed with: one more, or one more cascade, beside."""
        spans = list(together(structure.plan))
        touched = [n for n, span in enumerate(spans) if set(span) & set(layers)]
        first, last = max(0, touched[0] - 1), min(len(spans) - 1, touched[-1] + 1)
        return range(spans[first].start, spans[last].stop)

    def description(
        self, structure: Structure, window: range | None = None, free: int | None = None
    ) -> str:
        """SHA-256 of all that the cycles of a window depend on but the machine.

        Args:
            structure: that the window is of.
            window: None for a whole program, whatever choices it is made by.
            free: a layer whose cut is left out.
        """
        whole = window is None
        layers = (
            self._in_dram if window is None else structure.plan.layers[window.start : window.stop]
        )
        made: dict[str, int] = {}
        parts: list[object] = []
        for n, each in enumerate(layers, 0 if window is None else window.start):
            sources = [n - made[v.name] if v.name in made else 0 for v in each.job.layer.inputs]
            made[each.job.output.value.name] = n
            cut = None if whole or n == free else each.choice
            leaves = each.job.output.value.name in self._outside
            parts.append((kind_of(each.job.layer).form(each.job), sources, leaves, cut))
        if window is not None:
            beside = [r for r in structure.plan.residents if r.last >= window.start]
            parts += [
                (r.address, r.bytes, r.first - window.start, r.last - window.start, r.rolling)
                for r in beside
                if r.first < window.stop
            ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def cycles(self, structure: Structure, window: range | None = None) -> int:
        """Of the whole program, or of some of its layers by themselves.

        Raises:
            CapacityError: the scratchpads of a layer don't fit.
            TimingError: units wait for each other for ever.
        """
        plan = structure.plan
        spans = [span for span in together(plan) if window is None or span.start in window]
        owned = layer_instructions(
            *(plan, spans, structure.places, self._constants, self.spec, self._emissions)
        )
        apart = window is not None and all(len(span) == 1 for span in spans)
        instructions, _ = issued(owned, plan, self.spec, as_written=apart)
        return simulate_timing(instructions, self.spec).total


class _AtZero(Constants):
    """Constants that nobody reads: how long a program takes doesn't depend on where they lie."""

    def add(self, array: np.ndarray) -> Place:
        """All at one place."""
        return Place(CONSTANTS, 0, array.dtype.itemsize, dram=True)
