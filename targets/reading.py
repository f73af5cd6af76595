"""Reading what a user gave: whatever goes wrong is an InputError that names the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from targets.causes import cause_of, first_line
from targets.errors import InputError, TvmqError

LARGEST_TEXT = 2**28
"""Bytes of a text file; a plan of a large network, learned codes included, has some 10 million."""


@contextmanager
def reading(
    path: str | Path, what: str, advice: str = "", kind: type[InputError] = InputError
) -> Iterator[None]:
    """Turn whatever the block raises into an InputError.

    Args:
        path: what is read in the block.
        what: it should be, such as "an .npz".
        advice: a sentence of what to do where the content is wrong.
        kind: the error to raise.

    Raises:
        InputError: the block raised an exception of another kind than our own.
    """
    try:
        yield
    except TvmqError:
        raise
    except Exception as error:  # parsers raise whatever they meet
        cause = cause_of(error)
        words = (
            f"not {what} ({first_line(error)}). {advice}"
            if cause is None
            else f"can't be read: {cause.what}. {cause.advice}"
        )
        raise kind(f"{path}: {words}".strip()) from error


def what_is(path: str | Path) -> Literal["nothing", "file", "folder", "pipe", "device"]:
    """What stands at a path, or at the end of the links that stand there.

    Raises:
        InputError: the system can't say, because of permissions or the path itself.
    """
    with reading(path, "a path"):
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116  # Path.stat of "" is that of "."
        except (FileNotFoundError, NotADirectoryError):
            return "nothing"
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISFIFO(mode):
        return "pipe"
    return "file" if stat.S_ISREG(mode) else "device"


def check_is_file(path: str | Path, advice: str, *, or_pipe: bool = False) -> None:
    """Check that a file can be read to its end.

    Args:
        path: of the file.
        advice: a sentence of what to do where it is none.
        or_pipe: a pipe will do, since it is read from its beginning to its end.

    Raises:
        InputError: nothing is there, or something else.
    """
    found = what_is(path)
    if found != "file" and not (or_pipe and found == "pipe"):
        words = "no such file" if found == "nothing" else f"is a {found}"
        raise InputError(f"{path}: {words}. {advice}")


def read_text(path: Path, what: str, advice: str) -> str:
    """The text of a file.

    Args:
        path: of the file.
        what: it should be, such as "a plan".
        advice: a sentence of what to do where it isn't.

    Raises:
        InputError: there is no such file, or it is no text, or one beyond all measure.
    """
    check_is_file(path, advice, or_pipe=True)
    with reading(path, what, advice), path.open("rb") as file:
        data = file.read(LARGEST_TEXT + 1)
        if len(data) > LARGEST_TEXT:
            raise InputError(f"{path}: too large for {what}. {advice}")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text. {advice}") from error
