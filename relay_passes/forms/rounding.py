"""From wide integers to codes with one rounding: how everything ends that computes.

astype(clip(((t + half) >> shift) + zero_point, low, high), "uint8" | "int8")      half up
astype(clip((t >> shift) + zero_point, low, high), "uint8" | "int8")               to the floor

``half`` is 2**(shift - 1), and 0 where nothing is shifted out; without any shift neither it nor the
shift is written, and nothing is rounded (which is read as half up); without a zero point no sum
with it is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import relax

from relay_passes.relax_nodes import (
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
from targets.code_range import type_range
from targets.rounding import FLOOR, HALF_UP, Rounding, check_executed

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
        UnsupportedError: it is neither half up nor to the floor; others have no form.
    """
    check_executed(rounded.rounding, name, "integer modules")
    t, shift = rounded.total, rounded.shift
    dtype = dtype_of(t)
    if np.any(shift):
        if rounded.rounding == HALF_UP:
            t = emit(relax.op.add(t, constant(_half(shift), dtype)))
        t = emit(relax.op.right_shift(t, constant(shift, dtype)))
    if rounded.zero_point:
        t = emit(relax.op.add(t, constant(rounded.zero_point, dtype)))
    clipped = emit(relax.op.clip(t, rounded.low, rounded.high))
    return emit(relax.op.astype(clipped, rounded.dtype), name)


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
    if (moved := graph.match(t, "right_shift")) is None:
        return Rounded(t, np.zeros((), np.int64), zero_point, low, high, dtype, HALF_UP)
    if not is_constant(moved.args[1]):
        return "its right shift is no constant"
    shift = array_of(moved.args[1]).astype(np.int64)
    t, rounding = moved.args[0], FLOOR
    if (total := _without_half(graph, t, shift)) is not None:
        t, rounding = total, HALF_UP
    return Rounded(t, shift, zero_point, low, high, dtype, rounding)


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
