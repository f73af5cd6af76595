"""Trials in several processes at a time, which take the same cycles as in one.

A process has the program and makes trials of it, one after the other. They are started when there
is a batch to share, and start anew instead of forking, as threads of torch and TVM don't survive
that.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import NamedTuple

from targets import collector, interrupts
from targets.errors import CapacityError, TimingError
from targets.npu.choices import Choices
from targets.npu.trials import Trials, Window

WORTH_A_PROCESS = 64
"""Trials that take longer than starting a process that makes them."""


class Trial(NamedTuple):
    """A program by choices; a window of it, or None for all."""

    choices: Choices
    window: Window | None


class Workers:
    """Makes trials; a context manager, behind which no process is left."""

    def __init__(self, trials: Trials, count: int = 1) -> None:
        """Share the trials of a program among so many processes; 1 is this one.

        With more, a script that is run must have its work behind ``if __name__ == "__main__":``, as
        each of them imports it.
        """
        self._trials, self._count = trials, count
        self._pool: ProcessPoolExecutor | None = None

    def cycles(self, batch: Sequence[Trial]) -> Iterator[int]:
        """Of each trial, in order, as soon as they are known; 0 if it can't be made."""
        if self._count == 1 or (self._pool is None and len(batch) == 1):
            yield from (cycles_of(self._trials, trial) for trial in batch)
            return
        if self._pool is None:
            made = self._trials
            program = made.layers, made.inputs, made.outputs, made.spec, made.rule.choices
            self._pool = ProcessPoolExecutor(
                self._count,
                multiprocessing.get_context("spawn"),
                _begin,
                (os.getpid(), *program),
            )
        done = 0
        try:
            for cycles in self._pool.map(_made, batch):
                yield cycles
                done += 1
        except BrokenProcessPool:  # one was killed, as where memory runs out
            self._pool.shutdown(cancel_futures=True)
            self._pool, self._count = None, 1
            yield from (cycles_of(self._trials, trial) for trial in batch[done:])

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


@collector.paused()
def cycles_of(trials: Trials, trial: Trial) -> int:
    """Cycles of a trial; 0 if it can't be made."""
    try:
        return trials.cycles(trials.structure(trial.choices), trial.window)
    except (CapacityError, TimingError):
        return 0


_ours: list[Trials] = []
"""Of this process, if it is a worker."""


def _begin(parent: int, *program: object) -> None:
    interrupts.ignore()  # the parent ends it
    interrupts.end_with(parent)
    _ours.append(Trials(*program))  # type: ignore[arg-type]


def _made(trial: Trial) -> int:
    return cycles_of(_ours[0], trial)
