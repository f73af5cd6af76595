"""Trials on servers: the result is that of one process, whatever becomes of a server."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from npu_chain import Memory, trials

pytest.importorskip("tornado", reason="TVM's tracker needs it")

from loopback import KEY, Loopback, free_port

from targets.errors import InputError
from targets.interrupts import EXIT_CODE
from tvmq.tune.search import search

BUDGET = 32
SERVERS = "pool_work:register_telling"


@pytest.fixture(scope="module")
def found():
    """Of one process."""
    memory = Memory()
    return search(trials(), BUDGET, 0, memory), memory.known


def searched(loopback, report=None):
    memory = Memory()
    result = search(trials(), BUDGET, 0, memory, report, tracker=loopback.tracker)
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


@pytest.mark.parametrize("servers", [1, 2])
def test_a_killed_server_costs_no_trial(found, servers):
    """The other one makes the rest, or this process where there is none."""
    ended = []
    with Loopback(servers, SERVERS) as loopback:

        def end(done, *_):
            if done > BUDGET // 4 and not ended:
                loopback.end(0)
                ended.append(done)

        assert searched(loopback, end) == found
        assert ended
        if servers == 2:
            assert made(loopback, 1)


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        ("", f"makes no trials of NPU programs.*trial_server --tracker .* --key {KEY}"),
        ("pool_work:register_of_other_sources", r"tvmq 0\.0, sources 0123456789ab; here tvmq"),
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
