"""A process that loads hostile files, each in a child of its own with little time and memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

Load = Callable[[Path], None]

CPU_SECONDS = 5
MORE_MEMORY = 2**30
WALL_SECONDS = 120
"""For a machine that has other work to do; what counts is the time of the processor."""


class Victims:
    """Loads files one after the other and says what became of each.

    Use as a context manager: on exit the process ends.
    """

    def __init__(
        self, make_loads: Callable[[Path], dict[str, Load]], honest: Path, work: Path
    ) -> None:
        """Start the process, in which ``make_loads`` imports and prepares all that loading takes.

        Args:
            make_loads: from a folder to the ways to load a file, by name; importable.
            honest: that folder.
            work: where the process works.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make_loads, honest, work))
        self._process.start()
        other.close()

    def __enter__(self) -> Victims:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()
        self._process.join()

    def load(self, way: str, path: Path) -> str:
        """What became of a file: "accepted", "refused N: ..." with the exit code, or what broke."""
        self._connection.send((way, str(path)))
        return str(self._connection.recv())


def _serve(
    connection: Connection,
    make_loads: Callable[[Path], dict[str, Load]],
    honest: Path,
    work: Path,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes the connection
    os.chdir(work)
    loads = make_loads(honest)
    with suppress(EOFError):
        while True:
            way, path = connection.recv()
            connection.send(_in_child(loads[way], Path(path)))


def _in_child(load: Load, path: Path) -> str:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        said = _attempt(load, path)
        os.write(write, said.encode(errors="replace")[:4_000])
        os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], WALL_SECONDS)
    if not ready:
        os.kill(child, signal.SIGKILL)
    said = os.read(read, 4_000).decode(errors="replace")
    os.close(read)
    _, status = os.waitpid(child, 0)
    if said:
        return said
    ended = os.waitstatus_to_exitcode(status)
    if -ended == signal.SIGXCPU:
        return f"took more than {CPU_SECONDS} s"
    return "hung" if not ready else f"the process ended with {ended}"


def _attempt(load: Load, path: Path) -> str:
    from targets.errors import TvmqError

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MORE_MEMORY, size + MORE_MEMORY))
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    started: list[str] = []
    sys.addaudithook(lambda event, _: started.append(event) if event in _CALLS else None)
    try:
        load(path)
        said = "accepted"
    except TvmqError as error:
        said = f"refused {error.exit_code}: {error}"
        if not str(error).replace("\n", "").isprintable():
            said = f"the message has characters that a terminal obeys: {said!r}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"internal: {error!r:.300} at {where.filename}:{where.lineno}"
    return f"it ran {started[0]}" if started else said


_CALLS = frozenset({
    "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork", "pty.spawn",
    "socket.connect", "socket.bind", "shutil.rmtree", "os.remove",
})  # fmt: skip
