"""The search: never slower than the rule, the same each time, and no trial is made twice."""

from __future__ import annotations

import copy
import multiprocessing
import signal
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest
from npu_chain import E256, Memory, layers, trials

from targets import interrupts
from targets.errors import CapacityError
from targets.npu.choices import NO_CHOICES
from targets.npu.compiler import compile_layers
from targets.npu.price.timing import simulate_timing
from targets.npu.trials import Trials, Window
from tvmq.tune.processes import Processes
from tvmq.tune.rpc_tracker import RpcTracker
from tvmq.tune.search import search
from tvmq.tune.trial import Trial
from tvmq.tune.workers import Workers

BUDGET = 32


@pytest.fixture(scope="module")
def found():
    memory = Memory()
    return search(trials(), BUDGET, 0, memory), memory


def test_the_program_is_faster_and_as_fast_as_it_says(found):
    result, _ = found
    made = layers()
    program = compile_layers(made, made[0].inputs, [made[-1].output], E256, result.choices)
    assert simulate_timing(program.instructions, E256).total == result.after < result.before
    assert len(result.best) == BUDGET
    assert list(result.best) == sorted(result.best, reverse=True)
    assert result.best[-1] == result.after
    assert result.steps[-1][1] == result.after


def test_the_same_seed_gives_the_same(found):
    assert search(trials(), BUDGET, 0, Memory()) == found[0]


def test_another_seed_tries_others(found):
    other = Memory()
    search(trials(), BUDGET, 1, other)
    assert set(other.made) != set(found[1].made)


def test_what_is_known_is_not_made_again(found, monkeypatch):
    result, memory = found
    before = len(memory.made)
    again = trials()
    assert search(again, 0, 0, memory).before == result.before
    rule, cycles = again.rule, again.cycles
    monkeypatch.setattr(
        again,
        "cycles",
        lambda made, _=None: cycles(made) if made is rule else pytest.fail("it is known"),
    )
    assert search(again, BUDGET, 0, memory) == result
    assert len(memory.made) == before == len(set(memory.made))


def test_an_interrupted_search_goes_on(found):
    memory = Memory()

    def interrupt(done: int, *_: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(trials(), BUDGET, 0, memory, interrupt)
    assert search(trials(), BUDGET, 0, memory) == found[0]
    assert len(memory.made) == len(set(memory.made)) == len(found[1].made)


def test_more_trials_are_never_worse(found):
    for budget in (0, 16):
        fewer = search(trials(), budget, 0, Memory())
        assert found[0].after <= fewer.after <= fewer.before
    assert search(trials(), 0, 0, Memory()).choices.as_json() == {
        "cuts": {},
        "stays": {},
        "cascades": {},
        "turns": {"order": "", "leads": {}},
    }


def test_trials_that_fail_are_counted(monkeypatch):
    broken = trials()
    cycles = broken.cycles
    count = []

    def sometimes(*arguments: Any) -> int:
        count.append(1)
        if len(count) % 3 == 0:
            raise CapacityError("no room")
        return cycles(*arguments)

    monkeypatch.setattr(broken, "cycles", sometimes)
    result = search(broken, 30, 0, Memory())
    assert 0 < result.failed < 30
    assert result.after <= result.before


@pytest.mark.slow
def test_several_processes_give_the_same(found):
    alone = search(trials(), 16, 0, Memory())
    with Processes(2) as processes:
        for _ in range(2):  # one program after the other
            assert search(trials(), 16, 0, Memory(), processes=processes) == alone
    assert not multiprocessing.active_children()


def test_what_is_better_in_a_window_alone_is_not_taken(monkeypatch):
    monkeypatch.setattr("targets.npu.trials.SMALL", 0)
    one = trials()
    cycles = one.cycles

    def lying(structure: Any, window: Window | None = None) -> int:
        cuts = structure.choices.cuts
        return cycles(structure, window) + (10_000 * len(cuts) if window is None else 0)

    monkeypatch.setattr(one, "cycles", lying)
    result = search(one, BUDGET, 0, Memory())
    assert not result.choices.cuts
    assert result.after <= result.before


def test_records_of_the_rule_are_not_believed(found):
    """A wrong one would let anything pass for faster, or nothing."""
    result, memory = found
    liar = Memory()
    liar.known = {key: cycles // 10 for key, cycles in memory.known.items()}
    one = trials()
    liar.add(one.description(one.rule), one.rule.choices.as_json(), 10, "the program")
    assert search(one, 0, 0, liar).before == result.before


def test_programs_that_give_other_outputs_share_no_records():
    made = layers()
    one = Trials(made, made[0].inputs, [made[-1].output], E256)
    more = Trials(made, made[0].inputs, [made[1].output, made[-1].output], E256)
    assert one.description(one.rule) != more.description(more.rule)


def test_a_killed_worker_costs_no_trial():
    """What it hasn't made is made in this process."""

    class Broken:
        def cycles(self, trials, batch):
            yield 1
            raise BrokenProcessPool

    made = trials()
    workers = Workers(made, Broken())
    batch = [Trial(NO_CHOICES, None)] * 3
    whole = made.cycles(made.rule)
    assert list(workers.cycles(batch)) == [1, whole, whole]
    assert list(workers.cycles(batch)) == [whole] * 3


@pytest.mark.parametrize("begun", range(4))
def test_trials_that_no_other_process_has_begun_are_made_here(begun, monkeypatch):
    """From the last on; those that were begun are awaited, and all come in order."""
    submitted: list[Future[int]] = []
    made: list[str] = []

    def submit(_: Any, __: Any, trial: Trial) -> Future[int]:
        future: Future[int] = Future()
        if len(submitted) < begun:
            future.set_running_or_notify_cancel()
            if len(submitted):  # the first one takes until all others are made
                future.set_result(10 * len(submitted))
        submitted.append(future)
        return future

    def here(_: Trials, trial: Trial) -> int:
        made.append(trial.window)
        if begun and len(made) == 4 - begun:
            submitted[0].set_result(0)
        return 10 * trial.window

    monkeypatch.setattr("tvmq.tune.processes.cycles_of", here)
    batch = [Trial(NO_CHOICES, n) for n in range(4)]
    with Processes(1, early=False) as processes:
        monkeypatch.setattr(processes._executor, "submit", submit)
        assert list(processes.cycles(trials(), batch)) == [0, 10, 20, 30]
    assert made == [*range(3, begun - 1, -1)]


@pytest.mark.parametrize(
    "early",
    [pytest.param(True, id="early"), pytest.param(False, id="late", marks=pytest.mark.slow)],
)
def test_an_interrupt_does_not_reach_processes_that_are_still_starting(early):
    """Which would say so themselves; afterwards it reaches this one again."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with Processes(1, early=early) as processes:
        if not early:
            list(processes.cycles(trials(), [Trial(NO_CHOICES, None)]))
        blocked = processes._executor.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()
    assert set(interrupts.NUMBERS) <= blocked
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_no_process_is_started_where_no_trial_is_missing(found):
    with Processes(2, early=False) as processes:
        assert search(trials(), BUDGET, 0, copy.deepcopy(found[1]), processes=processes) == found[0]
        assert not multiprocessing.active_children()


def test_cycles_of_servers_are_in_the_order_of_the_trials(monkeypatch):
    """Whichever server is done first."""

    class Backwards:
        def __init__(self, *_):
            self.waiting = []

        def submit(self, trial):
            self.waiting.append(len(self.waiting) + 1)
            return self.waiting[-1]

        def done(self):
            ticket = self.waiting.pop()
            return ticket, 10 * ticket

    monkeypatch.setattr("tvmq.tune.workers.ServerPool", Backwards)
    workers = Workers(trials(), tracker=RpcTracker("nowhere", 9, "key"))
    assert list(workers.cycles([Trial(NO_CHOICES, None)] * 3)) == [10, 20, 30]
