"""Load pickled tensors without the file's code, and without what it could do to memory.

``torch.load(weights_only=True)`` calls only what it knows. Some of that takes a size from the file
(``bytearray(10**12)``), and nested tuples without end overflow the C stack when they are hashed. So
a pickle is looked through, without being executed, before torch reads it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from typing import IO, Any

import torch

from tvmq.capture.torch_archive import oddity

_ZIP = b"PK\x03\x04"
"""How a file begins that torch takes for an archive; how it ends doesn't matter to torch."""
_DEEPEST = 64
_MOST_STEPS = 2**20
_OLD_PARTS = 5
"""Pickles in front of the numbers in a file that torch wrote before version 1.6."""


def load_tensors(file: IO[bytes]) -> Any:
    """What a file of ``torch.save`` holds, if it is made of tensors and plain Python values.

    Raises:
        pickle.UnpicklingError: something else is in it.
        Exception: whatever torch meets in a damaged file.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(len(_ZIP)) == _ZIP:
        with zipfile.ZipFile(file) as archive:
            if what := oddity(archive, size):
                raise pickle.UnpicklingError(what)
            for name in archive.namelist():
                if name.casefold().endswith("data.pkl"):  # torch ignores case
                    with archive.open(name) as record:
                        verify_pickle(record)
    else:
        file.seek(0)
        for _ in range(_OLD_PARTS):
            verify_pickle(file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


_INTO_THE_FIRST = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"})
_BY_NUMBER = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_FROM_NUMBER = frozenset({"GET", "BINGET", "LONG_BINGET"})


def verify_pickle(file: IO[bytes]) -> None:
    """Follow a pickle up to its end, keeping only how deep each value is nested.

    Raises:
        pickle.UnpicklingError: it nests too deep, is too long, or takes memory by a number.
        ValueError: it is damaged.
    """
    stack: list[int | None] = []  # None is a mark
    memo: dict[Any, int | None] = {}
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if step > _MOST_STEPS:
                raise pickle.UnpicklingError("it is too long")
            if opcode.name == "GLOBAL" and str(argument).endswith(" bytearray"):
                raise pickle.UnpicklingError("it makes a bytearray")
            if opcode.name == "MARK":
                stack.append(None)
            elif opcode.name in _BY_NUMBER:
                memo[argument] = stack[-1]
            elif opcode.name in _FROM_NUMBER:
                stack.append(memo[argument])
            else:
                _follow(opcode, stack)
                if stack and (stack[-1] or 0) > _DEEPEST:
                    raise pickle.UnpicklingError("it is nested too deep")
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError("it is no whole pickle") from error


def _follow(opcode: pickletools.OpcodeInfo, stack: list[int | None]) -> None:
    taken: list[int] = []
    count = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        count = opcode.stack_before.index(pickletools.markobject)
        while (top := stack.pop()) is not None:
            taken.append(top)
    for _ in range(count):
        taken.append(stack.pop() or 0)
    taken.reverse()
    if opcode.name in _INTO_THE_FIRST:  # which was as deep as it is before
        stack.append(max([taken[0], *(depth + 1 for depth in taken[1:])]))
    else:
        depth = max(taken) + 1 if taken else 0
        stack.extend(depth for _ in opcode.stack_after)
