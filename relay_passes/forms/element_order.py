"""Orders of elements as runs that a DMA unit can copy.

What reshapes and transpositions make of a tensor is its elements in another order: nested loops,
each a number of steps of one stride. Three of the loops are a run, (h, w, c); the others are
unrolled, a run for each of their steps. A run is written densely into a view (H, W, C) of the
result, beside those of the loops that stand in front of its own:

    windows of an image     y, (j, x c) of band i       a run for each of a band's windows
    patches, every second   y, x, c of phase (i, j)     a run for each phase
    heads in front          h, t, c                     one run
    rows as columns         c, t                        one run, turned
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from relay_passes.relax_nodes import Array
from targets.layers import Index

Loop = tuple[int, int]
"""How many steps of which stride."""

MOST_RUNS = 256
"""More are as many loads of few bytes each."""

LARGE_ROW = 1 << 16
"""Elements of a row of the view that a scratchpad may not hold twice."""


@dataclass(frozen=True)
class Run:
    """Elements that are copied together, all (h, w, c).

    Attributes:
        first: number of the first element read.
        strides: elements from one that is read to the next.
        size: elements.
        at: of the first element written, in the view.
    """

    first: int
    strides: Index
    size: Index
    at: Index


def runs_of(elements: Array) -> tuple[Index, tuple[Run, ...]] | None:
    """The view that elements are written to, and the runs that write them.

    Args:
        elements: of the result, in its order, the number of the source's element each is.

    Returns:
        None if they are no nest of loops, or of too many runs.
    """
    loops = loops_of(elements.reshape(-1))
    if loops is None:
        return None
    best, least = None, (True, MOST_RUNS + 1, 0)
    for rows, columns in _choices(loops):
        chosen = {rows, columns, len(loops) - 1}
        count = math.prod(n for i, (n, _) in enumerate(loops) if i not in chosen)
        behind = math.prod(n for n, _ in loops[rows + 1 :])
        if count <= MOST_RUNS and (behind > LARGE_ROW, count, behind) < least:
            best, least = (rows, columns), (behind > LARGE_ROW, count, behind)
    return None if best is None else _written(loops, int(elements.flat[0]), *best)


def loops_of(elements: Array) -> list[Loop] | None:
    """The nest of loops, outermost first, whose steps give these numbers; None if there is none."""
    loops: list[Loop] = []
    while len(elements) > 1:
        stride = int(elements[1] - elements[0])
        breaks = np.flatnonzero(np.diff(elements) != stride)
        count = int(breaks[0]) + 1 if len(breaks) else len(elements)
        if len(elements) % count:
            return None
        outer = elements[::count]
        if (elements.reshape(-1, count) != outer[:, None] + np.arange(count) * stride).any():
            return None
        loops.insert(0, (count, stride))
        elements = outer
    return loops or [(1, 1)]


def _choices(loops: list[Loop]) -> Iterator[tuple[int, int]]:
    """Loops that may be a run's rows and columns; -1 for columns of one.

    Elements that lie together in the source are read together.
    """
    last = len(loops) - 1
    for rows in range(max(last, 1)):
        for columns in (-1, *range(rows + 1, last)):
            if any(loops[i][1] == 1 for i in {rows, max(columns, 0), last}) or last == 0:
                yield rows, columns


def _written(
    loops: list[Loop], first: int, rows: int, columns: int
) -> tuple[Index, tuple[Run, ...]]:
    """The view, whose axes end with these two loops and the last one, and the runs."""
    last = len(loops) - 1
    if last == 0:
        ((count, stride),) = loops
        whole = Run(first, (0, 0, stride), (1, 1, count), (0, 0, 0))
        return (1, 1, count), (whole,)
    ends = (rows, columns if columns >= 0 else rows, last)
    axes = [range(begin + 1, end + 1) for begin, end in zip((-1, *ends), ends, strict=False)]
    inner = [axis[-1] if axis else -1 for axis in axes]
    size = tuple(loops[i][0] if i >= 0 else 1 for i in inner)
    strides = tuple(loops[i][1] if i >= 0 else 0 for i in inner)
    view = tuple(math.prod(loops[i][0] for i in axis) for axis in axes)
    runs = []
    unrolled = [i for axis, own in zip(axes, inner, strict=True) for i in axis if i != own]
    for steps in product(*(range(loops[i][0]) for i in unrolled)):
        step = dict(zip(unrolled, steps, strict=True))
        at = []
        for axis in axes:
            place = 0
            for i in axis:
                place = place * loops[i][0] + step.get(i, 0)
            at.append(place)
        begin = first + sum(n * loops[i][1] for i, n in step.items())
        runs.append(Run(begin, strides, size, (at[0], at[1], at[2])))  # type: ignore[arg-type]
    return view, tuple(runs)  # type: ignore[return-value]
