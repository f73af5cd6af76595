"""Processes that make trials beside this one, of one program after the other.

They start anew instead of forking, as threads of torch and TVM don't survive that, and take seconds
to import what they need: so they may be started before there is a program, and until they are ready
this one makes the trials. They take those of a batch from the first on and this one from the last
on, since what lies beside each other is often of one task.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from targets import interrupts
from targets.npu.trials import Trials
from tvmq.tune.trial import Trial, cycles_of

WORTH_A_PROCESS = 64
"""Trials that take longer than starting a process that makes them."""


class Processes:
    """A context manager, behind which none is left."""

    def __init__(self, count: int, *, early: bool = True) -> None:
        """Be ready to start them.

        A script that is run must have its work behind ``if __name__ == "__main__":``, as each of
        them imports it.

        Args:
            count: of processes, this one not among them.
            early: whether they start at once, instead of with the first trials that are missing.
        """
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._program: tuple[Trials, Path] | None = None
        self._numbers = itertools.count()
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(count, context, _begin, (os.getpid(),))
        if early:
            with interrupts.kept_from_children():
                for _ in range(count):
                    self._executor.submit(int)  # anything: a process is started for what waits

    def cycles(self, trials: Trials, batch: Sequence[Trial]) -> Iterator[int]:
        """Of each trial, in order, as soon as they are known; 0 if it can't be made.

        Raises:
            BrokenProcessPool: one was killed, as where memory runs out.
        """
        if not batch:
            return iter(())
        file = self._file_of(trials)
        with interrupts.kept_from_children():
            return _shared(trials, batch, [self._executor.submit(_made, file, t) for t in batch])

    def close(self) -> None:
        """End them, without what waits."""
        self._executor.shutdown(cancel_futures=True)
        self._folder.cleanup()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _file_of(self, trials: Trials) -> Path:
        """From which a process takes the program when it makes its first trial of it."""
        if self._program is None or self._program[0] is not trials:
            file = Path(self._folder.name, f"{next(self._numbers)}.pickle")
            file.write_bytes(pickled(trials))
            self._program = trials, file
        return self._program[1]


def pickled(trials: Trials) -> bytes:
    """What another process needs to make them; see ``trials_of``."""
    rule = trials.rule.choices
    return pickle.dumps((trials.layers, trials.inputs, trials.outputs, trials.spec, rule))


def trials_of(content: bytes) -> Trials:
    """Of a program that was ``pickled``."""
    return Trials(*pickle.loads(content))


def _shared(
    trials: Trials, batch: Sequence[Trial], elsewhere: Sequence[Future[int]]
) -> Iterator[int]:
    """Cycles in order; while one is awaited, the last that no other process has begun is made."""
    here: dict[int, int] = {}
    untried = iter(range(len(batch) - 1, -1, -1))
    for n, awaited in enumerate(elsewhere):
        while not awaited.done():
            last = next((m for m in untried if elsewhere[m].cancel()), None)
            if last is None:
                break
            here[last] = cycles_of(trials, batch[last])
        yield here[n] if n in here else awaited.result()


_ours: dict[Path, Trials] = {}
"""Of this process, if it is one of them: of the last program that it was asked for."""


def _begin(parent: int) -> None:
    interrupts.ignore()  # the parent ends it
    interrupts.end_with(parent)


def _made(program: Path, trial: Trial) -> int:
    if program not in _ours:
        _ours.clear()
        _ours[program] = trials_of(program.read_bytes())
    return cycles_of(_ours[program], trial)
