"""Which instructions have to come first, by the bytes that they touch.

Wherever an instruction touches bytes that an earlier one touched, and one of the two writes, the
earlier one has to be done: whatever order instructions are issued in (``issue_order.py``), and
however their units run ahead of each other (``tokens.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TypeAlias

from targets.npu.emit.emitted import Emitted
from targets.npu.emit.touched_bytes import TouchedBytes

_Readers: TypeAlias = "tuple[int, _Readers] | None"
"""The last reader and those before it: pieces that were one share their past."""

_Users: TypeAlias = tuple[int, _Readers]
"""Who wrote a piece of memory last, -1 for nobody, and who has read it since."""


def hazards(emitted: Iterable[Emitted]) -> list[set[int]]:
    """Per instruction, which of those before it have to come first.

    Those that wrote what it reads, and those that read or wrote what it writes; not what these
    themselves had to follow.
    """
    spaces: defaultdict[str, TouchedBytes[_Users]] = defaultdict(lambda: TouchedBytes((-1, None)))
    needs = []
    for index, each in enumerate(emitted):
        before: set[int] = set()
        for span in each.reads:
            space = spaces[span.space]
            known = space.known
            for n in space.pieces(span):
                writer, readers = known[n]
                before.add(writer)
                known[n] = writer, (index, readers)
        seen: set[int] = set()
        for span in each.writes:
            space = spaces[span.space]
            pieces = space.pieces(span)
            for n in pieces:
                writer, reader = space.known[n]
                before.add(writer)
                while reader is not None and id(reader) not in seen:
                    seen.add(id(reader))
                    before.add(reader[0])
                    reader = reader[1]
            space.cover(pieces, (index, None))
        before -= {-1, index}
        needs.append(before)
    return needs
