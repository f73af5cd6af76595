"""Tensors of which only the rows that are needed at a time lie in ACT: a rolling buffer.

A layer makes rows, the next one reads windows of them, and rows that no window needs any more give
their place to new ones. Row r lies at place ``r % period``. A window must be in one piece, and one
that begins in the last rows of a period goes on beyond it; so the first ``overlap`` rows of a
period are written twice, at their place and behind the period before.

    period 4, overlap 1     0 1 2 3 4   rows 0 to 4; 4 is also written to place 0
                            4 5 6 7 8   and so on

The layers are scheduled as if the whole tensor lay in ACT. Here the calls of intrinsics that touch
it are cut where rows that follow each other don't lie so, and get the addresses at which they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from targets.npu.emit.call_nest import Axis, Call
from targets.npu.emit.emitted import Place, Rows
from targets.npu.emit.numbers import Table, alike, of_visits


@dataclass(frozen=True)
class RolledCall:
    """A call at the addresses where the rows lie, and which rows it takes and makes."""

    call: Call
    takes: Rows | None
    makes: Rows | None


def rolled(
    call: Call, places: Sequence[Place], itemsizes: Sequence[int], visits: int
) -> Iterator[tuple[Table, list[RolledCall]]]:
    """The call, cut and moved to where the rows are; as it is where nothing rolls.

    Args:
        call: with addresses as if tensors lay there whole.
        places: of its pointers, the written one last.
        itemsizes: bytes of what they point to.
        visits: that it is of.

    Yields:
        Visits in which it is cut alike, and the calls.
    """
    written = len(places) - 1
    rolling = places[written].rolling
    if rolling is None:
        moved, takes = _taking(call, places)
        yield np.arange(visits), [RolledCall(moved, takes, None)]
        return
    offset = np.broadcast_to(call.starts[written] - places[written].address, visits)
    first, within = np.divmod(offset, rolling.row_bytes)
    n = next((n for n, a in enumerate(call.axes) if a.strides[written] == rolling.row_bytes), None)
    axis = Axis(1, (0,) * len(places)) if n is None else call.axes[n]
    rows = first.tolist()
    runs = {row: [*rolling.written(row, row + axis.extent)] for row in set(rows)}
    cuts = [tuple([(begin - row, end - row) for begin, end, _ in runs[row]]) for row in rows]
    kinds = {cut: kind for kind, cut in enumerate(dict.fromkeys(cuts))}
    for which in alike([np.array([kinds[cut] for cut in cuts])], visits):
        to = np.array([[place for _, _, place in runs[row]] for row in first[which].tolist()])
        calls = []
        for part, (begin, end) in enumerate(cuts[which[0]]):
            steps = zip(call.starts, axis.strides, itemsizes, strict=True)
            starts = [of_visits(start, which) + begin * step * size for start, step, size in steps]
            place = places[written].address + to[:, part] * rolling.row_bytes
            starts[written] = place + within[which]
            axes = call.axes
            if n is not None:
                cut = [replace(axis, extent=end - begin)] if end - begin > 1 else []
                axes = (*axes[:n], *cut, *axes[n + 1 :])
            moved, takes = _taking(replace(call, starts=tuple(starts), axes=axes), places)
            calls.append(RolledCall(moved, takes, Rows(first[which] + begin, first[which] + end)))
        yield which, calls


def _taking(call: Call, places: Sequence[Place]) -> tuple[Call, Rows | None]:
    """The call with the window that it reads where it lies, and that window's rows."""
    for pointer, place in enumerate(places[:-1]):
        rolling = place.rolling
        if rolling is not None:
            first, within = np.divmod(call.starts[pointer] - place.address, rolling.row_bytes)
            starts = list(call.starts)
            starts[pointer] = place.address + rolling.read(first) * rolling.row_bytes + within
            last = within + sum((a.extent - 1) * a.strides[pointer] for a in call.axes)
            rows = Rows(first, first + last // rolling.row_bytes + 1)
            return replace(call, starts=tuple(starts)), rows
    return call, None
