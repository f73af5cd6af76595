"""Trials in several processes at a time, here or on servers; they take the same cycles as in one.

A process has the program and makes trials of it, one after the other. They are started when there
is a batch to share, and start anew instead of forking, as threads of torch and TVM don't survive
that.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType

from targets import interrupts
from targets.errors import InputError, TvmqError
from targets.npu.trials import Trials
from tvmq.tune.rpc_tracker import RpcTracker
from tvmq.tune.server_pool import LostRequestError, ServerPool
from tvmq.tune.server_trials import begin_trials, program_of
from tvmq.tune.trial import Trial, cycles_of

WORTH_A_PROCESS = 64
"""Trials that take longer than starting a process that makes them."""

Lost = Callable[[TvmqError], None]
"""Told why no server is left."""


class Workers:
    """Makes trials; a context manager, behind which no process is left."""

    def __init__(
        self,
        trials: Trials,
        count: int = 1,
        tracker: RpcTracker | None = None,
        lost: Lost = lambda why: None,
    ) -> None:
        """Share the trials of a program among so many processes; 1 is this one.

        With more, or with servers, a script that is run must have its work behind
        ``if __name__ == "__main__":``, as each of them imports it.

        Args:
            trials: of the program.
            count: of processes.
            tracker: of servers that make the trials instead; None: they are made here.
            lost: told when none of them is left, and trials are made here from then on.
        """
        self._trials, self._count, self._tracker, self._lost = trials, count, tracker, lost
        self._pool: ProcessPoolExecutor | None = None
        self._servers: ServerPool | None = None

    def cycles(self, batch: Sequence[Trial]) -> Iterator[int]:
        """Of each trial, in order, as soon as they are known; 0 if it can't be made.

        Raises:
            InputError: the tracker has no server, or one that can't make trials as this process.
            TvmqError: none is free.
        """
        if self._tracker is not None and batch:
            yield from self._on_servers(self._tracker, batch)
            return
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

    def _on_servers(self, tracker: RpcTracker, batch: Sequence[Trial]) -> Iterator[int]:
        if self._servers is None:
            program = program_of(self._trials)
            self._servers = ServerPool(tracker, begin_trials, tracker, program)
        numbers = {self._servers.submit(trial): n for n, trial in enumerate(batch)}
        known: dict[int, int] = {}
        for n in range(len(batch)):
            while n not in known:
                try:
                    ticket, cycles = self._servers.done()
                except InputError:
                    raise
                except LostRequestError as error:  # which may be what ended two servers
                    ticket = error.ticket
                    cycles = cycles_of(self._trials, batch[numbers[ticket]])
                except TvmqError as error:  # no server is left
                    self._servers.close()
                    self._tracker = self._servers = None
                    self._lost(error)
                    rest = [m for m in range(n, len(batch)) if m not in known]
                    made = self.cycles([batch[m] for m in rest])
                    yield from (
                        known[m] if m in known else next(made) for m in range(n, len(batch))
                    )
                    return
                known[numbers[ticket]] = cycles
            yield known[n]

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
        if self._servers is not None:
            self._servers.close()


_ours: list[Trials] = []
"""Of this process, if it is a worker."""


def _begin(parent: int, *program: object) -> None:
    interrupts.ignore()  # the parent ends it
    interrupts.end_with(parent)
    _ours.append(Trials(*program))  # type: ignore[arg-type]


def _made(trial: Trial) -> int:
    return cycles_of(_ours[0], trial)
