"""What a long job tells while it runs: stages, their seconds, and bars with the time left.

Everything goes to stderr; stdout belongs to results. Bars are drawn on terminals only, so logs and
pipes get plain lines. ``Progress()`` says nothing at all, which is what library callers get.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.status import Status

from targets.causes import cause_of, first_line
from targets.errors import TvmqError, UnsupportedError
from targets.interrupts import check

LINE_EVERY = 20.0
"""Seconds between the lines of a long job where no terminal shows a bar."""


_LIBRARY = re.compile(r"[/\\](torch|tvm|tvm_ffi)[/\\]|\.(cc|cpp|h)$")
"""Files of torch and TVM in tracebacks; TVM puts those of its C++ there, too."""


class Bar(Protocol):
    """What is done, what there is in all (None: unknown), and a few words about it."""

    def __call__(self, done: int, total: int | None, words: str = "") -> None:
        """Show it."""


class Progress:
    """Listens to a job.

    Attributes:
        seconds: of every stage that has ended, in order.
    """

    def __init__(self, console: Console | None = None, *, verbose: bool = False) -> None:
        """Speak to ``console`` (None: say nothing); ``verbose`` adds a line per stage."""
        self.seconds: dict[str, float] = {}
        self._console = console
        self._verbose = verbose
        self._status: Status | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block and show that it is running; the end of a stage heeds interrupts.

        Raises:
            UnsupportedError: the block raised what torch or TVM say of a network that no stage
                before it has refused.
        """
        start = time.perf_counter()
        with _in_words(name):
            if self._console is not None and self._console.is_terminal:
                with self._console.status(name) as self._status:
                    yield
                self._status = None
            else:
                yield
        check()
        self.seconds[name] = round(time.perf_counter() - start, 3)
        if self._verbose:
            self._say(f"{name}: {self.seconds[name]:.2f} s")

    @contextmanager
    def bar(self, what: str) -> Iterator[Bar]:
        """A function to call now and then: a bar on terminals, otherwise a line at times."""
        if self._console is None:
            yield lambda done, total, words="": check()
            return
        if not self._console.is_terminal:
            yield _Lines(what, self.note)
            return
        if self._status is not None:  # a terminal shows one thing that moves at a time
            self._status.stop()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(what, total=None)

            def show(done: int, total: int | None, words: str = "") -> None:
                check()
                text = f"{what} {words}".rstrip()
                bars.update(task, completed=done, total=total, description=text)

            yield show
        if self._status is not None:
            self._status.start()

    def note(self, text: str) -> None:
        """Say something that the user should know whatever the verbosity (but not with -q)."""
        self._say(text)

    def _say(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _in_words(stage: str) -> Iterator[None]:
    try:
        yield
    except (TvmqError, ImportError):
        raise
    except Exception as error:
        check()  # an interrupt becomes many things on its way up
        if cause_of(error) is not None or not _is_of_a_library(error):
            raise
        raise UnsupportedError(
            f"stage {stage}: this network is beyond it ({type(error).__name__}: "
            f"{first_line(error)}). Report it with the output of -vv; until it is mended, "
            "`tvmq inspect` of parts of the network shows which layer it is."
        ) from error


def _is_of_a_library(error: Exception) -> bool:
    """Whether torch or TVM raised it, in C++ or in their own Python, rather than our code."""
    if isinstance(error, RuntimeError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and _LIBRARY.search(frames[-1].filename) is not None


class _Lines:
    """A bar for logs: a line every ``LINE_EVERY`` seconds, so nothing about short jobs."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self.what, self.say = what, say
        self.began = self.said = time.perf_counter()
        self.first = self.last = 0
        self.total: int | None = None

    def __call__(self, done: int, total: int | None, words: str = "") -> None:
        check()
        now = time.perf_counter()
        if done < self.last or total != self.total:
            # What an earlier run has done says nothing about the speed, nor does another count.
            self.first, self.total, self.began = done, total, now
        self.last = done
        if now - self.said < LINE_EVERY:
            return
        self.said = now
        left = f" of {total}" if total else ""
        if total and done > self.first:
            seconds = (now - self.began) / (done - self.first) * (total - done)
            left += f", {seconds:.0f} s left"
        self.say(f"{self.what}: {done}{left}" + (f"; {words}" if words else ""))
