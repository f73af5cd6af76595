"""Read the rows of an array inside an .npz a few at a time, without loading the array."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from targets.errors import InputError
from targets.reading import reading

_LONGEST_HEADER = 2**16
_LARGEST_ROW = 2**28
_LARGEST_WHOLE = 2**28
"""Bytes: what is read at once can be a thousand times larger than the file."""

_BEST_COMPRESSION = 1_100
"""Times that deflate can make zeros smaller, rounded up; whoever declares more is lying."""


@dataclass(frozen=True)
class NpzMember:
    """An array of an .npz: where it is, its shape and type."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def chunks(self, size: int, indices: Sequence[int] | None = None) -> Iterator[npt.NDArray[Any]]:
        """Rows in order, at most ``size`` at a time.

        Args:
            size: at least 1.
            indices: rows to read, ascending; all if None.

        Raises:
            InputError: if the file ends early or its compression is damaged.
        """
        wanted: Sequence[int] = range(self.shape[0]) if indices is None else indices
        where = f"{self.path}: the array {self.key!r}"
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.key}.npy") as stream:
            stream.seek(_read_header(stream).size)
            position = 0
            for start in range(0, len(wanted), size):
                rows = []
                for first, last in _runs(wanted[start : start + size]):
                    with reading(where, "what was written there", "Copy the file again."):
                        stream.seek((first - position) * row_bytes, 1)
                        data = stream.read((last - first) * row_bytes)
                    if len(data) != (last - first) * row_bytes:
                        raise InputError(f"{where} ends early. Copy the file again.")
                    rows.append(np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:]))
                    position = last
                yield rows[0] if len(rows) == 1 else np.concatenate(rows)

    def read(self) -> npt.NDArray[Any]:
        """The whole array; for small ones.

        Raises:
            InputError: as ``chunks``; also if it is large.
        """
        size = math.prod(self.shape) * self.dtype.itemsize
        if size > _LARGEST_WHOLE:
            raise InputError(
                f"{self.path}: the array {self.key!r} has {size >> 20} MB, which is more than "
                f"labels need; give less"
            )
        parts = list(self.chunks(max(1, self.shape[0])))
        return parts[0] if parts else np.empty(self.shape, self.dtype)


def npz_keys(path: Path) -> list[str]:
    """Names of the arrays of an .npz.

    Raises:
        InputError: if the file is no .npz.
    """
    with _opened(path) as archive:
        names = archive.namelist()
    for name in names:
        if not name.endswith(".npy"):
            raise InputError(f"{path}: {name[:80]!r} is no array; write it with np.savez")
    return [name.removesuffix(".npy") for name in names]


def npz_member(path: Path, key: str) -> NpzMember:
    """Shape and type of an array of an .npz, from its header only.

    Raises:
        InputError: if the array can't be read row by row.
    """
    with _opened(path) as archive:
        record = archive.getinfo(f"{key}.npy")
        with archive.open(record) as stream:
            header = _read_header(stream)
    _check_header(f"{path}: {key!r}", header, record)
    return NpzMember(path, key, header.shape, header.dtype)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with (
        reading(path, "a readable .npz", "Write it with np.savez."),
        zipfile.ZipFile(path) as archive,
    ):
        yield archive


class _Header(NamedTuple):
    """What stands before the numbers of an array, and how many bytes that takes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    size: int


def _read_header(stream: IO[bytes]) -> _Header:
    start = io.BytesIO(stream.read(_LONGEST_HEADER))
    try:
        old = np.lib.format.read_magic(start) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        return _Header(*read(start), start.tell())
    except Exception as error:  # numpy's parser raises whatever it meets in the text
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the header of an array is wrong: {words}") from error


def _check_header(where: str, header: _Header, record: zipfile.ZipInfo) -> None:
    """Check that an array is as large as it says, and its rows are not too large to be read."""
    shape, dtype = header.shape, header.dtype
    if dtype.hasobject:
        raise InputError(f"{where} holds Python objects; save plain numbers")
    if header.fortran and len(shape) > 1:
        raise InputError(f"{where} is stored column by column; save np.ascontiguousarray of it")
    if (
        any(type(size) is not int or size < 0 for size in shape)
        or dtype.itemsize == 0
        or 0 in shape[1:]
    ):
        raise InputError(f"{where} has shape {list(shape)} of {dtype}; save an array of numbers")
    if math.prod(shape) * dtype.itemsize != record.file_size - header.size:
        raise InputError(
            f"{where} says that it has shape {str(list(shape))[:100]}, but holds "
            f"{record.file_size - header.size:,} bytes; write it with np.savez"
        )
    if record.file_size > record.compress_size * _BEST_COMPRESSION + _LONGEST_HEADER:
        raise InputError(f"{where} says that it is larger than it can be; write it with np.savez")
    if math.prod(shape[1:]) * dtype.itemsize > _LARGEST_ROW:
        raise InputError(
            f"{where} has {math.prod(shape[1:]) * dtype.itemsize >> 20} MB for one image; "
            f"give at most {_LARGEST_ROW >> 20} MB"
        )


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending indices as half-open ranges, so that neighbours are read at once."""
    first = last = indices[0]
    for index in indices[1:]:
        if index != last + 1:
            yield first, last + 1
            first = index
        last = index
    yield first, last + 1
