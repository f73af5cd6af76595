"""Signals that end a job: an exception that can't get lost, held back where a step is one.

What Python raises out of a signal can be lost on its way up: TVM's C++ makes a RuntimeError of it,
finalizers swallow it, a broad ``except`` takes it for a failure. So there is a record. Whoever ends
the process asks ``came`` and believes no exception; long jobs call ``check`` now and then, which
raises what was swallowed once more.

A library does not handle signals: nothing here does anything before ``heed``, which the command
line calls first of all.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

EXIT_CODE = 130

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

TOGETHER = 0.5
"""Seconds within which signals count as one: a terminal that closes sends several, and a second one
must not interrupt what the first one makes an end of."""

_PARENT_DEATH_SIGNAL = 1
"""Of prctl."""


class Interrupted(KeyboardInterrupt):
    """A signal came.

    Not the KeyboardInterrupt itself: where that passes through an ``exec``, Python remembers it
    and, although it was caught, ends the process by a signal instead of with its code.
    """


class _Record:
    """When signals came, and whether one waits for the end of a step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.steps = 0
        self.waits = False


_record = _Record()


def heed() -> None:
    """From now on, signals interrupt; those that the process was started to ignore, still don't."""
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # such as by nohup
            signal.signal(number, _interrupt)


def ignore() -> None:
    """From now on, no signal does anything: what is left is cleaning up, which takes no time."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def kept_from_children() -> Iterator[None]:
    """Processes that are started within get no signals, not even before they can ``ignore`` them.

    A terminal sends them to all. What comes here meanwhile comes behind the block.
    """
    resource_tracker.ensure_running()  # to start it within would let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with(parent: int) -> None:
    """Let the kernel kill this process when the one that has started it is killed (Linux)."""
    control = getattr(ctypes.CDLL(None), "prctl", None)
    if control is not None:
        control(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before that
        sys.exit()


def came() -> bool:
    """Whether a signal came."""
    return bool(_record.times)


def check() -> None:
    """Raise what may have been swallowed.

    Raises:
        Interrupted: a signal came.
    """
    if came() and _in_main_thread():
        raise Interrupted


@contextmanager
def held_back() -> Iterator[None]:
    """A step that is done or not: a signal interrupts behind it."""
    if not _in_main_thread():  # which no signal interrupts
        yield
        return
    _record.steps += 1
    try:
        yield
    finally:
        _record.steps -= 1
        if _record.waits and not _record.steps:
            _record.waits = False
            raise Interrupted


def _interrupt(_: int, __: FrameType | None) -> None:
    now = time.monotonic()
    again = bool(_record.times) and now - _record.times[-1] < TOGETHER
    _record.times.append(now)
    if again:
        return
    if _record.steps:
        _record.waits = True
        return
    raise Interrupted


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
