"""Read the rows of an array inside an .npz a few at a time, without loading the array."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from targets.errors import InputError
from targets.reading import reading


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
            _read_header(stream)
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
        """The whole array; for small ones."""
        parts = list(self.chunks(max(1, self.shape[0])))
        return parts[0] if parts else np.empty(self.shape, self.dtype)


def npz_members(path: Path) -> dict[str, NpzMember]:
    """Keys, shapes and types of an .npz, from the headers only.

    Raises:
        InputError: if the file is no .npz, or an array can't be read row by row.
    """
    members = {}
    with (
        reading(path, "a readable .npz", "Write it with np.savez."),
        zipfile.ZipFile(path) as archive,
    ):
        for name in archive.namelist():
            key = name.removesuffix(".npy")
            with archive.open(name) as stream:
                shape, fortran, dtype = _read_header(stream)
            if dtype.hasobject:
                raise InputError(f"{path}: {key!r} holds Python objects; save plain numbers")
            if fortran and len(shape) > 1:
                raise InputError(
                    f"{path}: {key!r} is stored column by column; save np.ascontiguousarray of it"
                )
            members[key] = NpzMember(path, key, shape, dtype)
    return members


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending indices as half-open ranges, so that neighbours are read at once."""
    first = last = indices[0]
    for index in indices[1:]:
        if index != last + 1:
            yield first, last + 1
            first = index
        last = index
    yield first, last + 1
