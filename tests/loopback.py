"""A tracker of TVM's and servers that register there, as processes of this machine.

They are what ``tvm.exec.rpc_tracker`` and ``tvm.exec.rpc_server`` run, forked from one process that
has imported TVM, which takes seconds.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from targets.errors import InputError
from tvmq.tune.rpc_tracker import RpcTracker

KEY = "here"


class QuickTracker(RpcTracker):
    """Doesn't wait long for a server, in the processes of a pool either."""

    def session(self, seconds: float = 2.0):
        return super().session(seconds)


class Loopback:
    """A context manager, behind which they have ended.

    Attributes:
        address: of the tracker, as ``--rpc-tracker`` takes it.
        tracker: the same.
        environment: in which Python finds what it finds here.
    """

    def __init__(self, servers, setup="", **environment):
        """Start a tracker and servers.

        Args:
            servers: how many.
            setup: "module:function" that each of them calls first.
            environment: variables of the first one alone.
        """
        self._folder = tempfile.TemporaryDirectory()
        port = free_port()
        self.address, self.tracker = f"127.0.0.1:{port}", QuickTracker("127.0.0.1", port, KEY)
        variables = [f"{name}={value}" for name, value in environment.items()]
        words = [port, servers, self._folder.name, setup, *variables]
        paths = os.pathsep.join(filter(None, sys.path))
        self.environment = os.environ | {"PYTHONPATH": paths}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loopback", *map(str, words)],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._pids = [int(pid) for pid in self._process.stdout.readline().split()]
        try:
            self.wait(servers)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def wait(self, servers):
        """Until so many have registered."""
        until = time.monotonic() + 120
        while self._registered() != servers:
            assert time.monotonic() < until, "servers don't register"
            time.sleep(0.05)

    def said(self, number):
        """What a server has printed so far."""
        return Path(self._folder.name, f"{number}.txt").read_text()

    def end(self, number):
        """Kill a server and the process of its session."""
        pid, self._pids[number] = self._pids[number], None
        for each in processes():
            if each.parent == pid:
                with suppress(ProcessLookupError):  # it may end by itself
                    os.kill(each.pid, 9)
        os.kill(pid, 9)

    def __exit__(self, *_):
        for number, pid in enumerate(self._pids):
            if pid is not None:
                self.end(number)
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def _registered(self):
        try:
            return self.tracker.servers()
        except InputError:
            return 0


class Process(NamedTuple):
    """One of this machine."""

    pid: int
    parent: int


def processes():
    """Those that run now; one that has ended stays listed until somebody asks how."""
    command = ["ps", "-eo", "pid=,ppid=,stat="]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in listed.splitlines()]
    return [Process(int(pid), int(parent)) for pid, parent, state in found if state[0] != "Z"]


def free_port():
    """One that nobody listens at now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _main(port, servers, folder, setup, *environment):
    from tvm.rpc.server import PopenRPCServerState
    from tvm.rpc.tracker import PopenTrackerServerState

    pids = []
    for number in range(int(servers)):
        ours = free_port()
        pids.append(os.fork())
        if not pids[-1]:
            while not _listens(int(port)):  # TVM's server would look again after five seconds
                time.sleep(0.01)
            with Path(folder, f"{number}.txt").open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if number == 0:
                os.environ.update(each.split("=", 1) for each in environment)
            if setup:
                module, _, function = setup.partition(":")
                getattr(import_module(module), function)()
            tracker = ("127.0.0.1", int(port))
            PopenRPCServerState(
                "127.0.0.1", ours, ours + 1, tracker_addr=tracker, key=KEY
            ).thread.join()
            os._exit(0)
    tracker = PopenTrackerServerState("127.0.0.1", int(port), int(port) + 1, silent=True)
    print(*pids, flush=True)
    tracker.thread.join()


def _listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    _main(*sys.argv[1:])
