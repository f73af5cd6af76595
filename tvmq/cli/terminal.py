"""How a verb speaks: results on stdout, everything else on stderr, and the options for both."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, Literal

import rich.box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable

from tvmq.progress import Progress

PIPE_WIDTH = 200
"""Columns of a table that no terminal shows; files and pagers take longer lines than 80."""

LAST_COLUMN = 36
"""Characters that the last column gets at least; what is longer goes on in the next line."""


class _Console(Console):
    """One that leaves to its caller that the reader has gone, where rich exits with 1."""

    def on_broken_pipe(self) -> None:
        raise  # called where it is caught


@dataclass
class Terminal:
    """The options that every verb has.

    Attributes:
        verbosity: 0, 1 (a line per stage) or 2 (tracebacks).
        quiet: only errors on stderr.
        plain: no colors; the environment variable NO_COLOR does the same.
        json: machine output on stdout.
    """

    verbosity: int = 0
    quiet: bool = False
    plain: bool = False
    json: bool = False

    @property
    def stdout(self) -> Console:
        """For results."""
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        return _Console(no_color=self.plain or None, highlight=False, width=width)

    @property
    def stderr(self) -> Console:
        """For errors, notes and progress."""
        return _Console(stderr=True, no_color=self.plain or None, highlight=False)

    def progress(self) -> Progress:
        """What a job reports to."""
        if self.quiet:
            return Progress()
        return Progress(self.stderr, verbose=self.verbosity > 0)

    def error(self, text: str) -> None:
        """One line of what, where and what to do; names in it can't break the line or color it."""
        plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        self.stderr.print(f"[bold red]error:[/] {_escape(plain)}", soft_wrap=True)

    def say(self, text: str) -> None:
        """A line of the result."""
        self.stdout.print(text, markup=False, soft_wrap=True)

    def print_json(self, data: Any) -> None:
        """The whole machine output of a verb."""
        print(json.dumps(data, indent=2))

    def table(
        self,
        headings: list[str],
        rows: list[list[str]],
        right: set[str],
        dispensable: tuple[str, ...] = (),
    ) -> None:
        """A table of the result.

        Args:
            headings: of the columns.
            rows: cells.
            right: columns of numbers.
            dispensable: columns to leave out, the first first, until a narrow terminal holds the
                table with all cells but those of its last column on one line; a line below says
                which.
        """
        kept, left_out, console = list(headings), [], self.stdout
        unlimited = console.options.update(max_width=10_000)
        for heading in dispensable:
            others = Measurement.get(console, unlimited, _table(headings, rows, right, kept[:-1]))
            if others.maximum + LAST_COLUMN <= console.width:
                break
            kept.remove(heading)
            left_out.append(heading)
        console.print(_table(headings, rows, right, kept))
        if left_out:
            self.say(f"This terminal is too narrow for {', '.join(left_out)}; --json has them.")


def _table(
    headings: list[str], rows: list[list[str]], right: set[str], kept: list[str]
) -> RichTable:
    table = RichTable(box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in kept:
        justify: Literal["left", "right"] = "right" if heading in right else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    for row in rows:
        cells = dict(zip(headings, row, strict=True))
        table.add_row(*(_escape(cells[heading]) for heading in kept))
    return table


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
