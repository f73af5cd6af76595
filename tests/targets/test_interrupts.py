"""Signals interrupt, can't get lost, and wait for the end of a step."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from targets import interrupts

pytestmark = pytest.mark.usefixtures("heeding")


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", interrupts.NUMBERS)
def test_each_interrupts_and_is_recorded(number):
    assert not interrupts.came()
    with pytest.raises(KeyboardInterrupt):
        send(number)
    assert interrupts.came()


def test_what_was_swallowed_is_raised_again():
    interrupts.check()
    with contextlib.suppress(BaseException):
        send()
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()


def test_a_step_is_done_before_it_is_interrupted():
    done = []

    def work():
        with interrupts.held_back():
            with interrupts.held_back():
                send()
                done.append("inner")
            done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]


def test_a_second_signal_does_not_interrupt_the_end_that_the_first_made(monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        send()
    send(signal.SIGHUP)
    monkeypatch.setattr(interrupts, "TOGETHER", 0.0)
    with pytest.raises(KeyboardInterrupt):  # but one that comes later insists
        send()


def test_what_the_process_was_started_to_ignore_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts.heed()
    send(signal.SIGHUP)
    assert not interrupts.came()


def test_other_threads_hold_nothing_back():
    inside, leave = threading.Event(), threading.Event()

    def work():
        with interrupts.held_back():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    with pytest.raises(KeyboardInterrupt):
        send()
    leave.set()
    thread.join()


def test_a_process_that_catches_it_ends_with_its_own_code():
    """Python remembers a KeyboardInterrupt that has passed through an exec."""
    program = """
import sys
from targets import interrupts
interrupts.heed()
try:
    exec("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
except KeyboardInterrupt:
    sys.exit(interrupts.EXIT_CODE)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert done.returncode == 130


def test_a_helper_does_not_outlive_who_started_it():
    """It has our pipe, too, which ends when both have ended."""
    helper = """
import sys, time
from targets.interrupts import end_with
end_with(int(sys.argv[1]))
print(flush=True)
time.sleep(30)
"""
    middle = f"""
import os, signal, subprocess, sys
words = [sys.executable, "-c", {helper!r}, str(os.getpid())]
subprocess.Popen(words, stdout=subprocess.PIPE).stdout.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", middle]
    done = subprocess.run(words, env=environment, stderr=subprocess.PIPE, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")
