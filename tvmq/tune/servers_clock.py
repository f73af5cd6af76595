"""Seconds of the CPU's kernels on the servers of an RPC tracker, a batch on each at a time."""

from __future__ import annotations

from typing import Any

from tvm.target import Target

from targets.errors import TvmqError
from tvmq.tune.kernel_clock import Batch, KernelTimer, Turns, machine_words
from tvmq.tune.rpc_tracker import RpcTracker
from tvmq.tune.server_pool import LostRequestError, ServerPool


class ServersClock:
    """Times kernels on all servers of a key; a context manager.

    What is compared with each other is timed by turns on one of them, so that it doesn't matter
    if another one is slower.

    Attributes:
        machine: as ``Clock`` says; the servers of a key are one kind of machine.
    """

    def __init__(self, target: Target, tracker: RpcTracker) -> None:
        """Wait for the first server.

        Args:
            target: that kernels are compiled for.
            tracker: of the servers.

        Raises:
            InputError: the tracker can't be reached, or has no server.
            TvmqError: no server is free.
        """
        self._target, self._tracker = target, tracker
        self._pool = ServerPool(tracker, _begin, str(target))
        self._batches: dict[int, Batch] = {}
        servers = f"servers {tracker.key}"
        self.machine = machine_words(target, servers, self._pool.servers or "")

    @property
    def at_once(self) -> int:
        """As ``Clock`` says."""
        return self._pool.at_once

    def submit(self, batch: Batch) -> None:
        """As ``Clock`` says."""
        self._batches[self._pool.submit(batch)] = batch

    def done(self) -> tuple[Batch, list[Turns]]:
        """As ``Clock`` says."""
        try:
            ticket, turns = self._pool.done()
        except LostRequestError as error:
            raise TvmqError(
                f"{self._batches[error.ticket].layer.name}: its kernel can't be timed on two "
                f"servers of {self._tracker}, key {self._tracker.key}: {error}. Look whether they "
                f"run what is compiled for {self._target.attrs['mcpu']}."
            ) from error
        return self._batches.pop(ticket), turns

    def __enter__(self) -> ServersClock:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()


def _begin(session: Any, target: str) -> tuple[str, KernelTimer]:
    timer = KernelTimer(Target(target), session)
    return timer.threads, timer
