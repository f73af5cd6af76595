"""Why a program ends when it does: the chain of instructions each of which let the next one start.

An instruction starts once it is in its queue, its unit is free and its tokens are there, and a
transfer begins once the bus is free. Of these the last one leads back to another instruction, and
from the end of the program so to its beginning. Where it was a unit or the bus, the two could have
had it in the other order: nothing else on the chain could have been earlier for that.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from targets.npu.price.timeline import Timeline
from targets.npu.price.timing import UNITS, Records


class HeldUp(NamedTuple):
    """Positions in a program: ``later`` waited for the unit or the bus that ``earlier`` had."""

    earlier: int
    later: int


def held_up(timeline: Timeline, steps: Records) -> list[HeldUp]:
    """Those on the chain that ends last, from the end.

    Args:
        timeline: of the program.
        steps: its instructions, ``STEP[n]``.
    """
    runs = timeline.runs
    unit_of, moves = steps["unit"].tolist(), (steps["bus"] > 0).tolist()
    halts = steps["halts"].tolist()
    units: list[list[int]] = [[] for _ in range(UNITS)]
    place = []  # of an instruction among those of its unit
    for position, number in enumerate(unit_of):
        place.append(len(units[number]))
        units[number].append(position)
    # Instructions of a unit complete in order.
    done = [[runs[position].done for position in unit] for unit in units]
    transfers = {run.bus[1]: n for n, run in enumerate(runs) if moves[n]}

    def completed(unit: int, time: int) -> int | None:
        """The last one of a unit that had completed by then."""
        count = bisect_right(done[unit], time)
        return units[unit][count - 1] if count else None

    found = []
    at = max(range(len(steps)), key=lambda n: (not halts[n], runs[n].done), default=None)
    transfer = True  # it is about what follows the start, too
    while at is not None:
        run, unit = runs[at], unit_of[at]
        before = units[unit][place[at] - 1] if place[at] else None
        arrival, source = run.token
        other: int | None
        if transfer and moves[at] and run.bus[0] > run.asked:
            other = transfers.get(run.bus[0])  # None: the bus brought instructions
        elif before is not None and run.start > max(arrival, run.queued, run.unheld):
            transfer = not moves[before]
            free = runs[before].work[1] if transfer else runs[before].decoded
            if run.start > free:  # as many transfers were in flight as may be
                transfer, before = True, completed(unit, run.start)
            other = before
        else:
            waited = arrival >= max(run.queued, run.unheld, 0)
            at, transfer = (completed(source, arrival), True) if waited else (before, False)
            continue
        if other is None:
            at, transfer = before, False
        else:
            found.append(HeldUp(other, at))
            at = other
    return found
