"""How a verb speaks: results on stdout, everything else on stderr, and the options for both."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from tvmq.progress import Progress

PIPE_WIDTH = 160
"""Columns of a table that no terminal shows; files and pagers take longer lines than 80."""


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
        return Console(no_color=self.plain or None, highlight=False, width=width)

    @property
    def stderr(self) -> Console:
        """For errors, notes and progress."""
        return Console(stderr=True, no_color=self.plain or None, highlight=False)

    def progress(self) -> Progress:
        """What a job reports to."""
        if self.quiet:
            return Progress()
        return Progress(self.stderr, verbose=self.verbosity > 0)

    def error(self, text: str) -> None:
        """One line of what, where and what to do."""
        self.stderr.print(f"[bold red]error:[/] {_escape(text)}", soft_wrap=True)

    def say(self, text: str) -> None:
        """A line of the result."""
        self.stdout.print(text, markup=False, soft_wrap=True)

    def print_json(self, data: Any) -> None:
        """The whole machine output of a verb."""
        print(json.dumps(data, indent=2))

    def table(self, headings: list[str], rows: list[list[str]], right: set[str]) -> None:
        """A table of the result; columns named in ``right`` are numbers."""
        table = Table(box=rich.box.SIMPLE_HEAD)
        for heading in headings:
            table.add_column(
                heading, justify="right" if heading in right else "left", overflow="fold"
            )
        for row in rows:
            table.add_row(*(_escape(cell) for cell in row))
        self.stdout.print(table)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
