"""From wide integers to codes with one rounding: how everything ends that computes.

astype(clip(((t + half) >> shift) + zero_point, low, high), "uint8" | "int8")      half up
astype(clip((t >> shift) + zero_point, low, high), "uint8" | "int8")               to the floor
astype(clip((t >> shift) + up [+ zero_point], low, high), "uint8" | "int8")        by borders

up        astype(fraction >= astype(take(borders, index), t's), t's)
fraction  the highest eight bits that are shifted out, of 256ths
index     astype(clip(t >> shift, low - zero_point, high - zero_point - 1), "int64") + where the
          level's border lies, int64[K], or int64[] if all channels have the same

``half`` is 2**(shift - 1), and 0 where nothing is shifted out; without any shift neither it nor the
shift is written, and nothing is rounded (which is read as half up); without a zero point no sum
with it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from relay_passes.relax_nodes import (
    Array,
    Emit,
    Expr,
    Graph,
    array_of,
    constant,
    dtype_of,
    is_codes,
    is_constant,
    is_scalar,
    is_var,
    number,
)
from targets.arithmetic import BORDER_BITS
from targets.code_range import type_range
from targets.rounding import FLOOR, HALF_UP, Rounding, RoundingMode, check_executed

Ints = npt.NDArray[np.int64]

SUMS = "_sums"
"""What is rounded to the codes of node ``x`` is called ``x_sums``."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """Codes made of wide integers.

    Attributes:
        total: int32 or int64 tensor.
        shift: int64[K], or int64[] for all channels; right.
        zero_point: added after the shift.
        low: lowest code kept.
        high: highest code kept.
        dtype: of the codes.
        rounding: of the shift.
    """

    total: Expr
    shift: Ints
    zero_point: int
    low: int
    high: int
    dtype: str
    rounding: Rounding


def emit_rounded(emit: Emit, rounded: Rounded, name: str = "") -> Expr:
    """Bind a rounding; the codes get the name.

    Raises:
        UnsupportedError: it is by no rounding that has a form.
    """
    check_executed(rounded.rounding, name, "integer modules")
    t, shift = rounded.total, rounded.shift
    dtype = dtype_of(t)
    by_borders = rounded.rounding.mode is RoundingMode.BORDER and rounded.low < rounded.high
    if np.any(shift) and by_borders:
        t = _emit_by_borders(emit, rounded)
    elif np.any(shift):
        if rounded.rounding == HALF_UP:
            t = emit(relax.op.add(t, constant(_half(shift), dtype)))
        t = emit(relax.op.right_shift(t, constant(shift, dtype)))
    if rounded.zero_point:
        t = emit(relax.op.add(t, constant(rounded.zero_point, dtype)))
    clipped = emit(relax.op.clip(t, rounded.low, rounded.high))
    return emit(relax.op.astype(clipped, rounded.dtype), name)


def _emit_by_borders(emit: Emit, rounded: Rounded) -> Expr:
    """The total, shifted, and one more where the fraction reaches the border of its level."""
    t, shift, dtype = rounded.total, rounded.shift, dtype_of(rounded.total)
    table = rounded.rounding.table(rounded.low, rounded.high)
    whole = emit(relax.op.right_shift(t, constant(shift, dtype)))
    first, last = rounded.low - rounded.zero_point, rounded.high - rounded.zero_point - 1
    level = emit(relax.op.astype(emit(relax.op.clip(whole, first, last)), "int64"))
    index = emit(relax.op.add(level, constant(_places(table, first), "int64")))
    border = emit(relax.op.take(constant(table.reshape(-1), "uint8"), index, axis=0))
    border = emit(relax.op.astype(border, dtype))
    fraction = t
    for op, operand in _fraction(shift):
        fraction = emit(op(fraction, constant(operand, dtype)))
    up = emit(relax.op.astype(emit(relax.op.greater_equal(fraction, border)), dtype))
    return emit(relax.op.add(whole, up))


def _places(table: Array, first: int) -> Ints:
    """What is added to a level for the place of its border in the flat table."""
    begins = np.arange(0, table.size, table.shape[1]) - first
    return begins if len(table) > 1 else begins[0]


def _fraction(shift: Ints) -> list[tuple[Any, Ints]]:
    """The operations that make 256ths of what a right shift drops."""
    down, up = np.maximum(shift - BORDER_BITS, 0), np.maximum(BORDER_BITS - shift, 0)
    mask = (1 << np.minimum(shift, BORDER_BITS)) - 1
    operations = [
        (relax.op.right_shift, down),
        (relax.op.bitwise_and, mask),
        (relax.op.left_shift, up),
    ]
    return [(op, operand) for op, operand in operations if np.any(operand)]


def match_rounded(graph: Graph, expr: Expr) -> Rounded | str:
    """The rounding that ``expr`` is the result of, or why it is none."""
    cast = graph.match(expr, "astype")
    clip = None if cast is None else graph.match(cast.args[0], "clip")
    if cast is None or clip is None or not is_codes(cast):
        return "its codes are not clipped"
    low, high = (int(number(clip.args[i])) for i in (1, 2))
    dtype = dtype_of(cast)
    first, last = type_range(dtype)
    if low < first or high > last:
        return f"its clip leaves more than {dtype} holds"
    t, zero_point = clip.args[0], 0
    if (shifted := graph.match(t, "add")) is not None and is_scalar(shifted.args[1]):
        t, zero_point = shifted.args[0], int(array_of(shifted.args[1]))
    limits = (low - zero_point, high - zero_point)
    if (found := _match_by_borders(graph, t, limits, low)) is not None:
        t, shift, rounding = found
        return Rounded(t, shift, zero_point, low, high, dtype, rounding)
    if (moved := graph.match(t, "right_shift")) is None:
        return Rounded(t, np.zeros((), np.int64), zero_point, low, high, dtype, HALF_UP)
    if not is_constant(moved.args[1]):
        return "its right shift is no constant"
    shift = array_of(moved.args[1]).astype(np.int64)
    t, rounding = moved.args[0], FLOOR
    if (total := _without_half(graph, t, shift)) is not None:
        t, rounding = total, HALF_UP
    return Rounded(t, shift, zero_point, low, high, dtype, rounding)


def _match_by_borders(
    graph: Graph, expr: Expr, limits: tuple[int, int], low: int
) -> tuple[Expr, Ints, Rounding] | None:
    """What is rounded by borders, its shift and these; None if ``expr`` is nothing such.

    Args:
        graph: of ``expr``.
        expr: a sum of what is shifted and of 0 or 1.
        limits: of the codes, without zero point.
        low: the lowest code.
    """
    total = graph.match(expr, "add")
    moved = None if total is None else graph.match(total.args[0], "right_shift")
    up = None if total is None else graph.match(total.args[1], "astype")
    reached = None if up is None else graph.match(up.args[0], "greater_equal")
    if total is None or moved is None or reached is None or not is_constant(moved.args[1]):
        return None
    shift = array_of(moved.args[1]).astype(np.int64)
    fraction = reached.args[0]
    for op, operand in reversed(_fraction(shift)):
        step = graph.match(fraction, op.__name__)
        if step is None or not _is(step.args[1], operand):
            return None
        fraction = step.args[0]
    border = graph.match(reached.args[1], "astype")
    taken = None if border is None else graph.match(border.args[0], "take")
    index = None if taken is None else graph.match(taken.args[1], "add")
    level = None if index is None else graph.match(index.args[0], "astype")
    clip = None if level is None else graph.match(level.args[0], "clip")
    if taken is None or index is None or clip is None or not is_constant(taken.args[0]):
        return None
    first, last = limits[0], limits[1] - 1
    if clip.args[0] != total.args[0] or fraction != moved.args[0]:
        return None
    if (int(number(clip.args[1])), int(number(clip.args[2]))) != (first, last):
        return None
    table = array_of(taken.args[0]).reshape(-1, last - first + 1)
    if not _is(index.args[1], _places(table, first)):
        return None
    rounding = Rounding(RoundingMode.BORDER, tuple(row.tobytes() for row in table), low)
    return moved.args[0], shift, rounding


def _is(expr: Expr, numbers: Ints) -> bool:
    return is_constant(expr) and np.array_equal(array_of(expr), numbers)


def _without_half(graph: Graph, expr: Expr, shift: Ints) -> Expr | None:
    """What ``half`` is added to; None if it isn't."""
    raised = graph.match(expr, "add")
    if raised is None or not is_constant(raised.args[1]):
        return None
    if is_var(expr) and str(expr.name).endswith(SUMS):
        return None  # what made them sums is their bias, whatever its numbers are
    return raised.args[0] if np.array_equal(array_of(raised.args[1]), _half(shift)) else None


def _half(shift: Ints) -> Ints:
    half: Ints = (np.int64(1) << shift) >> 1
    return half
