"""Numbers of all visits of a statement at once: what is the same in each is an int, else an array.

A statement is visited once for each step of the loops around it, often thousands of times, and most
of what an instruction says is the same each time but for its addresses. So a number is worked out
for all visits in one go, and visits that differ in more than addresses are told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Table: TypeAlias = npt.NDArray[np.int64]
Numbers: TypeAlias = Any
"""An int, or int64[n], one of each visit."""


def alike(numbers: Sequence[Numbers], visits: int) -> Iterator[Table]:
    """Visits with the same numbers, in order."""
    different = [each for each in numbers if isinstance(each, np.ndarray)]
    if not different:
        yield np.arange(visits)
        return
    _, kinds = np.unique(np.stack(different), axis=1, return_inverse=True)
    kinds = kinds.reshape(-1)
    yield from np.split(np.argsort(kinds, kind="stable"), np.cumsum(np.bincount(kinds))[:-1])


def of_visits(number: Numbers, which: Table) -> Numbers:
    """Of some visits; an int where it is one alone."""
    if not isinstance(number, np.ndarray):
        return int(number)
    return number[which] if len(which) > 1 else int(number[which[0]])
