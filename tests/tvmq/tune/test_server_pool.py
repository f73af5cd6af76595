"""Work shared among servers: at the same time, and whatever becomes of one of them."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pool_work
import pytest

from targets.errors import InputError, TvmqError

pytest.importorskip("tornado", reason="TVM's tracker needs it")

from loopback import Loopback

from tvmq.tune.server_pool import LostRequestError, ServerPool


@pytest.fixture(scope="module")
def two():
    """Two servers, which no test ends."""
    with Loopback(2) as loopback:
        yield loopback


def test_servers_work_at_the_same_time(two, tmp_path):
    """Each request waits for the other, so that none is done if they come one after the other."""
    a, b = tmp_path / "a", tmp_path / "b"
    with ServerPool(two.tracker, pool_work.begin) as pool:
        tickets = [pool.submit((a, b)), pool.submit((b, a))]
        done = dict(pool.done() for _ in tickets)
        assert [done[ticket][0] for ticket in tickets] == ["a", "b"]
        assert len({place for _, place in done.values()}) == pool.at_once == 2
    assert not multiprocessing.active_children()


def test_nothing_is_left_of_what_is_closed_in_the_middle(two, tmp_path):
    with ServerPool(two.tracker, pool_work.begin) as pool:
        _both_busy(pool, tmp_path, tmp_path / "never")
        folder = Path(pool._folder.name)
        assert folder.exists()
    assert not multiprocessing.active_children()
    assert not folder.exists()
    sessions = [two.tracker.session() for _ in range(2)]  # the servers are still there
    assert [session.get_function("runtime.NumThreads")() for session in sessions] == [1, 1]


def test_a_busy_server_is_not_waited_for(two, tmp_path):
    """Somebody else has one of two; the other one does it all."""
    theirs = two.tracker.session()
    done = tmp_path / "done"
    done.touch()
    with ServerPool(two.tracker, pool_work.begin) as pool:
        tickets = [pool.submit((tmp_path / f"{n}", done)) for n in range(4)]
        assert sorted(pool.done()[0] for _ in tickets) == tickets
    del theirs


def test_a_request_that_ends_two_servers_is_given_up(two):
    with ServerPool(two.tracker, pool_work.begin_failing) as pool:
        ticket = pool.submit("something")
        with pytest.raises(LostRequestError, match=r"^something ended it$") as caught:
            pool.done()
    assert caught.value.ticket == ticket


def test_a_killed_server_hands_its_request_to_the_others(tmp_path):
    awaited = tmp_path / "awaited"
    with Loopback(2) as loopback, ServerPool(loopback.tracker, pool_work.begin) as pool:
        tickets = _both_busy(pool, tmp_path, awaited)
        loopback.end(0)
        awaited.touch()
        done = dict(pool.done() for _ in tickets)
        assert set(done) == set(tickets)
        assert len({place for _, place in done.values()}) == 1
        loopback.end(1)
        pool.submit((tmp_path / "a", awaited))
        with pytest.raises(TvmqError, match="no server for the key here answers"):
            pool.done()
    assert not multiprocessing.active_children()


def test_a_tracker_without_servers_is_said_before_anything_starts():
    with Loopback(0) as loopback, pytest.raises(InputError, match="has no servers"):
        ServerPool(loopback.tracker, pool_work.begin)


def _both_busy(pool, folder, awaited):
    """Have two servers wait for a file."""
    first = pool.submit((folder / "a", awaited))
    between = pool.submit((folder / "b", folder / "b"))
    assert pool.done()[0] == between  # by the second one, which was started for it
    second = pool.submit((folder / "c", awaited))
    until = time.monotonic() + 60
    while not ((folder / "a").exists() and (folder / "c").exists()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return first, second
