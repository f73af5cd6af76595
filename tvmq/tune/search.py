"""The search for choices that make a program faster than the compiler's rules do.

    structures  tensors that might stay in ACT or not, cascades or other stripes of them
    cuts        task by task; a task is all layers that are alike: first the best by estimate, then
                neighbours of the best so far and some at random
    turns       other orders of issue, once; instructions of layers and units issued earlier or
                later: mostly such as wait for a unit or the bus on the chain that ends last, and
                what they wait for, which is the neighbourhood of job shop scheduling
    joins       what was of use to one of a batch and to another

Each batch is made from the best program so far. A trial is timed exactly, in a window of layers;
the best of a batch are then tried in the whole program, and the fastest is kept if it is faster
than before, so that the result is never slower than the rule's program. Cuts go to the tasks that
wait most.

The same trials with the same seed give the same result, in any number of processes or servers:
nothing depends on the clock, and a trial that is known from records counts as if it had been made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from random import Random
from typing import Any, NamedTuple, Protocol

from targets.npu.choices import (
    NO_CHOICES,
    ORDERS,
    CascadeChoice,
    Choices,
    Leads,
    Turns,
    cut_as_json,
)
from targets.npu.convolution.tile_cost import ConvTiling
from targets.npu.kinds.table import kind_of
from targets.npu.trials import Delay, Part, Structure, Trials, Window
from tvmq.tune.processes import Processes
from tvmq.tune.rpc_tracker import RpcTracker
from tvmq.tune.trial import Trial
from tvmq.tune.workers import Lost, Workers

BATCH = 8
"""Trials that are made from the same program."""
ROUND = 4
"""Tasks, of as many trials each, before anything is tried in the whole of a large program."""
CHECKED = 3
"""Of those, how many are tried in a large program one by one, if all together are of no use."""
NEIGHBOURS = 12
"""Cuts nearest to the best of which neighbours are drawn."""
LONGEST_LEAD = 6
"""The logarithm of most instructions by which one is issued earlier."""
PATIENCE = 6
"""Batches of turns in a row that are of no use, after which they come seldom."""
PLAUSIBLE = 1.5
"""A cut is tried if it takes at most so many times the cycles of the best, by estimate."""


@dataclass(frozen=True)
class Mix:
    """What batches are, and what one of cuts is made of; the rest of it is drawn at random.

    Attributes:
        turns: of so many batches, one is of turns, as long as those are of use.
        structures: likewise of structures.
        first: of a task's first batch, the best by estimate.
        near: of later ones, neighbours of the best so far.
        by_estimate: of later ones, the next by estimate.
        delays: the share of turns that change what waits on the chain that ends last, or what that
            waits for.
    """

    turns: int = 2
    structures: int = 4
    first: int = BATCH
    near: int = 4
    by_estimate: int = 2
    delays: float = 0.75


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


class _Change(NamedTuple):
    """Something else than in the best program so far.

    Attributes:
        name: of the tensor that it is about.
        choices: what is other.
        layers: that it concerns.
        likewise: of a cut, names of other layers that it may be good for.
        uncut: names of layers that find other memory or stripes, whose cuts are the rule's again.
    """

    name: str
    choices: Choices
    layers: range
    likewise: tuple[str, ...] = ()
    uncut: frozenset[str] = frozenset()

    @property
    def about(self) -> tuple[str, bool]:
        """Equal for changes of which only one can be."""
        return self.name, bool(self.choices.turns)

    @property
    def names(self) -> set[str]:
        """Of all that is other."""
        made = self.choices
        return {*made.cuts, *made.stays, *made.cascades, *made.turns.leads, self.name}

    @property
    def wider(self) -> _Change | None:
        """The same cut in all layers that it may be good for."""
        cut = self.choices.cuts.get(self.name)
        if cut is None or not self.likewise:
            return None
        return self._replace(choices=Choices(dict.fromkeys((self.name, *self.likewise), cut)))


@dataclass
class _Task:
    """Layers that are alike.

    Attributes:
        layers: their positions; the first one is timed.
        space: cuts to try, by estimate; None where they were not looked for.
        loses: estimated cycles of all that are no work of the unit that works most.
        tried: cuts.
        stale: batches since the last one that was of use.
    """

    layers: list[int]
    space: list[Cut] | None = None
    loses: int = 0
    tried: set[Cut] = field(default_factory=set)
    stale: int = 0

    @property
    def worth(self) -> float:
        """What another batch promises."""
        left = self.space is None or len(self.tried) < len(self.space)
        return self.loses / (1 + self.stale) ** 2 if left else 0.0


class _Job(NamedTuple):
    """A trial, and how records name it."""

    trial: Trial
    workload: str
    choice: Any
    words: str


def search(
    trials: Trials,
    budget: int,
    seed: int,
    known: Known,
    report: Report | None = None,
    mix: Mix | None = None,
    processes: Processes | None = None,
    tracker: RpcTracker | None = None,
    lost: Lost = lambda why: None,
) -> Found:
    """Look for faster choices.

    Args:
        trials: of the program.
        budget: how many trials; those that are known count.
        seed: of all that is random.
        known: gets every trial, and is asked before one is made.
        report: told of each.
        mix: of batches.
        processes: that make trials beside this one; None: it makes them alone.
        tracker: of servers that make them instead; None: they are made here.
        lost: told when none of these is left, and the rest is made here.
    """
    with Workers(trials, processes, tracker, lost) as workers:
        return Search(trials, workers, budget, seed, known, report, mix or Mix()).run()


class Search:
    """One search. What it tries of a task's cuts, another may override."""

    def __init__(
        self,
        trials: Trials,
        workers: Workers,
        budget: int,
        seed: int,
        known: Known,
        report: Report | None,
        mix: Mix,
    ) -> None:
        self.mix, self.workers = mix, workers
        self.trials, self.budget, self.known, self.report = trials, budget, known, report
        self.random = Random(seed)
        self.base = trials.rule
        self.program = trials.description(trials.rule)
        # Not by a record: what none may be slower than.
        self.before = self.total = trials.cycles(trials.rule)
        self.failed = 0
        self.best: list[int] = []
        self._spaces: dict[Hashable, list[Cut]] = {}
        self._turned = False
        self._held_up: tuple[Structure | None, list[Delay]] = None, []
        self.size = BATCH if trials.small else BATCH * ROUND

    def run(self) -> Found:
        """Look for faster choices until the trials are used up."""
        tasks: dict[tuple[Hashable, int], _Task] = {}
        structures, stale = self._structures(), 0
        for number in count(1):
            if len(self.best) >= self.budget:
                break
            batch: list[_Change] = []
            if number % self.mix.structures == 0:
                batch = list(islice(structures, self.size))
            elif number % self.mix.turns == 0 and (stale < PATIENCE or number % PATIENCE == 0):
                stale = 0 if self._try(self._turns()) else stale + 1
                continue
            chosen = [] if batch else self._chosen(tasks)
            batch = batch or [cut for task in chosen for cut in self._cuts(task)]
            accepted = self._try(batch or list(islice(structures, self.size)) or self._turns())
            for task in chosen:
                names = {self._name(n) for n in task.layers}
                task.stale = 0 if names & accepted else task.stale + 1
        useful = self.total < self.before
        found = self.choices if useful else NO_CHOICES
        return Found(found, self.before, self.total, self.failed, tuple(self.best))

    @property
    def choices(self) -> Choices:
        """Those of the best program, without cascades that are the rule's anyway."""
        found = self.base.choices
        changed = found.stays or found.cascades != self.trials.rule.choices.cascades
        return found if changed else replace(found, cascades={})

    # --- batches

    def _try(self, batch: Sequence[_Change]) -> set[str]:
        """Time changes in their windows, the best of them in the whole program, and keep one.

        Returns:
            What a change is about that made the program faster.
        """
        batch = batch[: self.budget - len(self.best)]
        timed = self._timed(batch)
        for _, cycles in timed:
            self._count(cycles)
        gains = [old - new if new else 0 for old, new in timed]
        order = sorted(range(len(batch)), key=lambda n: -gains[n])
        better = [batch[n] for n in order if gains[n] > 0]
        if self.trials.small:
            even = [each for each, (_, new) in _pairs(batch, timed) if new == self.total]
            found = self._fastest(better) or [(self.total, e) for e in even if e.choices.turns][:1]
            joined = _joined(better)
            if joined and len(self.best) < self.budget:
                found = sorted([*found, *self._fastest(joined)], key=lambda each: each[0])
                self._count(found[0][0])
        else:
            wide = [change.wider or change for change in better]
            found = self._fastest([*wide[:1], *_joined(wide), *_joined(better)])
            if not found or found[0][0] >= self.total:
                found = self._fastest([*better[:CHECKED], *wide[1:CHECKED]])
        if not found or found[0][0] > self.total:
            return set()
        (cycles, change), before_it = found[0], self.total
        self.total = self.best[-1] = cycles
        self.base = self.trials.structure(_with(self.base.choices, change))
        return change.names if cycles < before_it else set()

    def _timed(self, batch: Sequence[_Change]) -> list[tuple[int, int]]:
        """Cycles of each change's window, without it and with it; 0 if it can't be made."""
        windows = [self.trials.window(self.base, change.layers) for change in batch]
        before = [self.total] * len(batch)
        if not self.trials.small:
            pairs = _pairs(batch, windows)
            before = self._times([self._job(*each, as_it_is=True) for each in pairs])
        after = self._times([self._job(*each) for each in _pairs(batch, windows)])
        return list(_pairs(before, after))

    def _fastest(self, changes: Sequence[_Change]) -> list[tuple[int, _Change]]:
        """(cycles of the whole program, change), the fastest first, of those that can be made."""
        checked = _pairs(self._whole(changes), changes)
        return sorted((each for each in checked if each[0]), key=lambda each: each[0])

    def _whole(self, changes: Sequence[_Change]) -> list[int]:
        """Cycles of the whole program with each change; 0 where there is none."""
        return self._times([self._job(change, None) for change in changes])

    def _job(self, change: _Change, window: Window | None, *, as_it_is: bool = False) -> _Job:
        base = self.base.choices
        choices = base if as_it_is else _with(base, change)
        trial = Trial(choices, window)
        if window is None:
            return _Job(trial, self.program, choices.as_json(), "the program")
        cut = change.choices.cuts.get(change.name)
        choice: Any
        if cut is None:
            choice = None if as_it_is else self._relative(change, window)
            workload = self.trials.description(self.base, window)
        else:
            n = self.trials.made_by[change.name]
            choice = cut_as_json(self.base.plan.layers[n].choice if as_it_is else cut)
            workload = self.trials.description(self.base, window, n)
        return _Job(trial, workload, choice, f"around {change.name}")

    def _relative(self, change: _Change, window: Window) -> dict[str, Any]:
        """What is other, by positions in a window, whose description has no names."""
        content = change.choices.as_json()
        by_name = [content["stays"], content["cascades"], content["turns"].pop("leads")]
        made = [
            {
                str(self.trials.made_by[name] - window.layers.start): each[name]
                for name in sorted(each)
            }
            for each in by_name
        ]
        return dict(_pairs(("stays", "cascades", "leads"), made))

    def _times(self, jobs: Sequence[_Job]) -> list[int]:
        """Cycles of trials; 0 of those that can't be made."""
        missing: dict[tuple[str, str], _Job] = {}
        for job in jobs:
            if self.known.find(job.workload, job.choice) is None:
                missing.setdefault((job.workload, json.dumps(job.choice, sort_keys=True)), job)
        made = self.workers.cycles([job.trial for job in missing.values()])
        for job, cycles in _pairs(missing.values(), made):
            self.known.add(job.workload, job.choice, cycles, job.words)
        return [self.known.find(job.workload, job.choice) or 0 for job in jobs]

    def _count(self, cycles: int) -> None:
        self.failed += not cycles
        self.best.append(self.total)
        if self.report:
            self.report(len(self.best), self.budget, self.before, self.total)

    # --- structures

    def _structures(self) -> Iterator[_Change]:
        """Each from what is the base by then."""
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

    def _stay(self, name: str) -> _Change | None:
        """A tensor that stays goes through DRAM instead, and the other way round."""
        here = [each for each in self.base.plan.residents if name in each.names]
        if any(each.rolling for each in here):
            return None
        last = max(self.trials.last_reader[name], *(each.last for each in here), 0)
        layers = range(self.trials.made_by[name], last + 1)
        uncut = frozenset(map(self._name, layers))
        return _Change(name, Choices(stays={name: not here}), layers, uncut=uncut)

    def _cascade(self, name: str, choice: CascadeChoice) -> _Change:
        """Layers work together, or don't; cascades that are in the way are taken apart."""
        first = self.trials.made_by[name]
        span = range(first, first + choice.layers)
        touched = [each.span for each in self.base.plan.cascades if set(each.span) & set(span)]
        concerned = range(
            min(span.start, *(each.start for each in touched), first),
            max(span.stop, *(each.stop for each in touched), first),
        )
        cascades = {self._name(n): CascadeChoice(1, 1) for n in concerned}
        choices = Choices(cascades={**cascades, name: choice})
        return _Change(name, choices, concerned, uncut=frozenset(cascades))

    def _name(self, layer: int) -> str:
        return self.base.plan.layers[layer].job.output.value.name

    # --- turns

    def _turns(self) -> list[_Change]:
        """Other leads of some layers; and once the other orders."""
        working = [n for n, each in enumerate(self.base.plan.layers) if not each.idle]
        batch = []
        if not self._turned:
            self._turned = True
            every = range(len(self.base.plan.layers))
            now = self.base.choices.turns.order
            others = [Choices(turns=Turns(order)) for order in ORDERS if order != now]
            batch += [_Change("", order, every) for order in others]
        delays = self._delays()
        while len(batch) < self.size:
            several = self.random.choice((1, 1, 2, 3))
            if delays and self.random.random() < self.mix.delays:
                count = several if self.trials.small else 1
                chosen = [self._swapped(self.random.choice(delays)) for _ in range(count)]
            else:
                chosen = self._drawn(working, several)
            leads: dict[str, Leads] = {}
            for part, lead in chosen:
                name = self._name(part.layer)
                old = leads.get(name) or self.base.choices.turns.leads.get(name, Leads())
                leads[name] = old._replace(**{Leads._fields[part.unit]: lead})
            changed = [part.layer for part, _ in chosen]
            layers = range(min(changed), max(changed) + 1)
            name = self._name(changed[0])
            batch.append(_Change(name, Choices(turns=Turns(leads=leads)), layers))
        return batch

    def _drawn(self, working: Sequence[int], several: int) -> list[tuple[Part, int]]:
        """Parts of layers and leads, at random."""
        first = self.random.randrange(len(working))
        chosen = (
            self.random.choices(working, k=several)
            if self.trials.small
            else working[first : first + several]
        )
        found = []
        for n in chosen:
            lead = self.random.choice((-1, 1)) * 2 ** self.random.randint(1, LONGEST_LEAD)
            found.append((Part(n, self.random.randrange(len(Leads._fields))), lead))
        return found

    def _swapped(self, delay: Delay) -> tuple[Part, int]:
        """What waits comes earlier than it does, or what it waits for later."""
        earlier = self.random.random() < 0.5
        part = delay.of if earlier else delay.by
        leads = self.base.choices.turns.leads.get(self._name(part.layer), Leads())
        lead = 2 ** self.random.randint(1, LONGEST_LEAD)
        return part, leads[part.unit] + (lead if earlier else -lead)

    def _delays(self) -> list[Delay]:
        """Of the best program so far."""
        known, delays = self._held_up
        if known is not self.base:
            delays = self.trials.held_up(self.base)
            self._held_up = self.base, delays
        return delays

    # --- cuts

    def _chosen(self, tasks: dict[tuple[Hashable, int], _Task]) -> list[_Task]:
        """Those that promise most."""
        now: dict[tuple[Hashable, int], list[int]] = {}
        for n, each in enumerate(self.base.plan.layers):
            if not each.idle:
                form = kind_of(each.job.layer).form(each.job)
                now.setdefault((form, n if self.trials.small else 0), []).append(n)
        for key, layers in now.items():
            task = tasks.setdefault(key, _Task(layers))
            planned = [self.base.plan.layers[n].cost for n in layers]
            loses = [max(c.cycles - max(c.array, c.vector), c.cycles // 16, 1) for c in planned]
            task.layers, task.loses = layers, sum(loses)
        worth = sorted((tasks[key] for key in now), key=lambda task: -task.worth)
        return [task for task in worth[: self.size // BATCH] if task.worth]

    def _space(self, form: Hashable, layer: int) -> list[Cut]:
        if form not in self._spaces:
            prices = self.trials.space(self.base, layer)
            most = PLAUSIBLE * min((price for price, _ in prices), default=0)
            self._spaces[form] = [cut for price, cut in prices if price <= most]
        return self._spaces[form]

    def _cuts(self, task: _Task) -> list[_Change]:
        """Some cuts of a task."""
        first, *others = task.layers
        name, current = self._name(first), self.base.plan.layers[first].choice
        if task.space is None:
            form = kind_of(self.base.plan.layers[first].job.layer).form
            task.space = self._space(form(self.base.plan.layers[first].job), first)
        chosen = self._candidates(task, task.space, current)
        task.tried |= {current, *chosen}
        names = [self._name(n) for n in others]
        return [
            _Change(name, Choices({name: cut}), range(first, first + 1), tuple(names))
            for cut in chosen
        ]

    def _candidates(self, task: _Task, space: list[Cut], current: Cut) -> list[Cut]:
        left = [cut for cut in space if cut not in task.tried and cut != current]
        mix = self.mix if task.tried else Mix(near=0, by_estimate=self.mix.first)
        nearest = sorted(left, key=lambda cut: _distance(cut, current))[:NEIGHBOURS]
        chosen = self.random.sample(nearest, min(mix.near, len(nearest)))
        chosen += [cut for cut in left if cut not in chosen][: mix.by_estimate]
        others = [cut for cut in left if cut not in chosen]
        return chosen + self.random.sample(others, min(BATCH - len(chosen), len(others)))


_pairs = partial(zip, strict=True)


def _with(base: Choices, change: _Change) -> Choices:
    """The choices with a change; where it is one of structure, cuts beside it are the rule's."""
    other = change.choices
    turns = Turns(other.turns.order or base.turns.order, {**base.turns.leads, **other.turns.leads})
    cuts = {name: cut for name, cut in base.cuts.items() if name not in change.uncut}
    return Choices(
        {**cuts, **other.cuts},
        {**base.stays, **other.stays},
        {**base.cascades, **other.cascades},
        turns,
    )


def _joined(changes: Sequence[_Change]) -> list[_Change]:
    """All of some changes as one, of those about the same the first; none if there is one alone."""
    several = {change.about: change for change in reversed(changes)}
    if len(several) < 2:
        return []
    made = NO_CHOICES
    for each in several.values():
        made = _with(made, each)
    layers = [each.layers for each in several.values()]
    span = range(min(each.start for each in layers), max(each.stop for each in layers))
    uncut = frozenset().union(*(each.uncut for each in several.values())) - set(made.cuts)
    return [_Change(changes[0].name, made, span, uncut=uncut)]


def _distance(one: Cut, other: Cut) -> float:
    """How many doublings lie between the sizes of two cuts."""
    if isinstance(one, int) or isinstance(other, int):
        return abs(math.log2(one / other)) if isinstance(one, int) and isinstance(other, int) else 9
    sizes = zip(vars(one).values(), vars(other).values(), strict=True)
    return sum(abs(math.log2((1 + a) / (1 + b))) for a, b in sizes)
