"""One thread per test process, since several share the cores; and signals that interrupt."""

import os
import signal

import pytest

from targets import interrupts

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and TVM are imported
os.environ.setdefault("TVM_NUM_THREADS", "1")


@pytest.fixture
def heeding(monkeypatch):
    """As in a process of its own; handlers and the record as they were, afterwards."""
    before = {number: signal.getsignal(number) for number in interrupts.NUMBERS}
    monkeypatch.setattr(interrupts, "_record", interrupts._Record())
    interrupts.heed()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
