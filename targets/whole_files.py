"""Files and folders that are whole or not there: written beside their place, put there in one step.

What is being written lies in a hidden folder beside its place, a *room*. The kernel exchanges it
with what stands there, so that a kill at any moment leaves the old or the new, and no reader finds
nothing. A room is locked by the process that writes; however that ends, the lock is free then, and
whoever writes to the same place next knows what a kill has left and removes it.

Readers of a folder lock it, too (``Held``): what they read is one folder to the end, which stays
until they are done, even if another has taken its place.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from targets.disk_space import explained, told_when_full
from targets.errors import InputError, TvmqError
from targets.interrupts import held_back

LOCK, NEW, OLD = "lock", "new", "old"
"""All that a room holds: the lock, what is being written, and what stood there (see ``_put``)."""

LONGEST_NAME = 200
"""Bytes; a room's name is the place's and a few characters, and file systems limit both to 255."""

_AT_CWD, _EXCHANGE = -100, 2
"""Of renameat2."""

_RANDOM = re.compile(r"[a-z0-9_]{8}")
"""How ``tempfile`` ends its names."""

_rooms: dict[Path, tuple[int, int]] = {}
"""Rooms of this process: the descriptor of the lock, and the process, which forks don't inherit."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes ``path`` when the block ends without an error.

    Enter it before the work, so that a place which can't be written is found before. A pipe or a
    device is written as it is.

    Raises:
        InputError: it can't be written, or there is no room for it.
    """
    place = Path(os.path.realpath(path))
    with contextlib.ExitStack() as stack:
        with _in_words(path, "file"):
            if path.exists() and not path.is_file():
                folder = None
                file = path.open("wb")
            else:
                folder = stack.enter_context(room(place.parent, _prefix(place)))
                file = (folder / NEW).open("wb")
            stack.push(lambda *_: _close(file))
        with told_when_full(place.parent):
            yield file
            with _in_words(path, "file"), held_back():
                file.close()
                if folder is not None:
                    if place.exists():
                        shutil.copymode(place, folder / NEW)
                    (folder / NEW).replace(place)


@contextmanager
def whole_folder(destination: Path, may_replace: Callable[[Path], None]) -> Iterator[Path]:
    """An empty folder, which takes the place of ``destination`` when the block ends without error.

    Whatever interrupts the block, the destination keeps what it had and nothing else is left.

    Args:
        destination: a folder, a link to one, or nothing yet.
        may_replace: raises where something stands there that must not be lost.

    Raises:
        InputError: it can't be written, or there is no room for it.
    """
    place = Path(os.path.realpath(destination))
    with contextlib.ExitStack() as stack:
        with _in_words(destination, "folder"):
            may_replace(place)
            if place.is_mount():
                raise OSError(errno.EBUSY, "it is a mount point; a folder in it will do")
            if place.exists() and not os.access(place, os.W_OK):  # found at the end otherwise
                raise OSError(errno.EACCES, "what stands there may not be moved")
            stack.enter_context(_parents(place.parent))
            folder = stack.enter_context(room(place.parent, _prefix(place), place))
            (folder / NEW).mkdir()
        with told_when_full(place.parent, Path(tempfile.gettempdir())):
            yield folder / NEW
            with _in_words(destination, "folder"), held_back():
                _put(folder, place, may_replace)


@contextmanager
def room(parent: Path, prefix: str, place: Path | None = None) -> Iterator[Path]:
    """A folder that goes with the block; the arguments are those of ``make_room``."""
    folder: Path | None = None
    try:
        with held_back():
            folder = make_room(parent, prefix, place)
        yield folder
    finally:
        if folder is not None:
            with held_back():
                _leave(folder)


def make_room(parent: Path, prefix: str, place: Path | None = None) -> Path:
    """A folder of this process, gone when it ends, or is killed and the next one like it is made.

    Args:
        parent: where it is made.
        prefix: how its name begins; others of that beginning whose processes are gone are removed.
        place: what is being replaced from it. If a kill has left nothing there, what stood there
            is put back first.
    """
    _sweep(parent, prefix, place)
    return _make(parent, prefix)


class Held:
    """A folder that stays what it is while this lives.

    Attributes:
        path: leads to the folder, even if another has taken its place.
    """

    def __init__(self, folder: Path) -> None:
        """Hold what stands there now.

        Raises:
            FileNotFoundError: nothing does.
            OSError: it is no folder, or can't be read.
        """
        descriptor = _open_steadily(folder)
        self._close = weakref.finalize(self, os.close, descriptor)
        path = Path(f"/proc/self/fd/{descriptor}")
        self.path = path if path.exists() else folder

    def file(self, name: str) -> Path:
        """The path of a file in it, which holds the folder as long as it lives itself."""
        path = _HeldFile(self.path / name)
        path.folder = self
        return path


class _HeldFile(type(Path())):  # type: ignore[misc]  # the class of the system's paths
    folder: Held


def _open_steadily(folder: Path) -> int:
    patience = 100  # of 2 ms; an exchange in two steps takes less than one
    while True:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            patience -= 1
            if patience < 0 or not _rooms_of(folder.parent, _prefix(folder)):
                raise
            time.sleep(0.002)
            continue
        free = _flock(descriptor, fcntl.LOCK_SH)
        if (free is not False and _is_at(descriptor, folder)) or not patience:
            return descriptor
        os.close(descriptor)  # it was being removed; what has taken its place is there already
        patience -= free is False


def _put(folder: Path, place: Path, may_replace: Callable[[Path], None]) -> None:
    """Put what is new into its place; what stood there comes into the room."""
    new, old = folder / NEW, folder / OLD
    while True:
        try:
            new.rename(place)  # where nothing or an empty folder stands
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        may_replace(place)
        try:
            if _exchange(new, place):
                try:
                    may_replace(new)  # what stood there to the last moment
                except TvmqError:
                    _exchange(new, place)
                    raise
                return
            place.rename(old)
        except FileNotFoundError:  # somebody has removed it meanwhile
            continue
        try:
            new.rename(place)
        except BaseException:
            old.rename(place)
            raise
        return


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where kernel or file system can't."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _make(parent: Path, prefix: str) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        try:
            descriptor, free = _lock(folder)
        except FileNotFoundError:  # swept before it was locked
            continue
        if free is not False and _is_at(descriptor, folder / LOCK):
            _rooms[folder] = descriptor, os.getpid()
            return folder
        os.close(descriptor)  # it is just being swept


def _leave(folder: Path) -> None:
    """Remove a room of this process, unless someone reads what stood in the place."""
    descriptor, _ = _rooms.pop(folder)
    _remove(folder)
    os.close(descriptor)


def _sweep(parent: Path, prefix: str, place: Path | None) -> None:
    """Remove the rooms whose processes are gone."""
    for folder in _rooms_of(parent, prefix):
        with contextlib.suppress(OSError):  # another sweeps, too
            if not (folder / LOCK).exists():
                folder.rmdir()  # made and not locked before a kill; or not empty and not ours
                continue
            descriptor, free = _lock(folder)
            try:
                if free and _is_at(descriptor, folder / LOCK):
                    with held_back():
                        if place is not None and (folder / OLD).exists() and not place.exists():
                            (folder / OLD).rename(place)
                        _remove(folder)
            finally:
                os.close(descriptor)


def _rooms_of(parent: Path, prefix: str) -> list[Path]:
    """Folders of this user that are called like rooms."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(parent):
            if not entry.name.startswith(prefix):
                continue
            if not _RANDOM.fullmatch(entry.name.removeprefix(prefix)):
                continue
            with contextlib.suppress(OSError):
                if (
                    entry.is_dir(follow_symlinks=False)
                    and entry.stat(follow_symlinks=False).st_uid == os.getuid()
                ):
                    found.append(Path(entry.path))
    return found


def _remove(folder: Path) -> None:
    """Remove a room that is locked, the lock last; nothing of it where a reader holds something."""
    descriptors = []
    try:
        for name in (NEW, OLD):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptors.append(os.open(folder / name, flags))
                if _flock(descriptors[-1], fcntl.LOCK_EX) is False:
                    return
        for path in folder.iterdir():
            if path.name == LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # the next sweep tries again
        pass
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _lock(folder: Path) -> tuple[int, bool | None]:
    """The descriptor of a room's lock, and whether it was free."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(folder / LOCK, flags, 0o600)
    return descriptor, _flock(descriptor, fcntl.LOCK_EX)


def _flock(descriptor: int, how: int) -> bool | None:
    """Whether a lock could be had; None on a file system that has none."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether what was opened stands at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _prefix(place: Path) -> str:
    name = place.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}."


def _close(file: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # what can't be written has been said, or is thrown away
        file.close()


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; those that were made go again if the block fails."""
    made: list[Path] = []
    try:
        with held_back():
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
                made.append(path)
        yield
    except BaseException:
        with held_back(), contextlib.suppress(OSError):  # of one that isn't empty any more
            for path in reversed(made):
                path.rmdir()
        raise


@contextmanager
def _in_words(path: Path, kind: str) -> Iterator[None]:
    """Say what is wrong with a place."""
    try:
        yield
    except OSError as error:
        if full := explained(error, path.parent):
            raise full from error
        raise InputError(
            f"{path}: can't be written ({error.strerror or error}). Give another {kind}."
        ) from error


@atexit.register
def _leave_all() -> None:
    """Remove what an interrupt has kept from being removed in time."""
    for folder, (_, process) in list(_rooms.items()):
        if process == os.getpid():
            _leave(folder)
