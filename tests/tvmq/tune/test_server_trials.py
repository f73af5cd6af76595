"""Trials on servers: the result is that of one process, whatever becomes of a server."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import tvm
from npu_chain import E256, Memory, layers, trials

pytest.importorskip("tornado", reason="TVM's tracker needs it")

from loopback import KEY, Loopback, free_port

from relay_passes.place import ProgramParts
from targets.errors import InputError, TvmqError
from targets.interrupts import EXIT_CODE
from tvmq.progress import Progress
from tvmq.tune.request import TuneRequest
from tvmq.tune.rpc_tracker import RpcTracker
from tvmq.tune.search import search
from tvmq.tune.server_pool import LostRequestError
from tvmq.tune.server_trials import register
from tvmq.tune.trial import Trial
from tvmq.tune.tuning import tune
from tvmq.tune.workers import Workers

BUDGET = 32
SERVERS = "pool_work:register_telling"


@pytest.fixture(scope="module")
def found():
    """Of one process."""
    memory = Memory()
    return search(trials(), BUDGET, 0, memory), memory.known


def searched(loopback, report=None, lost=None):
    memory = Memory()
    said = [] if lost is None else lost
    how = {"tracker": loopback.tracker, "lost": said.append}
    result = search(trials(), BUDGET, 0, memory, report, **how)
    return result, memory.known


def made(loopback, number):
    return loopback.said(number).count("a trial")


def test_two_servers_give_the_same(found):
    with Loopback(2, SERVERS) as loopback:
        first = searched(loopback)
        second = searched(loopback)
        assert made(loopback, 0) + made(loopback, 1) == 2 * len(found[1])
        assert made(loopback, 0)
        assert made(loopback, 1)
    assert first == second == found


@pytest.mark.parametrize("servers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_server_costs_no_trial(found, servers):
    """The other one makes the rest, or this process where there is none, which is told."""
    ended, lost = [], []
    with Loopback(servers, SERVERS) as loopback:

        def end(done, *_):
            if done > BUDGET // 4 and not ended:
                loopback.end(0)
                ended.append(done)

        assert searched(loopback, end, lost) == found
        assert ended
        assert len(lost) == 2 - servers
        if servers == 2:
            assert made(loopback, 1)


def test_what_ends_two_servers_is_made_here_and_the_rest_by_others(monkeypatch):
    """A pool that gives up the second trial, and has cycles of the others."""

    class Pool:
        def __init__(self, *_):
            self.tickets = []

        def submit(self, trial):
            self.tickets.append(trial)
            return len(self.tickets)

        def done(self):
            number = self.given = getattr(self, "given", 0) + 1
            if number == 2:
                raise LostRequestError(TvmqError("gone"), number)
            return number, 1000 + number

        def close(self):
            pass

    monkeypatch.setattr("tvmq.tune.workers.ServerPool", Pool)
    chain, lost = trials(), []
    batch = [Trial(chain.rule.choices, None)] * 3
    with Workers(chain, tracker=RpcTracker("nowhere", 1, "k"), lost=lost.append) as workers:
        assert list(workers.cycles(batch)) == [1001, chain.cycles(chain.rule), 1003]
    assert not lost


@pytest.mark.slow
def test_programs_behind_are_made_here_once_servers_are_gone(tmp_path):
    """It is said once, and the choices are those of one process."""
    chains, notes = (layers(), layers()[:3]), []
    parts = [ProgramParts(each, each[0].inputs, [each[-1].output], (), {}) for each in chains]
    with Loopback(1, SERVERS) as loopback:

        class Told(Progress):
            def note(self, text):
                notes.append(text)

            @contextmanager
            def bar(self, _):
                yield lambda done, *_: loopback.end(0) if done == BUDGET // 4 else None

        request = TuneRequest(2 * BUDGET, 0, (tmp_path / "r",), tmp_path / "a")
        request = replace(request, tracker=loopback.tracker)
        tuned = tune(parts, E256, request, Told())
    alone = tune(parts, E256, TuneRequest(2 * BUDGET, 0, (tmp_path / "s",)), Progress())
    assert [each.choices for each in tuned.found] == [each.choices for each in alone.found]
    (note,) = notes
    assert "trials are made on this machine from now on" in note


def test_a_server_says_which_sources_it_has_read(monkeypatch):
    """Not those that lie there by the time of a session."""
    register()
    ask = tvm.get_global_func("tvmq.trials.compiler")
    before = str(ask())
    monkeypatch.setattr("tvmq.tune.server_trials.compiler_and_versions", lambda _: {"new": "er"})
    assert str(ask()) == before


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        ("", f"makes no trials of NPU programs.*trial_server --tracker .* --key {KEY}"),
        pytest.param(
            *("pool_work:register_of_other_sources", r"tvmq 0\.0, sources 0123456789ab; here tvmq"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_server_that_can_not_make_the_same_trials_is_refused(setup, said):
    with Loopback(1, setup) as loopback, pytest.raises(InputError, match=said):
        searched(loopback)


@pytest.mark.slow
def test_a_trial_server_registers_and_ends_with_its_process(found):
    with Loopback(0) as loopback:
        words = ["--tracker", loopback.address, "--key", KEY, "--host", "127.0.0.1", "--port"]
        words += [free_port()]
        command = [sys.executable, "-m", "tvmq.tune.trial_server", *map(str, words)]
        server = subprocess.Popen(command, env=loopback.environment)
        try:
            loopback.wait(1)
            assert searched(loopback) == found
        finally:
            server.send_signal(signal.SIGINT)
            code = server.wait()
        loopback.wait(0)
    assert code == EXIT_CODE


def test_a_trial_server_says_what_is_wrong_with_its_tracker():
    command = [sys.executable, "-m", "tvmq.tune.trial_server", "--tracker", "nowhere", "--key", "k"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "--tracker nowhere: expected HOST:PORT" in ended.stderr
