"""When every instruction of a program ran: what ``timing.py`` finds and everybody else reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Run:
    """When one instruction ran; cycles from the program's start.

    Attributes:
        queued: it is in its unit's queue.
        token: when the last token it pops came, and from which unit; -1 if it pops none.
        unheld: the tokens of the unit's instructions before it have all found room.
        start: decoding begins.
        decoded: decoding ends.
        asked: the bus is requested.
        bus: the transfer [begin, end); equal for what does not touch DRAM.
        work: the unit works on it [begin, end); of LD and ST the transfer.
        done: it has completed.
    """

    queued: int = -1
    token: tuple[int, int] = (-1, -1)
    unheld: int = 0
    start: int = -1
    decoded: int = -1
    asked: int = -1
    bus: tuple[int, int] = (0, 0)
    work: tuple[int, int] = (0, 0)
    done: int = -1


@dataclass(frozen=True)
class Timeline:
    """A program's run on a machine.

    Attributes:
        total: cycles until everything has completed.
        runs: one per instruction, in program order.
        fetch: transfers [begin, end) of instructions on the bus.
    """

    total: int
    runs: tuple[Run, ...]
    fetch: tuple[tuple[int, int], ...]
