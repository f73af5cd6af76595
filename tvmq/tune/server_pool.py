"""Work shared among the servers of an RPC tracker, each of which does one request at a time.

A process per server has a session with it and does whatever the work needs beside, such as
compiling, while the other servers are busy. They start anew instead of forking, as threads of TVM
don't survive that, and when there is a request for them. A server that is gone is replaced by
another if one is free, and meanwhile the others get its request; one that fails on two servers is
given up, as what may end any server.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from targets import interrupts
from targets.errors import InputError, TvmqError
from tvmq.tune.rpc_tracker import RpcTracker
from tvmq.tune.tvm_reason import tvm_reason

_READY, _DONE, _GONE, _LEAVES, _REFUSES = range(5)
"""What a process tells."""

SERVERS_OF_A_REQUEST = 2
"""That are tried before it is given up."""

SECONDS_OF_A_CALL = 5.0
"""Of a server, which are waited for at the end."""

Work = Callable[[Any], Any]
Begin = Callable[..., tuple[str, Work]]
"""Makes of a session, and of arguments, what the server is like in words, and what does requests.

A RuntimeError, there or in a request, says that the server is gone; a TvmqError is handed on."""


class LostRequestError(TvmqError):
    """A request failed on two servers; the message says why, in TVM's words.

    Attributes:
        ticket: of the request.
    """

    def __init__(self, why: Exception, ticket: int) -> None:
        super().__init__(str(why).rstrip("."))
        self.ticket = ticket


@dataclass(eq=False)
class _Request:
    ticket: int
    content: Any
    lost: int = 0


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    ready: bool = False
    request: _Request | None = None


class ServerPool:
    """Does requests on all servers of a key; a context manager, behind which no process is left.

    Attributes:
        servers: what they are like, in words.
    """

    def __init__(self, tracker: RpcTracker, begin: Begin, *arguments: Any) -> None:
        """Wait for the first server.

        Args:
            tracker: of the servers.
            begin: what a process does first; a function of a module.
            arguments: more of its arguments, which are pickled.

        Raises:
            InputError: the tracker can't be reached, or has no server.
            TvmqError: no server is free.
        """
        self._tracker, self._begin = tracker, (begin, arguments)
        self._left_to_start = tracker.servers()
        self._workers: list[_Worker] = []
        self._waiting: deque[_Request] = deque()
        self._done: deque[tuple[int, Any]] = deque()
        self._tickets = 0
        self.servers: str | None = None
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        try:
            self._start()
            while self.servers is None:
                self._listen()
        except BaseException:
            self.close()
            raise

    @property
    def at_once(self) -> int:
        """Requests that can be done at the same time."""
        return len(self._workers) + self._left_to_start

    def submit(self, content: Any) -> int:
        """Have a request done; the ticket under which ``done`` has the result."""
        self._tickets += 1
        self._waiting.append(_Request(self._tickets, content))
        self._assign()
        return self._tickets

    def done(self) -> tuple[int, Any]:
        """The ticket and result of what is done next, of what was submitted.

        Raises:
            InputError: a server isn't what the others are, or what the work needs.
            TvmqError: the work can't be done, by two servers or as no server is left.
        """
        while not self._done:
            self._listen()
        return self._done.popleft()

    def close(self) -> None:
        """End all processes, whatever they do.

        A server whose client ends in the middle of a call ends, too, as TVM's servers are made. So
        they get the time of one.
        """
        for worker in self._workers:
            worker.process.terminate()
        until = time.monotonic() + SECONDS_OF_A_CALL
        for worker in self._workers:
            worker.process.join(max(0, until - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self._workers, self._left_to_start = [], 0
        self._folder.cleanup()

    def __enter__(self) -> ServerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, its = context.Pipe()
        begin, arguments = self._begin
        given = (os.getpid(), its, self._tracker, self._folder.name, begin, arguments)
        process = context.Process(target=_work, args=given, daemon=True)
        self._left_to_start -= 1
        process.start()
        its.close()
        self._workers.append(_Worker(process, ours))

    def _assign(self) -> None:
        """Give what waits to who is free, and start who may become so."""
        for worker in self._workers:
            if self._waiting and worker.ready and worker.request is None:
                worker.request = self._waiting.popleft()
                try:
                    worker.connection.send(worker.request.content)
                except OSError:  # it was killed, as ``_listen`` will find
                    continue
        coming = sum(not worker.ready for worker in self._workers)
        for _ in range(min(len(self._waiting) - coming, self._left_to_start)):
            self._start()

    def _listen(self) -> None:
        """Take what one process tells."""
        told = wait([worker.connection for worker in self._workers])[0]
        worker = next(each for each in self._workers if each.connection is told)
        try:
            kind, value = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            kind, value = (
                _LEAVES,
                TvmqError(
                    f"{self._tracker}: the process that works with a server was ended (exit code "
                    f"{worker.process.exitcode}). Look whether memory ran out, and give the same "
                    f"command again: trials that were made are kept."
                ),
            )
        if kind == _REFUSES:
            raise value
        request, worker.request = worker.request, None
        if kind == _READY:
            worker.ready = True
            self._check(value)
        elif kind == _DONE:
            assert request is not None
            self._done.append((request.ticket, value))
        else:
            worker.ready = False
            self._lost(request, value)
            if kind == _LEAVES:
                self._leaves(worker, value)
        self._assign()

    def _check(self, server: str) -> None:
        self.servers = self.servers or server
        if server != self.servers:
            raise InputError(
                f"{self._tracker}: of the servers for the key {self._tracker.key} one has "
                f"{self.servers}, another {server}. Give servers that differ keys of their own."
            )

    def _lost(self, request: _Request | None, why: Exception) -> None:
        """Have others do what a server didn't."""
        if request is None:
            return
        request.lost += 1
        if request.lost == SERVERS_OF_A_REQUEST:
            raise LostRequestError(why, request.ticket)
        self._waiting.appendleft(request)

    def _leaves(self, worker: _Worker, why: Exception) -> None:
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)
        if not self._workers and (self._left_to_start == 0 or self.servers is None):
            raise why


def _work(
    parent: int,
    connection: Connection,
    tracker: RpcTracker,
    folder: str,
    begin: Begin,
    arguments: tuple[Any, ...],
) -> None:
    """Of a process: do what it is told, on one server after the other."""
    interrupts.ignore()  # the parent ends it, by SIGTERM
    signal.signal(signal.SIGTERM, _exit)
    interrupts.end_with(parent)
    tempfile.tempdir = os.environ["TMPDIR"] = folder  # which the parent removes
    try:
        while True:
            try:
                session = tracker.session()
            except TvmqError as error:
                connection.send((_LEAVES, error))
                return
            if not _serve(connection, tracker, session, begin, arguments):
                return
            del session  # so that its server is free, if it is still there
    except (EOFError, ConnectionError):
        return  # the parent is gone


def _serve(
    connection: Connection,
    tracker: RpcTracker,
    session: Any,
    begin: Begin,
    arguments: tuple[Any, ...],
) -> bool:
    """Do requests on a server until it is gone; whether another one may be of use."""
    try:
        server, work = begin(session, *arguments)
    except TvmqError as error:
        connection.send((_REFUSES, error))
        return False
    except RuntimeError as error:
        why = TvmqError(
            f"{tracker}: a server for the key {tracker.key} took a session and ended it "
            f"({tvm_reason(error)}). Look at what it prints, and give the same command again."
        )
        connection.send((_LEAVES, why))
        return False
    connection.send((_READY, server))
    while True:
        content = connection.recv()
        try:
            result = work(content)
        except TvmqError as error:
            connection.send((_REFUSES, error))
            return False
        except RuntimeError as error:
            connection.send((_GONE, TvmqError(tvm_reason(error))))
            return True
        connection.send((_DONE, result))


def _exit(_: int, __: FrameType | None) -> None:
    """Behind a call of a server, as Python handles no signal within; it leaves nothing behind."""
    os._exit(0)
