"""The CPU's kernels on servers: each times batches, and one that ends costs nothing."""

from __future__ import annotations

import os

import pytest
from cpu_convolutions import conv

pytest.importorskip("tornado", reason="TVM's tracker needs it")

from loopback import KEY, Loopback

from targets.cpu.host import CpuFeatures, cpu_target
from targets.errors import InputError, TvmqError
from tvmq.tune import servers_clock
from tvmq.tune.kernel_clock import Batch
from tvmq.tune.kernel_search import search_kernels, tasks_of
from tvmq.tune.records import TRIALS, Records
from tvmq.tune.rpc_tracker import RpcTracker
from tvmq.tune.server_pool import LostRequestError
from tvmq.tune.servers_clock import ServersClock
from tvmq.tune.tune_kernels import TimedCpu

TARGET = cpu_target("native")
TRIALS_MADE = 8
RULES = 60
"""Times that one server times the rule's kernels, at most, until the other one has started."""


def tasks():
    return tasks_of([conv(), conv(k=32)], CpuFeatures.of(TARGET))


@pytest.mark.slow
def test_a_search_goes_on_when_one_of_two_servers_is_killed(tmp_path):
    """Both have timed something by then; the budget is met, and each trial is kept once."""
    with Loopback(2) as loopback, ServersClock(TARGET, loopback.tracker) as clock:
        assert f"servers {KEY}" in clock.machine
        for _ in range(RULES):
            _time_rules(clock, 1)
            if all("load_module" in loopback.said(number) for number in range(2)):
                break
        else:
            pytest.fail("one server does nothing")
        loopback.end(0)
        with Records(TimedCpu(clock.machine), output=tmp_path, kind="cpu") as records:
            found = search_kernels(tasks(), clock, records, TRIALS_MADE, 0)
    assert (found.trials, found.failed) == (TRIALS_MADE, 0)
    assert found.before > 0
    lines = (tmp_path / TRIALS).read_text().splitlines()
    assert len(lines) == len(set(lines)) == TRIALS_MADE + len(tasks())


@pytest.mark.slow
@pytest.mark.skipif(os.cpu_count() == 1, reason="TVM starts no more threads than cores")
def test_servers_of_one_key_have_as_many_threads():
    words = r"one has \d threads, another \d threads\. Give servers that differ keys of their own"
    with (
        Loopback(2, TVM_NUM_THREADS="2") as loopback,
        ServersClock(TARGET, loopback.tracker) as clock,
        pytest.raises(InputError, match=words),
    ):
        _time_rules(clock, RULES)


def test_a_kernel_that_ends_two_servers_is_named(monkeypatch):
    """As one with instructions that they don't have."""

    class Pool:
        servers = "1 threads"

        def __init__(self, *_):
            pass

        def submit(self, _):
            return 7

        def done(self):
            raise LostRequestError(RuntimeError("it was ended."), 7)

    monkeypatch.setattr(servers_clock, "ServerPool", Pool)
    clock = ServersClock(TARGET, RpcTracker("nowhere", 9, KEY))
    clock.submit(Batch(tasks()[0].layer, [], 1))
    with pytest.raises(TvmqError, match=r"^conv: .* on two servers of .*: it was ended\. Look"):
        clock.done()


def _time_rules(clock, times):
    for _ in range(times):
        batches = [Batch(task.layer, [task.space.rule], 1) for task in tasks()]
        for batch in batches:
            clock.submit(batch)
        assert {clock.done()[0] for _ in batches} == set(batches)
