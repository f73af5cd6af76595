"""Trials by several processes or servers at a time, which take the same cycles as by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from targets.errors import InputError, TvmqError
from targets.npu.trials import Trials
from tvmq.tune.processes import Processes, pickled
from tvmq.tune.rpc_tracker import RpcTracker
from tvmq.tune.server_pool import LostRequestError, ServerPool
from tvmq.tune.server_trials import begin_trials
from tvmq.tune.trial import Trial, cycles_of

Lost = Callable[[TvmqError], Processes | None]
"""Told why no server is left; gives processes that make the rest, None: this one does."""


class Workers:
    """Makes trials; a context manager, behind which servers are free."""

    def __init__(
        self,
        trials: Trials,
        processes: Processes | None = None,
        tracker: RpcTracker | None = None,
        lost: Lost = lambda why: None,
    ) -> None:
        """Share the trials of a program.

        Args:
            trials: of the program.
            processes: that make the trials; None: this one does.
            tracker: of servers that make them instead; None: they are made here.
            lost: told when none of these is left.
        """
        self._trials, self._processes = trials, processes
        self._tracker, self._lost = tracker, lost
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
        done = 0
        if self._processes is not None:
            try:
                for cycles in self._processes.cycles(self._trials, batch):
                    yield cycles
                    done += 1
            except BrokenProcessPool:  # one was killed, as where memory runs out
                self._processes = None
        yield from (cycles_of(self._trials, trial) for trial in batch[done:])

    def _on_servers(self, tracker: RpcTracker, batch: Sequence[Trial]) -> Iterator[int]:
        if self._servers is None:
            program = pickled(self._trials)
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
                    self._processes = self._lost(error)
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

    def __exit__(self, *_: object) -> None:
        if self._servers is not None:
            self._servers.close()
