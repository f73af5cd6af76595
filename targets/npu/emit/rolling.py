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

from targets.npu.emit.call_nest import Axis, Call
from targets.npu.emit.emitted import Place, Rows


@dataclass(frozen=True)
class RolledCall:
    """A call at the addresses where the rows lie, and which rows it takes and makes."""

    call: Call
    takes: Rows | None
    makes: Rows | None


def rolled(call: Call, places: Sequence[Place], itemsizes: Sequence[int]) -> Iterator[RolledCall]:
    """The call, cut and moved to where the rows are; as it is where nothing rolls.

    Args:
        call: with addresses as if tensors lay there whole.
        places: of its pointers, the written one last.
        itemsizes: bytes of what they point to.
    """
    written = len(places) - 1
    rolling = places[written].rolling
    if rolling is None:
        call, takes = _taking(call, places)
        yield RolledCall(call, takes, None)
        return
    offset = call.starts[written] - places[written].address
    first, within = divmod(offset, rolling.row_bytes)
    n = next((n for n, a in enumerate(call.axes) if a.strides[written] == rolling.row_bytes), None)
    axis = Axis(1, (0,) * len(places)) if n is None else call.axes[n]
    for begin, end, place in rolling.written(first, first + axis.extent):
        steps = zip(call.starts, axis.strides, itemsizes, strict=True)
        starts = [start + (begin - first) * stride * size for start, stride, size in steps]
        starts[written] = places[written].address + place * rolling.row_bytes + within
        axes = call.axes
        if n is not None:
            part = [replace(axis, extent=end - begin)] if end - begin > 1 else []
            axes = (*axes[:n], *part, *axes[n + 1 :])
        moved, takes = _taking(replace(call, starts=tuple(starts), axes=axes), places)
        yield RolledCall(moved, takes, Rows(begin, end))


def _taking(call: Call, places: Sequence[Place]) -> tuple[Call, Rows | None]:
    """The call with the window that it reads where it lies, and that window's rows."""
    for pointer, place in enumerate(places[:-1]):
        rolling = place.rolling
        if rolling is not None:
            first, within = divmod(call.starts[pointer] - place.address, rolling.row_bytes)
            starts = list(call.starts)
            starts[pointer] = place.address + rolling.read(first) * rolling.row_bytes + within
            last = within + sum((a.extent - 1) * a.strides[pointer] for a in call.axes)
            rows = Rows(first, first + last // rolling.row_bytes + 1)
            return replace(call, starts=tuple(starts)), rows
    return call, None
