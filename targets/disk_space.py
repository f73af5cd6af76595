"""Room on disks: how much there is, and whether an error comes of there being none."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from targets.errors import InputError, TvmqError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, the user's share of it, or a file larger than a limit."""

WORDS = {number: os.strerror(number) for number in NO_ROOM}
LIMIT_WORDS = "File size limit exceeded"
"""What is said of a process that such a limit has ended, by shells and compilers."""

PROBE = 2**20
"""Bytes. Whoever could not write leaves a disk with less, whatever their error says."""

ADVICE = (
    "Free some, or choose another place: for temporary files, with the environment variable TMPDIR."
)


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def megabytes(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 1e6:,.1f} MB"


@contextmanager
def told_when_full(*folders: Path) -> Iterator[None]:
    """Say it where an error in the block comes of a full disk.

    Enter it behind whatever removes half-written files: a disk is asked before it has room again.

    Args:
        folders: on the disks that the block writes to.

    Raises:
        InputError: a disk is full.
    """
    try:
        yield
    except Exception as error:
        # of ours only what puts a library's error into words may come of a disk
        met = error.__cause__ if isinstance(error, TvmqError) else error
        library = not isinstance(error, TvmqError) or isinstance(met, RuntimeError)
        if library and met is not None and (full := explained(met, *folders)):
            raise full from error
        raise


def explained(error: BaseException, *folders: Path) -> InputError | None:
    """What to tell where an error comes of a full disk, as far as one can find out.

    Libraries that write through C++, and programs that are called, give exceptions without a
    number, some without a text. So texts are searched, and then the disks are asked.

    Args:
        error: raised while something was written.
        folders: on the disks that were written to; none for the standard output.
    """
    reason, file = _said(error)
    if not reason:
        asked = ((_asked(folder), str(folder)) for folder in folders)
        reason, file = next((found for found in asked if found[0]), ("", ""))
    if not reason:
        return None
    if file:
        folders = (Path(file),)
    place = min(folders, key=free_bytes, default=None)
    where = place or "standard output"
    if reason == WORDS[errno.EFBIG]:
        return _limited(f"{where}: {reason} for this process")
    free = f"; {megabytes(free_bytes(place))} are free there" if place else ""
    return InputError(f"{where}: {reason}{free}. {ADVICE}")


def require_room(folder: Path, count: int, what: str) -> None:
    """Refuse to begin what can't be finished.

    Args:
        folder: to write to; it need not exist yet.
        count: bytes that it will take.
        what: takes them.

    Raises:
        InputError: its disk has less, or the process may not write so much.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and limit < count:
        raise _limited(f"{folder}: {what} may take {megabytes(count)}, more than a file may have")
    free = free_bytes(folder)
    if free < count:
        raise InputError(
            f"{folder}: {what} may take {megabytes(count)}; {megabytes(free)} are free there. "
            f"{ADVICE}"
        )


def _limited(what: str) -> InputError:
    return InputError(f"{what}. Raise the limit: `ulimit -f unlimited`.")


def _said(error: BaseException) -> tuple[str, str]:
    """Reason and file that an error or one of its causes names."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in NO_ROOM:
            return WORDS[one.errno], str(one.filename or "")
        text = str(one)
        for words in (*WORDS.values(), LIMIT_WORDS):
            if words in text:
                return words.replace(LIMIT_WORDS, WORDS[errno.EFBIG]), ""
    return "", ""


def _asked(folder: Path) -> str:
    """Why a folder takes no file of ``PROBE`` bytes; "" if it takes one."""
    with contextlib.suppress(AttributeError):
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, PROBE)
        except OSError as error:
            return WORDS.get(error.errno or 0, "")
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
