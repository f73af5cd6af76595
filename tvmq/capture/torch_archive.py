"""Open a zip archive that torch wrote, and bound what reading it takes by the size of the file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from targets.errors import InputError

_BROKEN = (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError)
_ENCRYPTED = 0x1
_LONGEST_NAME = 1_000


def is_archive(path: Path) -> bool:
    """Whether a file ends like a zip archive, possibly a damaged one."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive by its index.

    Raises:
        InputError: the file has no index, or ends within a record.
    """
    try:
        archive = zipfile.ZipFile(path)
    except _BROKEN as error:
        raise InputError(f"{path} is a corrupt archive ({error}); copy it again") from error
    with archive:
        # A truncated file can end in the index of an archive that it holds as a record.
        if min((record.header_offset for record in archive.infolist()), default=0) > 0:
            raise truncated(path)
        yield archive


def verify_stored(path: Path, archive: zipfile.ZipFile) -> None:
    """Check that every record can be read whole, and that all are as torch stores them.

    Raises:
        InputError: the archive is damaged, or no writer of torch made it.
    """
    if what := oddity(archive, path.stat().st_size):
        raise InputError(
            f"{path} is an archive, but not as torch writes them ({what}); save the model again"
        )
    _verify_records(path, archive)


def oddity(archive: zipfile.ZipFile, size: int) -> str:
    """What no archive of torch has, or "".

    torch stores its records as they are, each once. Deflated or overlapping ones could become far
    larger than the file, and of two whose names differ in case only, readers choose differently.

    Args:
        archive: an archive, whose records aren't read.
        size: bytes of its file.
    """
    seen: set[str] = set()
    for record in archive.infolist():
        name = record.filename
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & _ENCRYPTED:
            return f"record {name[:80]!r} is compressed or encrypted"
        if name.casefold() in seen:
            return f"there are two records {name[:80]!r}"
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            return f"a record is called {name[:80]!r}"
        seen.add(name.casefold())
    if sum(record.file_size for record in archive.infolist()) > size:
        return "its records are larger than the file"
    return ""


def _verify_records(path: Path, archive: zipfile.ZipFile) -> None:
    try:
        damaged = archive.testzip()
    except _BROKEN as error:
        raise InputError(f"{path} is a corrupt archive ({error}); copy it again") from error
    if damaged is not None:
        raise InputError(f"{path} is a corrupt archive: record {damaged} is damaged; copy it again")


def truncated(path: Path) -> InputError:
    """For an archive that ends before its index."""
    return InputError(
        f"{path} is a truncated or corrupt archive (its index is missing); copy it again"
    )
