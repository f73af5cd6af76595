"""A call in its loops, and what the encoders of all units need of it.

An instruction of MM or VU has a fixed number of loops in a fixed order, each with an extent and,
per operand, a stride; some strides are implied by the instruction. An encoder pads the call's loops
to that number, checks the implied strides, and gives up where the shape is another one: ``compute``
then takes a loop away and asks again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from targets.npu.emit.emitted import reach
from targets.npu.emit.numbers import Numbers
from targets.npu.emit.touched_bytes import Span


@dataclass(frozen=True)
class Axis:
    """A loop around a call: its extent and, per pointer of the call, its stride in elements."""

    extent: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """An intrinsic's call in its loops.

    Attributes:
        starts: byte address of each pointer; of all visits that differ in nothing else.
        axes: outermost first; loops of extent 1 left out.
        fields: of the intrinsic, as ``schedule.intrinsics`` declares them.
        initialise: whether the sums start at zero.
    """

    starts: tuple[Numbers, ...]
    axes: tuple[Axis, ...]
    fields: Any
    initialise: bool


def pad(axes: tuple[Axis, ...], count: int, pointers: int) -> tuple[Axis, ...]:
    """Loops of extent 1 in front, so that there are ``count``."""
    return (*[Axis(1, (0,) * pointers)] * (count - len(axes)), *axes)


def rows_fit(axes: tuple[Axis, ...], pointer: int, columns: int) -> bool:
    """Whether the pixel loops walk consecutive accumulator rows.

    An instruction names its first row only: pixel (m1, m0) has row ``acc_row + m1 * extent + m0``.
    """
    outer, inner = axes
    consecutive = inner.extent == 1 or inner.strides[pointer] == columns
    return consecutive and (outer.extent == 1 or outer.strides[pointer] == inner.extent * columns)


def span(memory: int, call: Call, axes: tuple[Axis, ...], pointer: int, last: int) -> Span:
    """What a pointer touches, first byte to last: ``last`` bytes at each step of ``axes``.

    Tokens need no more than this hull: a gap in it can only make an instruction wait in vain.
    """
    begin = call.starts[pointer]
    length = reach([a.extent for a in axes], [a.strides[pointer] for a in axes], last)
    return Span(f"mem{memory}", begin, begin + length)
