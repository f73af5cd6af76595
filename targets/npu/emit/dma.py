"""Copies and fills as DMA instructions: strided boxes of bytes, with a border of the zero point.

copy nest  ->  LD or ST   x_bytes, y, z and their strides; loops that don't fit are unrolled
turned     ->  LD         bytes beside each other in DRAM land apart: ``transpose``
bounds     ->  LD         the box shrinks to what lies inside; pad fields write the border around it
fill       ->  LD (fill)  bytes written without reading DRAM

    copy nest -> _Box -> _coalesce: axes that continue each other become one -> _pieces: at most
    three axes, each within its field -> _transfer: one instruction each

The border of a convolution is not in DRAM. A schedule reads the whole stripe under conditions, one
per edge that the stripe can cross; here the loops around it have numbers, so that the conditions
come down to a range per loop, and most stripes of an image turn out to lie inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from targets.npu.emit.emitted import Emitted, Place, reach
from targets.npu.emit.loop_tree import Folded
from targets.npu.emit.numbers import Numbers, Table, alike, of_visits
from targets.npu.emit.touched_bytes import Span
from targets.npu.emit.visits import Visits
from targets.npu.machine import isa

_LIMITS = tuple(
    min(isa.largest(kind, name) for kind in (isa.Load, isa.Store)) for name in ("z", "y", "x_bytes")
)
"""Largest z, y and x_bytes of one instruction."""
_PAD_X = isa.largest(isa.Load, "pad_x0", "pad_x1")
_PAD_Y = isa.largest(isa.Load, "pad_y0", "pad_y1")


@dataclass(frozen=True)
class _Axis:
    """A loop of a copy; strides in bytes."""

    extent: int
    source: int
    target: int


@dataclass(frozen=True)
class _Box:
    """A copy in bytes, axes outermost first."""

    source: Numbers
    target: Numbers
    axes: tuple[_Axis, ...]


def emit_copy(visits: Visits, places: Mapping[str, Place]) -> Iterator[tuple[Table, list[Emitted]]]:
    """LD or ST instructions of one copy nest.

    Yields:
        Visits whose instructions differ in addresses alone, and these.
    """
    source, target = (places[offset.buffer] for offset in visits.leaf.offsets)
    for which, folded in visits.leaf.fold(visits.env, len(visits)):
        if 0 in folded.extents:
            continue
        axes = tuple(
            _Axis(extent, s * source.itemsize, t * target.itemsize)
            for extent, (s, t) in zip(folded.extents, folded.strides, strict=True)
        )
        box = _Box(
            source.address + folded.bases[0] * source.itemsize,
            target.address + folded.bases[1] * target.itemsize,
            (*axes, _Axis(source.itemsize, 1, 1)),
        )
        if visits.leaf.bounds:
            for inside, ranges in _inside(visits.part(which), folded):
                starts = of_visits(box.source, inside), of_visits(box.target, inside)
                moved = _Box(*starts, box.axes)
                yield which[inside], _bordered(moved, ranges, source, target, visits.leaf.fill)
            continue
        merged = _coalesce(box.axes)
        turned = _turned(merged) if source.dram else None
        made = partial(_transfer, source=source, target=target, turned=turned is not None)
        yield which, [e for piece in _pieces(turned or merged, box) for e in _fitting(piece, made)]


def emit_fill(visits: Visits, places: Mapping[str, Place]) -> Iterator[tuple[Table, list[Emitted]]]:
    """Fill-only LD instructions of one fill nest; yields as ``emit_copy``."""
    target = places[visits.leaf.offsets[0].buffer]
    for which, folded in visits.leaf.fold(visits.env, len(visits)):
        axes = tuple(
            _Axis(extent, 0, t * target.itemsize)
            for extent, (t,) in zip(folded.extents, folded.strides, strict=True)
        )
        start = target.address + folded.bases[0] * target.itemsize
        box = _Box(0, start, (*axes, _Axis(target.itemsize, 0, 1)))
        yield which, _fill(box, target, visits.leaf.fill)


def fill_rows(
    target: Place, at: int, rows: int, length: int, pitch: int, value: int
) -> list[Emitted]:
    """Fill-only LD instructions of ``rows`` runs of ``length`` bytes, ``pitch`` bytes apart."""
    box = _Box(0, target.address + at, (_Axis(rows, 0, pitch), _Axis(length, 0, 1)))
    return _fill(box, target, value) if rows * length else []


def _fill(box: _Box, target: Place, value: int) -> list[Emitted]:
    box = replace(box, axes=tuple(replace(a, source=0) for a in box.axes))

    def filled(piece: _Box) -> Emitted:
        z, y, x = piece.axes
        load = isa.Load(
            mem=target.index,
            fill=True,
            padval=value & 0xFF,
            spm_addr=piece.target,
            x_bytes=x.extent,
            y=y.extent,
            z=z.extent,
            spm_ystride=y.target,
            spm_zstride=z.target,
        )
        return Emitted(load, (), (_span(target, piece, target=True),))

    return [e for piece in _pieces(_coalesce(box.axes), box) for e in _fitting(piece, filled)]


def _coalesce(axes: tuple[_Axis, ...]) -> tuple[_Axis, ...]:
    """Merge axes that continue each other, drop those of extent 1; the last one counts bytes."""
    merged: list[_Axis] = []
    for axis in reversed(axes):
        if axis.extent == 1 and merged:
            continue
        if merged:
            inner = merged[0]
            whole = inner.extent * inner.source, inner.extent * inner.target
            if (axis.source, axis.target) == whole:
                merged[0] = replace(inner, extent=inner.extent * axis.extent)
                continue
        merged.insert(0, axis)
    return tuple(merged)


def _pieces(axes: tuple[_Axis, ...], box: _Box) -> Iterator[_Box]:
    """Boxes of exactly (z, y, x) within the fields' limits, in order."""
    if len(axes) > 3:
        head, *rest = axes
        for n in range(head.extent):
            moved = _Box(box.source + n * head.source, box.target + n * head.target, ())
            yield from _pieces(tuple(rest), moved)
        return
    # Cut the first axis that its field can't count; the pieces are cut further, if need be.
    padded = (*[_Axis(1, 0, 0)] * (3 - len(axes)), *axes)
    for depth, (axis, limit) in enumerate(zip(padded, _LIMITS, strict=True)):
        if axis.extent > limit:
            for begin in range(0, axis.extent, limit):
                part = replace(axis, extent=min(limit, axis.extent - begin))
                moved = _Box(box.source + begin * axis.source, box.target + begin * axis.target, ())
                yield from _pieces((*padded[:depth], part, *padded[depth + 1 :]), moved)
            return
    yield _Box(box.source, box.target, padded)


def _turned(axes: tuple[_Axis, ...]) -> tuple[_Axis, ...] | None:
    """The axes of a transposing LD, (z, y, x) last; None where the copy is none.

    Bytes that are beside each other in DRAM (x) land apart, and those of the planes (z) together.
    """
    if len(axes) < 3 or axes[-1].extent > 1 or axes[-2].source != 1:
        return None
    if axes[-3].target == 1:
        return (*axes[:-2], _Axis(1, 0, 0), axes[-2])
    return axes[:-1] if len(axes) > 3 and axes[-4].target == 1 else None


def _fitting(box: _Box, made: Callable[[_Box], Emitted]) -> Iterator[Emitted]:
    """A box of (z, y, x), its outer loops unrolled where a field can't hold their strides."""
    whole = made(box)
    if isa.fits(whole.instruction):
        yield whole
        return
    depth = next(n for n, axis in enumerate(box.axes) if axis.extent > 1)
    axis = box.axes[depth]
    rest = (*box.axes[:depth], _Axis(1, 0, 0), *box.axes[depth + 1 :])
    for n in range(axis.extent):
        moved = _Box(box.source + n * axis.source, box.target + n * axis.target, rest)
        yield from _fitting(moved, made)


def _transfer(box: _Box, source: Place, target: Place, *, turned: bool = False) -> Emitted:
    """One LD or ST of a box of (z, y, x)."""
    z, y, x = box.axes
    reads, writes = (_span(source, box, target=False),), (_span(target, box, target=True),)
    sizes = {"x_bytes": x.extent, "y": y.extent, "z": z.extent}
    if target.dram:
        store = isa.Store(
            mem=source.index,
            region=target.index,
            spm_addr=box.source,
            dram_off=box.target,
            dram_ystride=y.target,
            dram_zstride=z.target,
            spm_ystride=y.source,
            spm_zstride=z.source,
            **sizes,
        )
        return Emitted(store, reads, writes)
    load = isa.Load(
        mem=target.index,
        region=source.index,
        spm_addr=box.target,
        dram_off=box.source,
        dram_ystride=y.source,
        dram_zstride=z.source,
        transpose=turned,
        spm_ystride=x.target if turned else y.target,
        spm_zstride=y.target if turned else z.target,
        **sizes,
    )
    return Emitted(load, reads, writes)


def _span(place: Place, box: _Box, *, target: bool) -> Span:
    begin = box.target if target else box.source
    strides = [a.target if target else a.source for a in box.axes]
    length = reach([a.extent for a in box.axes], strides, 1)
    return Span(place.space, begin, begin + length)


def _inside(visits: Visits, folded: Folded) -> Iterator[tuple[Table, list[tuple[int, int]]]]:
    """Per loop, the range [begin, end) where the conditions hold; each reads at most one loop.

    Yields:
        Visits in which these are the same, and the ranges.
    """
    env = {name: indices[:, None] for name, indices in visits.env.items()}
    good = [np.ones((len(visits), extent), np.bool_) for extent in folded.extents]
    for bound in visits.leaf.bounds:
        mine = [n for n, name in enumerate(folded.names) if name in bound.reads]
        n = mine[0] if mine else 0
        here = {**env, folded.names[n]: np.arange(folded.extents[n])}
        good[n] &= np.asarray(bound.at(here), np.bool_)
    # An edge holds on one side of a row or column, so what is good is without gaps.
    begins = [np.argmax(each, axis=1) for each in good]
    ends = [begin + each.sum(axis=1) for begin, each in zip(begins, good, strict=True)]
    for which in alike([*begins, *ends], len(visits)):
        first = which[0]
        ranges = zip(begins, ends, strict=True)
        yield which, [(int(begin[first]), int(end[first])) for begin, end in ranges]


def _bordered(
    box: _Box, ranges: list[tuple[int, int]], source: Place, target: Place, fill: int
) -> list[Emitted]:
    """Load what lies inside, ``fill`` around it: one LD with a pad, or a fill and then loads."""
    if any(begin == end for begin, end in ranges):
        return _fill(box, target, fill)
    inner_axes, source_at, target_at = [], box.source, box.target
    for axis, (begin, end) in zip(box.axes, [*ranges, (0, box.axes[-1].extent)], strict=True):
        inner_axes.append(replace(axis, extent=end - begin))
        source_at = source_at + begin * axis.source
        target_at = target_at + begin * axis.target
    inner = _Box(source_at, target_at, tuple(inner_axes))
    if tuple(a.extent for a in inner.axes) == tuple(a.extent for a in box.axes):
        return [_transfer(piece, source, target) for piece in _pieces(_coalesce(inner.axes), inner)]
    padded = _padded(box, inner, ranges, source, target, fill)
    if padded is not None:
        return [padded]
    pieces = _pieces(_coalesce(inner.axes), inner)
    return _fill(box, target, fill) + [_transfer(piece, source, target) for piece in pieces]


def _padded(
    box: _Box, inner: _Box, ranges: list[tuple[int, int]], source: Place, target: Place, fill: int
) -> Emitted | None:
    """The stripe in one LD, where the nest is (row, column, channel) and the border fits it.

    The border then costs nothing: LD writes it while DRAM answers. It needs rows without gaps in
    DRAM and in the memory, because the pad fields count bytes in front of and behind a whole row.
    """
    if len(box.axes) != 4:
        return None
    (row, column, channel, byte), (top, bottom), (left, right) = box.axes, ranges[0], ranges[1]
    pixel = channel.extent * byte.extent
    dense = column.target == pixel and column.source == pixel and channel.target == byte.extent == 1
    pads_x = (left * pixel, (column.extent - right) * pixel)
    pads_y = (top, row.extent - bottom)
    x_bytes, rows = (right - left) * pixel, bottom - top
    if not dense or max(pads_x) > _PAD_X or max(pads_y) > _PAD_Y:
        return None
    if x_bytes > _LIMITS[2] or rows > _LIMITS[1]:
        return None
    flat = _Box(
        inner.source,
        inner.target,
        (_Axis(1, 0, 0), replace(row, extent=rows), _Axis(x_bytes, 1, 1)),
    )
    transfer = _transfer(flat, source, target)
    load = replace(
        transfer.instruction,
        padval=fill & 0xFF,
        spm_addr=box.target,
        pad_x0=pads_x[0],
        pad_x1=pads_x[1],
        pad_y0=pads_y[0],
        pad_y1=pads_y[1],
    )
    return Emitted(load, transfer.reads, (_span(target, box, target=True),))
