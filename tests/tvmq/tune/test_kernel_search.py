"""The search for cuts of kernels, by a clock that tells what the test says."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest
from cpu_convolutions import conv
from cpu_kernels import features

from targets.cpu.instruction_sets import AVX2
from tvmq.tune.kernel_clock import OneAtATime, Turns
from tvmq.tune.kernel_search import BATCH, WINS, search_kernels, tasks_of
from tvmq.tune.records import TRIALS, Records
from tvmq.tune.tune_kernels import TimedCpu

HOST = features(AVX2)
SQUARE = conv()
SEVERAL = [conv(), conv(k=32), conv(k=64)]


class Clock(OneAtATime):
    """Seconds by cut, twice as long in every second turn, as on a busy machine."""

    machine = "a clock of tests"

    def __init__(self, seconds, fails=lambda cut: False):
        super().__init__()
        self.seconds, self.fails = seconds, fails
        self.asked = []

    def timed(self, batch):
        self.asked += batch.cuts
        return [
            Turns((), "it failed")
            if self.fails(cut)
            else Turns(tuple(self.seconds(cut) * (1 + turn % 2) for turn in range(batch.turns)))
            for cut in batch.cuts
        ]


class Several:
    """A clock of some machines, of which any may be the next one that is done."""

    machine = "a clock of tests"

    def __init__(self, at_once, seed=0):
        self.at_once, self.random = at_once, Random(seed)
        self.running, self.most = [], 0

    def submit(self, batch):
        assert batch.layer not in [each.layer for each in self.running]
        self.running.append(batch)
        self.most = max(self.most, len(self.running))
        assert len(self.running) <= self.at_once

    def done(self):
        batch = self.running.pop(self.random.randrange(len(self.running)))
        return batch, [Turns((far(cut),) * batch.turns) for cut in batch.cuts]


def far(cut) -> float:
    """Seconds that are least at a cut that is not the rule's."""
    return 1e-4 * (1 + abs(math.log2(cut.rows)) + abs(math.log2(cut.pixels / 8)))


def searched(clock, trials=24, folder=None, name="a cpu", **more):
    with Records(TimedCpu(name), output=folder, kind="cpu") as records:
        return search_kernels(tasks_of([SQUARE], HOST), clock, records, trials, 0, **more)


def test_the_fastest_cut_is_found_and_kept():
    found = searched(Clock(far))
    (kernel,) = found.kernels
    assert not kernel.by_rule
    assert (kernel.cut.rows, kernel.cut.pixels) == (1, 8)
    assert found.cuts == {"y": kernel.cut}
    assert kernel.after / kernel.before == pytest.approx(far(kernel.cut) / far(_rule()), rel=1e-3)


@pytest.mark.parametrize(("ratio", "kept"), [(WINS - 0.01, True), (WINS + 0.01, False)])
def test_what_does_not_win_clearly_is_not_kept(ratio, kept):
    found = searched(Clock(lambda cut: 1e-4 if cut == _rule() else ratio * 1e-4))
    assert bool(found.cuts) is kept
    assert (found.after < found.before) is kept


def test_one_that_wins_by_chance_is_not_kept():
    """It was timed well once; over more turns it isn't."""

    class Lucky(Clock):
        def timed(self, batch):
            self.seconds = lambda cut: 1e-4 if cut == _rule() or batch.turns > 3 else 5e-5
            return super().timed(batch)

    assert not searched(Lucky(None)).cuts


def test_failures_are_counted_and_never_kept():
    found = searched(Clock(lambda cut: 1e-9, fails=lambda cut: cut != _rule()))
    assert not found.cuts
    assert found.failed == found.trials > 0


def test_equal_kernels_are_one_task():
    other = replace(SQUARE, output=replace(SQUARE.output, name="z"))
    (task,) = tasks_of([SQUARE, other], HOST)
    assert task.names == ["y", "z"]
    assert len(tasks_of([SQUARE, conv(k=32)], HOST)) == 2


def test_the_same_again_times_nothing_but_what_is_kept(tmp_path):
    first = searched(Clock(far), folder=tmp_path)
    lines = (tmp_path / TRIALS).read_bytes()
    clock = Clock(far)
    again = searched(clock, folder=tmp_path)
    assert again == first
    assert set(clock.asked) == {_rule(), first.kernels[0].cut}
    assert (tmp_path / TRIALS).read_bytes() == lines
    known = searched(Clock(far), trials=0, folder=tmp_path)
    assert known.cuts == first.cuts


def test_a_record_of_another_processor_is_never_used(tmp_path):
    searched(Clock(far), folder=tmp_path)
    for name, used in (("a cpu", True), ("a cpu; 2 threads", False)):
        records = Records(TimedCpu(name), [tmp_path], kind="cpu")
        assert bool(records.read) is used
    assert not Records(TimedCpu("a cpu"), [tmp_path], kind="npu").read


def test_cuts_of_before_are_tried_first():
    (task,) = tasks_of([SQUARE], HOST)
    known = task.space.cuts[-1]
    clock = Clock(lambda cut: 5e-5 if cut == known else 1e-4)
    assert searched(clock, trials=1, start={"y": known}).cuts == {"y": known}


def test_trials_are_not_more_than_asked_for():
    assert searched(Clock(far), trials=BATCH + 1).trials == BATCH + 1


@pytest.mark.parametrize("machines", [1, 2, 3])
def test_machines_have_batches_of_tasks_of_their_own(machines, tmp_path):
    tasks, told = tasks_of(SEVERAL, HOST), []
    trials = 3 * BATCH + 1
    clock = Several(machines)
    with Records(TimedCpu("a cpu"), output=tmp_path, kind="cpu") as records:
        found = search_kernels(
            *(tasks, clock, records, trials, 0), report=lambda made, _: told.append(made)
        )
    assert clock.most == machines
    assert found.trials == trials == told[-1]
    assert told == sorted(told)
    assert len(found.kernels) == len(tasks) == len(SEVERAL)
    assert found.after < found.before
    lines = (tmp_path / TRIALS).read_text().splitlines()
    assert len(lines) == trials + len(tasks)


def test_fewer_machines_than_before_are_enough():
    """One of two goes in the middle."""

    class Leaving(Several):
        def done(self):
            found = super().done()
            self.at_once = 1
            return found

    clock = Leaving(2)
    with Records(TimedCpu("a cpu"), kind="cpu") as records:
        found = search_kernels(tasks_of(SEVERAL, HOST), clock, records, 20, 0)
    assert found.trials == 20
    assert not clock.running


def test_one_machine_is_asked_for_one_batch_at_a_time():
    """As locally, where a second one would disturb the first."""
    clock = Clock(far)
    submit, waiting = clock.submit, []

    def watched(batch):
        submit(batch)
        waiting.append(len(clock._waiting))

    clock.submit = watched
    with Records(TimedCpu("a cpu"), kind="cpu") as records:
        search_kernels(tasks_of(SEVERAL, HOST), clock, records, 20, 0)
    assert set(waiting) == {1}


def _rule():
    (task,) = tasks_of([SQUARE], HOST)
    return task.space.rule
