"""Which instructions have to come first, by the bytes that they touch.

Wherever an instruction touches bytes that an earlier one touched, and one of the two writes, the
earlier one has to be done: whatever order instructions are issued in (``issue_order.py``), and
however their units run ahead of each other (``tokens.py``).

Of each memory and DRAM region it is known who has written its bytes last and who has read them
since, in pieces that are touched alike. A touch cuts at its two ends, and a write makes one piece
of all that it covers. So there are at most two pieces more than touches that are still of interest,
and a walk over a program takes time in proportion to its length.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from targets.npu.compiled import compiled, inlined
from targets.npu.emit.touched_bytes import TouchedBytes

Table = npt.NDArray[np.int64]
NOBODY = -1


class Needs(NamedTuple):
    """Per instruction, which of those before it have to come first.

    Attributes:
        numbers: of those, int64[m], instruction by instruction.
        ends: where those of an instruction end, int64[n].
    """

    numbers: Table
    ends: Table


def hazards(touched: TouchedBytes) -> Needs:
    """Per instruction, which of those before it have to come first.

    Those that wrote what it reads, and those that read or wrote what it writes; not what these
    themselves had to follow.
    """
    return Needs(*_hazards(touched.spans, touched.ends))


_BEGIN, _WRITER, _READER = range(3)
"""Of a piece, its first byte, who wrote it last, and the entry of who has read it since last."""
_WHO, _BEFORE, _SEEN_BY = range(3)
"""Of an entry, who has read, the entry before it, and who has looked at it last: pieces that were
one share their past."""


@compiled
def _hazards(spans: Table, ends: Table) -> tuple[Table, Table]:
    """The attributes of ``Needs``."""
    spaces = spans[:, 0].max() + 1 if len(spans) else 0
    # Of each memory, pieces in the order of their bytes; the last one has no end.
    pieces = np.empty((spaces, 2 * len(spans) + 1, 3), np.int64)
    count = np.ones(spaces, np.int64)
    for space in range(spaces):
        pieces[space, 0, _BEGIN], pieces[space, 0, _WRITER] = 0, NOBODY
        pieces[space, 0, _READER] = NOBODY
    entries, known = np.empty((64, 3), np.int64), 0
    needs, found = np.empty(64, np.int64), 0
    behind = np.empty(len(ends), np.int64)
    needed_by = np.full(len(ends), NOBODY, np.int64)
    for index in range(len(ends)):
        for at in range(ends[index - 1, 1] if index else 0, ends[index, 1]):
            space = spans[at, 0]
            first = _cut(pieces[space], count, space, spans[at, 1], 0)
            stop = _cut(pieces[space], count, space, spans[at, 2], first + 1)
            reads = at < ends[index, 0]
            for n in range(first, stop):
                piece = pieces[space, n]
                needs, found = _need(needs, found, needed_by, piece[_WRITER], index)
                if reads:
                    if known == len(entries):
                        entries = _longer(entries)
                    entry = entries[known]
                    entry[_WHO], entry[_BEFORE], entry[_SEEN_BY] = index, piece[_READER], NOBODY
                    piece[_READER] = known
                    known += 1
                    continue
                reader = piece[_READER]
                while reader != NOBODY and entries[reader, _SEEN_BY] != index:
                    entries[reader, _SEEN_BY] = index
                    needs, found = _need(needs, found, needed_by, entries[reader, _WHO], index)
                    reader = entries[reader, _BEFORE]
            if not reads:
                _cover(pieces[space], count, space, first, stop)
                pieces[space, first, _WRITER], pieces[space, first, _READER] = index, NOBODY
        behind[index] = found
    return needs[:found].copy(), behind


@inlined
def _need(needs: Table, found: int, needed_by: Table, who: int, index: int) -> tuple[Table, int]:
    """Write down that an instruction needs another, once."""
    if who != NOBODY and who != index and needed_by[who] != index:
        needed_by[who] = index
        if found == len(needs):
            needs = _longer(needs)
        needs[found] = who
        found += 1
    return needs, found


@inlined
def _longer(table: Table) -> Table:
    return np.concatenate((table, np.empty_like(table)))


@inlined
def _cut(pieces: Table, count: Table, space: int, byte: int, first: int) -> int:
    """The piece that begins with a byte, one of those from the first; it is made if need be."""
    now = count[space]
    n = first + int(np.searchsorted(pieces[first:now, _BEGIN], byte))
    if n == now or pieces[n, _BEGIN] != byte:
        for place in range(now, n, -1):
            pieces[place] = pieces[place - 1]
        pieces[n] = pieces[n - 1]
        pieces[n, _BEGIN] = byte
        count[space] += 1
    return n


@inlined
def _cover(pieces: Table, count: Table, space: int, first: int, stop: int) -> None:
    """Make one piece of some."""
    gone = stop - first - 1
    for place in range(first + 1, count[space] - gone):
        pieces[place] = pieces[place + gone]
    count[space] -= gone
