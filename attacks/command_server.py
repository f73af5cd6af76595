"""A process that has torch and TVM imported and runs each command line in a child of its own.

    with CommandServer() as server:
        done = server.run(["inspect", "model.pt2"], folder, seconds=60)

Forking takes milliseconds, importing seconds. The server is a process apart from the one that shows
progress, since one with threads can't be forked safely.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

ESCAPED = 99
"""Exit code of a child out of which an exception came."""
TIMED_OUT = -signal.SIGALRM
MEMORY = 6 * 2**30
"""Bytes of addresses that a child may have more than the server."""


@dataclass(frozen=True)
class Done:
    """What a command line did: exit code (negative: the signal that ended it) and its words."""

    code: int
    out: str
    err: str


class CommandServer:
    """Runs command lines."""

    def __enter__(self) -> CommandServer:
        """Start the process; it imports while the caller goes on."""
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TVM_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "attacks.command_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, words: list[str], folder: Path, seconds: float) -> Done:
        """Run a command line in a folder, for so long at most."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"words": words, "folder": str(folder), "seconds": seconds}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Done(**json.loads(self._process.stdout.readline()))


def _serve() -> None:
    import torch  # noqa: F401
    import tvm  # noqa: F401

    import tvmq.cli.build
    import tvmq.flow
    import tvmq.inspection
    import tvmq.pages.profile_page
    import tvmq.run.session  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(vars(_run(**request))), flush=True)


def _run(words: list[str], folder: str, seconds: float) -> Done:
    spoken = [os.memfd_create(name) for name in ("out", "err")]
    child = os.fork()
    if child == 0:
        _be_the_command(words, folder, spoken)
    status = _wait(child, time.monotonic() + seconds)
    code = TIMED_OUT if status is None else os.waitstatus_to_exitcode(status)
    texts = []
    for descriptor in spoken:
        os.lseek(descriptor, 0, os.SEEK_SET)
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
            texts.append(file.read(2**20))
    return Done(code, *texts)


def _wait(child: int, end: float) -> int | None:
    pause = 0.002
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(pause)
        pause = min(0.05, 1.2 * pause)


def _be_the_command(words: list[str], folder: str, spoken: list[int]) -> None:
    """Never returns, whatever happens: a child that did would serve, too."""
    code = ESCAPED
    try:
        os.setsid()
        used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        os.chdir(folder)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (spoken[0], 1), (spoken[1], 2)):
            os.dup2(source, target)
        from tvmq.cli import main

        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
