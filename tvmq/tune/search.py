"""The search for choices that make a program faster than the compiler's rules do.

    structures  each tensor that might stay in ACT or not, each cascade or other stripes of it
    cuts        task by task; a task is all layers that are alike: first the best by estimate, then
                neighbours of the best so far and some at random

Each trial is timed exactly, in a window of layers. What is better there is tried in the whole
program and kept only if that is faster, so that the result is never slower than the rule's program.
Where trials go is decided by what a task loses, so the layers that wait most get most of them.

The same trials with the same seed give the same result: nothing depends on the clock, and a trial
that is known from records counts as if it had been made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Protocol

from targets.errors import CapacityError, TimingError
from targets.npu.choices import CascadeChoice, Choices, cut_as_json
from targets.npu.convolution.tile_cost import ConvTiling
from targets.npu.kinds.table import kind_of
from targets.npu.trials import Structure, Trials

FOR_STRUCTURES = 4
"""One part in so many of the trials is for structures, at most."""
BATCH = 8
"""Trials of a task before the next one is chosen."""
NEIGHBOURS = 12
"""Cuts nearest to the best of which neighbours are drawn."""
PLAUSIBLE = 1.5
"""A cut is tried if it takes at most so many times the cycles of the best, by estimate."""


@dataclass(frozen=True)
class Mix:
    """What a batch is made of; the rest of it is drawn at random.

    Attributes:
        first: of a task's first batch, the best by estimate.
        near: of later ones, neighbours of the best so far.
        by_estimate: of later ones, the next by estimate.
    """

    first: int = BATCH
    near: int = 4
    by_estimate: int = 2


Cut = ConvTiling | int
Report = Callable[[int, int, int, int], None]
"""Told after each trial: trials so far, of how many, cycles by rule, fewest cycles so far."""


class Known(Protocol):
    """Trials of this machine that were made before."""

    def find(self, workload: str, choice: Any) -> int | None:
        """Cycles; 0 of a trial that failed, None of one that wasn't made."""

    def add(self, workload: str, choice: Any, cycles: int, words: str) -> None:
        """Keep one; 0 cycles if it failed. ``words`` say to people what was timed."""


@dataclass(frozen=True)
class Found:
    """What a search gives.

    Attributes:
        choices: that differ from the rule's.
        before: cycles of the rule's program.
        after: of that by the choices; never more.
        failed: trials whose choice could not be made.
        best: fewest cycles of the whole program after each trial.
    """

    choices: Choices
    before: int
    after: int
    failed: int = 0
    best: tuple[int, ...] = ()

    @property
    def steps(self) -> list[tuple[int, int]]:
        """(trials, cycles) wherever a trial was of use."""
        before = (self.before, *self.best)
        return [(n, best) for n, best in enumerate(self.best, 1) if best < before[n - 1]]


@dataclass
class _Task:
    """Layers that are alike.

    Attributes:
        layers: their positions; the first one is timed.
        space: cuts to try, by estimate.
        loses: estimated cycles of all that are no work of the unit that works most.
        cycles: by cut, in the window.
        stale: batches since the last one that was of use.
        best: the cut with the fewest cycles.
    """

    layers: list[int]
    space: list[Cut]
    loses: int
    best: Cut
    cycles: dict[Cut, int] = field(default_factory=dict)
    stale: int = 0

    @property
    def worth(self) -> float:
        """What another batch promises."""
        left = len(self.cycles) < len(self.space)
        return self.loses / (1 + self.stale) ** 2 if left else 0.0


def search(
    trials: Trials,
    budget: int,
    seed: int,
    known: Known,
    report: Report | None = None,
    mix: Mix | None = None,
) -> Found:
    """Look for faster choices.

    Args:
        trials: of the program.
        budget: how many trials; those that are known count.
        seed: of all that is random.
        known: gets every trial, and is asked before one is made.
        report: told of each.
        mix: of batches.
    """
    return _Search(trials, budget, seed, known, report, mix or Mix()).run()


class _Search:
    def __init__(
        self,
        trials: Trials,
        budget: int,
        seed: int,
        known: Known,
        report: Report | None,
        mix: Mix,
    ) -> None:
        self.mix = mix
        self.trials, self.budget, self.known, self.report = trials, budget, known, report
        self.random = Random(seed)
        self.base = trials.rule
        self.program = trials.description(trials.rule)
        # Not by a record: what none may be slower than.
        self.before = self.total = trials.cycles(trials.rule)
        self.failed = 0
        self.best: list[int] = []

    def run(self) -> Found:
        for change in self._structures():
            if len(self.best) >= self.budget // FOR_STRUCTURES:
                break
            self._try_structure(*change)
        tasks = self._tasks()
        while len(self.best) < self.budget:
            task = max(tasks, key=lambda task: task.worth, default=None)
            if task is None or not task.worth:
                break
            self._batch(task)
        return Found(self.choices, self.before, self.total, self.failed, tuple(self.best))

    @property
    def choices(self) -> Choices:
        """Those of the best program, without those that are the rule's anyway."""
        found = self.base.choices
        changed = found.stays or found.cascades != self.trials.rule.choices.cascades
        return found if changed else replace(found, cascades={})

    # --- times

    def _whole(self, structure: Structure) -> int:
        """Cycles of the whole program; 0 if there is none."""
        choice = structure.choices.as_json()
        return self._timed(self.program, choice, "the program", lambda: (structure, None))

    def _timed(
        self,
        workload: str,
        choice: Any,
        words: str,
        make: Callable[[], tuple[Structure, range | None]],
    ) -> int:
        cycles = self.known.find(workload, choice)
        if cycles is None:
            try:
                cycles = self.trials.cycles(*make())
            except (CapacityError, TimingError):
                cycles = 0
            self.known.add(workload, choice, cycles, words)
        return cycles

    def _count(self, cycles: int) -> None:
        self.failed += not cycles
        self.best.append(self.total)
        if self.report:
            self.report(len(self.best), self.budget, self.before, self.total)

    def _accept(self, structure: Structure) -> bool:
        """Take it if the whole program is faster by it."""
        cycles = self._whole(structure)
        if not 0 < cycles < self.total:
            return False
        self.base, self.total = structure, cycles
        self.best[-1] = cycles
        return True

    # --- structures

    def _structures(self) -> Iterator[tuple[str, Choices, range]]:
        """(what changes, choices, layers concerned), each from what is the base by then."""
        stays = list(self.trials.may_stay)
        cascades = list(self.trials.possible_cascades)
        self.random.shuffle(stays)
        self.random.shuffle(cascades)
        taken = {cascade.span.start for cascade in self.base.plan.cascades}
        cascades.sort(key=lambda each: self.trials.made_by[each[0]] not in taken)
        for start in sorted(taken):
            name = self.base.plan.layers[start].job.output.value.name
            cascades.insert(0, (name, CascadeChoice(1, 1)))
        for n in range(max(len(stays), len(cascades))):
            for name in stays[n : n + 1]:
                if (change := self._stay(name)) is not None:
                    yield change
            for name, choice in cascades[n : n + 1]:
                if self.base.choices.cascades[name] != choice:
                    yield self._cascade(name, choice)

    def _stay(self, name: str) -> tuple[str, Choices, range] | None:
        """A tensor that stays goes through DRAM instead, and the other way round."""
        here = [each for each in self.base.plan.residents if name in each.names]
        if any(each.rolling for each in here):
            return None
        choices = self.base.choices
        changed = replace(choices, stays={**choices.stays, name: not here})
        last = max(self.trials.last_reader[name], *(each.last for each in here), 0)
        return name, changed, range(self.trials.made_by[name], last + 1)

    def _cascade(self, name: str, choice: CascadeChoice) -> tuple[str, Choices, range]:
        """Layers work together, or don't; cascades that are in the way are taken apart."""
        first = self.trials.made_by[name]
        span = range(first, first + choice.layers)
        touched = [each.span for each in self.base.plan.cascades if set(each.span) & set(span)]
        concerned = range(
            min(span.start, *(each.start for each in touched), first),
            max(span.stop, *(each.stop for each in touched), first),
        )
        cascades = dict(self.base.choices.cascades)
        for n in concerned:
            cascades[self.base.plan.layers[n].job.output.value.name] = CascadeChoice(1, 1)
        cascades[name] = choice
        return name, replace(self.base.choices, cascades=cascades), concerned

    def _try_structure(self, name: str, choices: Choices, concerned: range) -> None:
        old = self.base
        window = self.trials.window(old, concerned)
        workload = self.trials.description(old, window)
        before = self._timed(workload, None, f"around {name}", lambda: (old, window))
        made: list[Structure] = []

        def new() -> Structure:
            if not made:
                made.append(self.trials.structure(choices))
            return made[0]

        choice = {"structure": name, **_difference(old.choices, choices)}
        after = self._timed(workload, choice, f"around {name}", lambda: (new(), window))
        self._count(after)
        if 0 < after < before:
            self._accept(new())

    # --- cuts

    def _tasks(self) -> list[_Task]:
        """The layers of the base by what they have in common."""
        groups: dict[Hashable, list[int]] = {}
        for n, each in enumerate(self.base.plan.layers):
            if not each.idle:
                form = kind_of(each.job.layer).form(each.job)
                groups.setdefault((form, each.choice), []).append(n)
        tasks = []
        for layers in groups.values():
            planned = self.base.plan.layers[layers[0]]
            prices = self.trials.space(self.base, layers[0])
            most = PLAUSIBLE * min((price for price, _ in prices), default=0)
            space = [cut for price, cut in prices if price <= most and cut != planned.choice]
            cost = planned.cost
            loses = cost.cycles - max(cost.array, cost.vector)
            loses = max(loses, cost.cycles // 16, 1) * len(layers)
            tasks.append(_Task(layers, space, loses, planned.choice))
        return tasks

    def _batch(self, task: _Task) -> None:
        """Try some cuts of a task, then the best of them in the whole program."""
        layer = task.layers[0]
        base = self.base
        window = self.trials.window(base, range(layer, layer + 1))
        workload = self.trials.description(base, window, layer)
        current = base.plan.layers[layer]
        name = current.job.output.value.name
        before = self._timed(
            workload, cut_as_json(current.choice), f"around {name}", lambda: (base, window)
        )
        tried = []
        for cut in self._candidates(task)[: self.budget - len(self.best)]:
            cycles = self._timed(
                workload,
                cut_as_json(cut),
                f"around {name}",
                lambda cut=cut: (self.trials.cut(base, layer, cut), window),  # type: ignore[misc]
            )
            task.cycles[cut] = cycles or 2 * before
            tried.append(cut)
            self._count(cycles)
        best = min(tried, key=task.cycles.__getitem__)
        if task.cycles[best] < task.cycles.get(task.best, before):
            task.best = best
        useful = task.cycles[best] < before and self._accept_cut(task, best)
        task.stale = 0 if useful else task.stale + 1

    def _accept_cut(self, task: _Task, cut: Cut) -> bool:
        """In all layers of the task, or else in the one that was timed."""
        every = self._with(task.layers, cut)
        if self._accept(every):
            return True
        return len(task.layers) > 1 and self._accept(self._with(task.layers[:1], cut))

    def _with(self, layers: list[int], cut: Cut) -> Structure:
        structure = self.base
        for n in layers:
            try:
                structure = self.trials.cut(structure, n, cut, keep=True)
            except CapacityError:  # alike but for what is left of a memory
                continue
        return structure

    def _candidates(self, task: _Task) -> list[Cut]:
        left = [cut for cut in task.space if cut not in task.cycles]
        mix = self.mix if task.cycles else Mix(near=0, by_estimate=self.mix.first)
        nearest = sorted(left, key=lambda cut: _distance(cut, task.best))[:NEIGHBOURS]
        chosen = self.random.sample(nearest, min(mix.near, len(nearest)))
        chosen += [cut for cut in left if cut not in chosen][: mix.by_estimate]
        others = [cut for cut in left if cut not in chosen]
        return chosen + self.random.sample(others, min(BATCH - len(chosen), len(others)))


def _distance(one: Cut, other: Cut) -> float:
    """How many doublings lie between the sizes of two cuts."""
    if isinstance(one, int) or isinstance(other, int):
        return abs(math.log2(one / other)) if isinstance(one, int) and isinstance(other, int) else 9
    sizes = zip(vars(one).values(), vars(other).values(), strict=True)
    return sum(abs(math.log2((1 + a) / (1 + b))) for a, b in sizes)


def _difference(old: Choices, new: Choices) -> dict[str, Any]:
    """What is other than before."""

    def changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
        return {name: other[name] for name in sorted(other) if one.get(name) != other[name]}

    cascades = changed(old.cascades, new.cascades)
    return {
        "stays": changed(old.stays, new.stays),
        "cascades": {name: list(each) for name, each in cascades.items()},
    }
