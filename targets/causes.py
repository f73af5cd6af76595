"""What exceptions of the system, of Python and of libraries mean to a user."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from targets.errors import InputError, TvmqError

_ADVICE = {
    errno.EACCES: "Change its permissions, or give another.",
    errno.EPERM: "Change its permissions, or give another.",
    errno.ENAMETOOLONG: "Give a shorter one.",
    errno.EISDIR: "Give a file.",
    errno.ENOTDIR: "Give a path whose folders are folders.",
    errno.ENOENT: "Give one that exists.",
    errno.ELOOP: "Mend its symbolic links.",
    errno.ENOSPC: "Free some space, or give another disk.",
    errno.EDQUOT: "Free some space, or give another disk.",
    errno.EROFS: "Give one on a disk that can be written.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.ENFILE: "Close programs that hold files open.",
}

_OUT_OF_MEMORY = (
    "can't allocate memory",  # torch
    "not enough memory",
    "out of memory",
    "bad_alloc",  # of C++, TVM's and torch's
    "bad allocation",
    "Storage size calculation overflowed",  # torch, of tensors beyond 2**63 bytes
)


@dataclass(frozen=True)
class Cause:
    """Why something failed that is no fault of tvmq.

    Attributes:
        what: in a few words.
        advice: a sentence of what to do.
        kind: the error whose exit code it has.
    """

    what: str
    advice: str
    kind: type[TvmqError] = InputError


def cause_of(error: BaseException) -> Cause | None:
    """Why an exception was raised, as far as its type and text tell; None if they don't."""
    if isinstance(error, OSError) and error.errno is not None:
        # strerror of a subclass may be about something else, such as an archive
        what = os.strerror(error.errno)
        return Cause(what[0].lower() + what[1:], _ADVICE.get(error.errno, "Give another."))
    if isinstance(error, RecursionError):
        return Cause("nested too deeply", "Make it simpler.", TvmqError)
    if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
        return Cause("too large for this machine's memory", "Ask for less at a time.", TvmqError)
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return Cause("has a NUL character in its name", "Give another.")
    return None


def in_words(error: BaseException, advice: str, known: str = "") -> str:
    """What an exception says, and what to do.

    Args:
        error: any.
        advice: a sentence for where nothing but its text is known.
        known: one for where its cause is; the cause's own advice if left out.
    """
    cause = cause_of(error)
    if cause is None:
        return f"{first_line(error)}. {advice}"
    return f"{cause.what}. {known or cause.advice}"


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
