"""A tensor of all calibration images, in memory or in a file: rows are written once, read often.

Files are read and not mapped. What is mapped counts as memory of the process as long as the system
keeps it, so that the caches of a network of 224 x 224 pixels would take more than all the rest.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

import torch

from targets.errors import InputError

IN_MEMORY = 2**28
"""Bytes above which a tensor of all images lies in a file."""

AT_ONCE = 2**24
"""Bytes that are read at a time where all of them are."""


class StoredRows:
    """Rows of one tensor.

    Attributes:
        shape: of all of it.
        dtype: of a number.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Make room, for now with whatever is there.

        Args:
            path: of the file, if there has to be one.
            shape: of all rows.
            dtype: of a number.

        Raises:
            InputError: there is no room for the file.
        """
        self.shape, self.dtype = shape, dtype
        self.row = math.prod(shape[1:]) * dtype.itemsize
        self.memory: torch.Tensor | None = None
        if shape[0] * self.row <= IN_MEMORY:
            self.memory = torch.empty(shape, dtype=dtype)
        else:
            self.path = path
            self.file = _reserved(path, shape[0] * self.row)

    def put(self, first: int, part: torch.Tensor) -> None:
        """Write the rows from ``first`` on."""
        if self.memory is not None:
            self.memory[first : first + len(part)] = part
        else:
            self._move(os.pwrite, part.to(self.dtype).contiguous(), first)

    def get(self, which: torch.Tensor | slice) -> torch.Tensor:
        """Some rows; those of a slice may be the memory of the store itself."""
        if self.memory is not None:
            # Indexing would go element by element, this copies whole rows.
            some = isinstance(which, slice)
            return self.memory[which] if some else self.memory.index_select(0, which)
        rows = range(self.shape[0])[which] if isinstance(which, slice) else which.tolist()
        part = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        if isinstance(rows, range) and rows.step == 1:
            if len(rows):
                self._move(_read, part, rows.start)
        else:
            for i, row in enumerate(rows):
                self._move(_read, part[i : i + 1], row)
        return part

    def parts(self) -> Iterator[torch.Tensor]:
        """All rows, some at a time."""
        some = max(1, AT_ONCE // max(1, self.row))
        for first in range(0, self.shape[0], some):
            yield self.get(slice(first, min(first + some, self.shape[0])))

    def drop(self) -> None:
        """Forget all of it."""
        if self.memory is None:
            self.file.close()
            self.path.unlink(missing_ok=True)

    def _move(self, how: Callable[..., int], part: torch.Tensor, first: int) -> None:
        """Read or write rows, in as many calls as the system takes for it."""
        view = memoryview(part.numpy()).cast("B")
        done = 0
        while done < len(view):
            done += how(self.file.fileno(), view[done:], first * self.row + done)


def _read(file: int, view: memoryview, offset: int) -> int:
    found = os.preadv(file, [view], offset)
    if not found:
        raise EOFError("a file of calibration images has become shorter")
    return found


def _reserved(path: Path, size: int) -> FileIO:
    """A file with all its room: nothing should fail for lack of it after an hour.

    Raises:
        InputError: there is no such room.
    """
    try:
        file = path.open("w+b", buffering=0)
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: {error.strerror}: what a unit reads for all images needs "
            f"{math.ceil(size / 2**20):,} MB there. Free some, set the environment variable TMPDIR "
            "to a folder with more, or give fewer --calib-samples."
        ) from error
    return file
