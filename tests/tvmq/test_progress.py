"""Progress in logs: how much of how much, and the time left of what is counted now."""

import pytest
import torch
from tvm import relax

from targets.errors import UnsupportedError
from tvmq import progress
from tvmq.progress import Progress


def test_a_second_count_has_its_own_total_and_time(monkeypatch):
    said = []
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    line = progress._Lines("reconstruct", said.append)
    line(100, 200, "unit 1")
    line(150, 200)
    line(1, 20, "exponents")
    line(11, 20)
    line(30, 60, "another one, from further on")
    line(45, 60)
    line(12, None)
    assert said == [
        "reconstruct: 100 of 200; unit 1",
        "reconstruct: 150 of 200, 30 s left",
        "reconstruct: 1 of 20; exponents",
        "reconstruct: 11 of 20, 27 s left",
        "reconstruct: 30 of 60; another one, from further on",
        "reconstruct: 45 of 60, 30 s left",
        "reconstruct: 12",
    ]


def raised_by_torch():
    torch.ones(2) @ torch.ones(3)


def raised_by_tvm():
    relax.op.reshape(relax.const(1.0), "a shape")


@pytest.mark.parametrize("fail", [raised_by_torch, raised_by_tvm])
def test_what_a_library_says_of_a_network_is_no_internal_error(fail):
    expected = pytest.raises(UnsupportedError, match=r"stage place: .*Error: .*Report it")
    with expected, Progress().stage("place"):
        fail()


@pytest.mark.parametrize("error", [KeyError("x"), ZeroDivisionError(), MemoryError(), OSError(2)])
def test_faults_of_ours_and_of_the_system_pass_through(error):
    with pytest.raises(type(error)), Progress().stage("place"):
        raise error
