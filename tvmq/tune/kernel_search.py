"""The search for cuts of the CPU's kernels that take less time, on the clock.

A task is all layers whose kernels are the same but for the values of their constants. Its cuts are
timed by turns with the rule's, so what counts is the ratio of the two in one turn, and of the turns
the median: other load changes it little. What is best is timed once more, over more turns, and kept
only if it wins clearly. Trials go to the tasks that take most time, and less and less to those
where nothing is found. Where several machines time kernels, each has a batch of a task of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median
from typing import Any, Protocol

from targets.cpu.cuts import NO_CUTS, Cut, CutSpace, cut_from_json
from targets.cpu.host import CpuFeatures
from targets.cpu.kernels import cuts_of, make_kernel
from targets.layers import Layer
from tvmq.tune.kernel_clock import Batch, Clock, Turns

BATCH, NEAR = 8, 5
"""Trials of a task before another one is chosen; so many of them near the best so far."""
TURNS, TURNS_TO_CONFIRM = 3, 9
WINS = 0.97
"""Of the rule's time, what a cut may take to be kept."""
PATIENCE = 3
"""Batches without anything better after which a task is left."""

Report = Callable[[int, str], None]
"""Told after each batch: trials so far, and the time saved so far in words."""


class Known(Protocol):
    """Trials of this machine that were made before."""

    def find(self, workload: str, choice: Any) -> int | None:
        """Nanoseconds; 0 if it failed, None if it wasn't made."""

    def best(self, workload: str) -> Any:
        """The fastest choice; None if there is none."""

    def add(self, workload: str, choice: Any, cycles: int, words: str) -> None:
        """Keep a trial."""


@dataclass
class Task:
    """Layers with the same kernel.

    Attributes:
        layer: one of them.
        names: what they make.
        space: what their kernel may be cut like.
        key: what its time depends on, but the cut and the machine.
        rule: nanoseconds by rule.
        ratios: of the rule's time, by cut; infinite where it failed.
        dry: batches in a row that found nothing better.
    """

    layer: Layer
    space: CutSpace
    key: str
    names: list[str] = field(default_factory=list)
    rule: int = 0
    ratios: dict[Cut, float] = field(default_factory=dict)
    dry: int = 0

    @property
    def best(self) -> Cut:
        """The fastest cut so far."""
        return min(self.ratios, key=lambda cut: (self.ratios[cut], cut))

    @property
    def worth(self) -> float:
        """What another batch may be worth."""
        return self.rule * len(self.names) * 0.5**self.dry

    @property
    def nanoseconds(self) -> float:
        """Of all its layers, with the best cut."""
        return self.rule * len(self.names) * min(1.0, self.ratios[self.best])

    def describe(self) -> str:
        """The kernel in words."""
        shapes = " -> ".join(
            "x".join(map(str, value.shape)) for value in (self.layer.inputs[0], self.layer.output)
        )
        return f"{self.layer.kind} {shapes}"


@dataclass(frozen=True)
class TunedKernel:
    """What was found for a task.

    Attributes:
        names: what its layers make.
        words: the kernel in words.
        cut: that is kept; the rule's if nothing won clearly.
        by_rule: whether it is the rule's.
        before: nanoseconds of one of them by rule.
        after: with the cut.
    """

    names: tuple[str, ...]
    words: str
    cut: Cut
    by_rule: bool
    before: int
    after: int

    def as_json(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "makes": list(self.names),
            "kernel": self.words,
            "cut": self.cut.as_json(),
            "by_rule": self.by_rule,
            "nanoseconds": {"before": self.before, "after": self.after},
        }


@dataclass(frozen=True)
class TunedKernels:
    """What was found for the kernels of a network.

    Attributes:
        kernels: those that have a choice.
        trials: how many were made, or known.
        failed: how many of them failed.
    """

    kernels: tuple[TunedKernel, ...]
    trials: int
    failed: int

    @property
    def cuts(self) -> dict[str, Cut]:
        """What takes the place of the rule's cuts, by tensor."""
        return {name: each.cut for each in self.kernels if not each.by_rule for name in each.names}

    @property
    def before(self) -> int:
        """Nanoseconds of these kernels in all, by rule."""
        return sum(each.before * len(each.names) for each in self.kernels)

    @property
    def after(self) -> int:
        """With the cuts that are kept."""
        return sum(each.after * len(each.names) for each in self.kernels)


def tasks_of(layers: Iterable[Layer], host: CpuFeatures) -> list[Task]:
    """The kernels among layers on the CPU that have a choice, equal ones as one task."""
    tasks: dict[str, Task] = {}
    for layer in layers:
        space = cuts_of(layer, host)
        if space is None or len(space.cuts) < 2:
            continue
        kernel = make_kernel(layer, host)
        assert kernel is not None
        shapes = [(array.shape, str(array.dtype)) for array in kernel.constants]
        text = f"{kernel.func.script()}{shapes}"
        key = hashlib.sha256(text.encode()).hexdigest()
        task = tasks.setdefault(key, Task(layer, space, key))
        task.names.append(layer.output.name)
    return list(tasks.values())


def search_kernels(
    tasks: Sequence[Task],
    clock: Clock,
    known: Known,
    trials: int,
    seed: int,
    report: Report = lambda trials, words: None,
    start: Mapping[str, Cut] = NO_CUTS,
) -> TunedKernels:
    """Find cuts for kernels.

    Args:
        tasks: from ``tasks_of``.
        clock: times kernels.
        known: trials of before; new ones are added.
        trials: how many cuts are tried, besides the rule's; 0: the best known ones are.
        seed: of what is drawn.
        report: told after each batch.
        start: cuts of before, by tensor, which are timed beside the rule's.

    Raises:
        TvmqError: a kernel can't be timed.
    """
    search = _Search(clock, known, Random(seed), start)
    search.run(search.begin(task, recall=not trials) for task in tasks)

    def told() -> None:
        before = sum(each.rule * len(each.names) for each in tasks)
        after = sum(each.nanoseconds for each in tasks)
        report(search.trials, f"{100 * (1 - after / before):.1f} % less time in these kernels")

    search.run(search.batches(tasks, trials, told))
    search.run(search.confirm(task) for task in tasks)
    kernels = tuple(search.kernels[task.key] for task in tasks)
    return TunedKernels(kernels, search.trials, search.failed)


_Step = Generator[Batch, list[Turns], None]
"""Something about a task, which goes on whenever what it yields is timed."""


class _Search:
    """What is known so far; steps change it one after the other, whoever times their kernels.

    Attributes:
        trials: that were made, or known.
        failed: of them.
        kernels: what was found, by task.
    """

    def __init__(
        self, clock: Clock, known: Known, random: Random, start: Mapping[str, Cut]
    ) -> None:
        self.clock, self.known, self.random, self.start = clock, known, random, start
        self.trials = self.failed = 0
        self.kernels: dict[str, TunedKernel] = {}
        self._taken = 0  # trials, with those that are being made
        self._busy: set[str] = set()  # tasks that have a batch

    def run(self, steps: Iterator[_Step | None]) -> None:
        """Take steps, as many at once as the clock can, until they have all ended.

        Args:
            steps: each is taken when a machine is free; None: not before another one has ended.
        """
        timed: dict[Batch, _Step] = {}
        while True:
            while len(timed) < self.clock.at_once and (step := next(steps, None)) is not None:
                if batch := next(step, None):
                    timed[batch] = step
                    self.clock.submit(batch)
            if not timed:
                return
            batch, turns = self.clock.done()
            step = timed.pop(batch)
            try:
                following = step.send(turns)
            except StopIteration:
                continue
            timed[following] = step
            self.clock.submit(following)

    def begin(self, task: Task, recall: bool) -> _Step:
        """Time the rule's kernel and that of before; ``recall`` the best that is known, too."""
        rule = task.space.rule
        found = self.known.find(task.key, rule.as_json())
        if not found:
            (turns,) = yield Batch(task.layer, [rule], TURNS)
            found = round(1e9 * median(turns.seconds))
            self.known.add(task.key, rule.as_json(), found, task.describe())
        task.rule, task.ratios[rule] = found, 1.0
        if recall and (best := self.known.best(task.key)) is not None:
            cut = cut_from_json(best)
            nanoseconds = self.known.find(task.key, best)
            if cut in task.space and nanoseconds:
                task.ratios[cut] = nanoseconds / found
        kept = next((self.start[name] for name in task.names if name in self.start), None)
        if kept is not None and kept in task.space and kept not in task.ratios:
            (task.ratios[kept],) = yield from _ratios(task, [kept], TURNS)

    def batches(
        self, tasks: Sequence[Task], trials: int, told: Callable[[], None]
    ) -> Iterator[_Step | None]:
        """Of the tasks that take most time, each time as it is known by then."""
        while left := trials - self._taken:
            promising = [task for task in tasks if task.dry < PATIENCE and task.rule]
            free = [task for task in promising if task.key not in self._busy]
            if not promising:
                return
            task = max(free, key=lambda each: (each.worth, each.key), default=None)
            yield None if task is None else self._batch(task, min(BATCH, left), told)

    def _batch(self, task: Task, size: int, told: Callable[[], None]) -> _Step:
        """Try cuts that were not."""
        cuts = self._next(task, size)
        self._taken += len(cuts)
        self._busy.add(task.key)
        best = min(task.ratios.values())
        made = {cut: self.known.find(task.key, cut.as_json()) for cut in cuts}
        fresh = [cut for cut, found in made.items() if found is None]
        if fresh:
            ratios = yield from _ratios(task, fresh, TURNS)
            for cut, ratio in zip(fresh, ratios, strict=True):
                nanoseconds = 0 if ratio == math.inf else max(1, round(ratio * task.rule))
                made[cut] = nanoseconds
                self.known.add(task.key, cut.as_json(), nanoseconds, task.describe())
        for cut, took in made.items():
            task.ratios[cut] = took / task.rule if took else math.inf
            self.failed += not took
        self.trials += len(cuts)
        found_better = min(task.ratios.values()) < 0.99 * best
        task.dry = 0 if found_better else task.dry + 1
        if not cuts:
            task.dry = PATIENCE
        self._busy.remove(task.key)
        told()

    def confirm(self, task: Task) -> _Step:
        """The best cut if it wins over more turns, or the rule's."""
        rule, cut, ratio = task.space.rule, task.best, 1.0
        if task.ratios[cut] <= WINS:
            (ratio,) = yield from _ratios(task, [cut], TURNS_TO_CONFIRM)
        if ratio > WINS:
            cut, ratio = rule, 1.0
        after = round(ratio * task.rule)
        words = task.describe()
        self.kernels[task.key] = TunedKernel(
            tuple(task.names), words, cut, cut == rule, task.rule, after
        )

    def _next(self, task: Task, size: int) -> list[Cut]:
        """Of the cuts not tried: some near the best, the rest at random."""
        largest = max(cut.pixels * cut.vectors for cut in task.space.cuts)
        left = [
            cut
            for cut in task.space.cuts
            if cut not in task.ratios and 2 * cut.pixels * cut.vectors >= largest
        ]
        near = sorted(left, key=lambda cut: (_distance(cut, task.best), cut))[: min(NEAR, size)]
        others = [cut for cut in left if cut not in near]
        return near + self.random.sample(others, min(size - len(near), len(others)))


def _ratios(
    task: Task, cuts: Sequence[Cut], turns: int
) -> Generator[Batch, list[Turns], list[float]]:
    """Time of each over the rule's in the same turn, the median; infinite if it failed."""
    rule, *others = yield Batch(task.layer, [task.space.rule, *cuts], turns)
    return [
        median(a / b for a, b in zip(each.seconds, rule.seconds, strict=True))
        if each.seconds
        else math.inf
        for each in others
    ]


def _distance(a: Cut, b: Cut) -> float:
    """How far two cuts are from each other, in factors of two."""
    if a.winograd != b.winograd:
        return math.inf
    sizes = zip(
        *((each.rows, each.pixels, each.vectors, each.chunk) for each in (a, b)), strict=True
    )
    return sum(abs(math.log2(x / y)) for x, y in sizes) + (a.flat != b.flat)
