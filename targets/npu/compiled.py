"""Loops over the instructions of a program, compiled by Numba when they are called first.

What is compiled takes arrays and numbers. It is kept beside its module, by the module's time and
size; so what it is made of stands in the same module, but for the numbers of units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """The same function, compiled."""
    try:
        made = numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder can be written: it lives as long as the process
        made = numba.njit(error_model="numpy")(function)
    return cast(F, made)


def inlined(function: F) -> F:
    """The same, as a part of those that call it."""
    return cast(F, numba.njit(inline="always")(function))
