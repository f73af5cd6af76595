"""What a quantize and a dequantize look like in Relax, how to write and how to recognise them.

    quantize    astype(clip(floor(x / step + addend) + zero_point, low, high), "uint8" | "int8")
    dequantize  (astype(codes, "float64") - zero_point) * step          (no subtract if it is 0)

In float64 and spelt out, because ``R.quantize`` rounds half to even, takes float32 steps only and
is legalized to float32: a free step would lose the bits that make the integer multipliers exact.
Written this way the module computes, on any TVM target, just what torch computes. The addend says
how it is rounded (``targets/rounding.py``); with borders it is looked up by the number's level:

    addend      take(addends, astype(clip(floor(x / step + slack) + (zero_point - first), 0, last)
                [+ where the channel's row begins], "int64"))
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
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
    number,
    shape_of,
)
from targets.rounding import (
    ADDENDS,
    SLACK,
    Rounding,
    RoundingMode,
    check_executed,
    real_addends,
)

_ROUNDINGS = {raised: rounding for rounding, raised in ADDENDS.items()}


@dataclass(frozen=True, eq=False)
class Quantize:
    """Codes made of real numbers.

    Attributes:
        source: the float64 expression that is rounded.
        step: float64[...], broadcastable to the source.
        rounding: a row of borders per channel is of axis 1 of an image N C H W, else of the last.
    """

    source: Expr
    step: Array
    zero_point: int
    low: int
    high: int
    dtype: str
    rounding: Rounding


@dataclass(frozen=True, eq=False)
class Dequantize:
    """Real numbers made of codes (or of int32 sums)."""

    codes: Expr
    step: Array
    zero_point: int


def exact_step(step: float | Array) -> Fraction:
    """A float64 as the rational that it is."""
    return Fraction(float(step))


def emit_quantize(emit: Emit, quantize: Quantize, name: str = "") -> Expr:
    """Bind a quantize; the codes get the name.

    Raises:
        UnsupportedError: real numbers can't be rounded so.
    """
    x = emit(relax.op.divide(quantize.source, constant(quantize.step, "float64")))
    check_executed(quantize.rounding, name, "real numbers")
    if quantize.rounding.mode is RoundingMode.BORDER:
        raised = _emit_addend(emit, x, quantize)
    else:
        raised = constant(ADDENDS[quantize.rounding], "float64")
    x = emit(relax.op.floor(emit(relax.op.add(x, raised))))
    if quantize.zero_point:
        x = emit(relax.op.add(x, constant(quantize.zero_point, "float64")))
    x = emit(relax.op.clip(x, quantize.low, quantize.high))
    return emit(relax.op.astype(x, quantize.dtype), name)


def _emit_addend(emit: Emit, x: Expr, quantize: Quantize) -> Expr:
    """What is added to numbers that borders round, by the level of each."""
    rows, rounding = quantize.rounding.rows, quantize.rounding
    level = emit(relax.op.floor(emit(relax.op.add(x, constant(SLACK, "float64")))))
    level = emit(relax.op.add(level, constant(quantize.zero_point - rounding.first, "float64")))
    level = emit(relax.op.clip(level, 0, rows.shape[1] - 1))
    if len(rows) > 1:
        dims = len(shape_of(quantize.source))
        channels = 1 if dims == 4 else dims - 1
        shape = [-1 if axis == channels else 1 for axis in range(dims)]
        level = emit(relax.op.add(level, constant(_begins(rows).reshape(shape), "float64")))
    index = emit(relax.op.astype(level, "int64"))
    addends = constant(real_addends(rows).reshape(-1), "float64")
    return emit(relax.op.take(addends, index, axis=0))


def _begins(rows: Array) -> Array:
    """Where each row of borders begins among all of them."""
    return np.arange(0, rows.size, rows.shape[1])


def emit_dequantize(emit: Emit, dequantize: Dequantize, name: str = "") -> Expr:
    """Bind a dequantize; the real numbers get the name."""
    x = emit(relax.op.astype(dequantize.codes, "float64"))
    if dequantize.zero_point:
        x = emit(relax.op.subtract(x, constant(dequantize.zero_point, "float64")))
    return emit(relax.op.multiply(x, constant(dequantize.step, "float64")), name)


def match_quantize(graph: Graph, expr: Expr) -> Quantize | None:
    """The quantize that ``expr`` is the result of, or None."""
    cast = graph.match(expr, "astype")
    if cast is None or not is_codes(cast):
        return None
    clip = graph.match(cast.args[0], "clip")
    if clip is None or dtype_of(clip) != "float64":
        return None
    x, zero_point = clip.args[0], 0
    if (shifted := graph.match(x, "add")) is not None and is_scalar(shifted.args[1]):
        x, zero_point = shifted.args[0], int(array_of(shifted.args[1]))
    floor = graph.match(x, "floor")
    raised = None if floor is None else graph.match(floor.args[0], "add")
    ratio = None if raised is None else graph.match(raised.args[0], "divide")
    if raised is None or ratio is None or not is_constant(ratio.args[1]):
        return None
    if is_scalar(raised.args[1]):
        rounding = _ROUNDINGS.get(float(array_of(raised.args[1])))
    else:
        rounding = _match_borders(graph, raised.args[1], raised.args[0], zero_point)
    if rounding is None:
        return None
    low, high = (int(number(clip.args[i])) for i in (1, 2))
    step = array_of(ratio.args[1])
    return Quantize(ratio.args[0], step, zero_point, low, high, dtype_of(cast), rounding)


def _match_borders(graph: Graph, addend: Expr, x: Expr, zero_point: int) -> Rounding | None:
    """The borders by which ``addend`` is looked up for the numbers ``x``, or None."""
    taken = graph.match(addend, "take")
    index = None if taken is None else graph.match(taken.args[1], "astype")
    if taken is None or index is None or not is_constant(taken.args[0]):
        return None
    level, begins = index.args[0], np.zeros(1)
    if (moved := graph.match(level, "add")) is not None and is_constant(moved.args[1]):
        level, begins = moved.args[0], array_of(moved.args[1]).reshape(-1)
    clip = graph.match(level, "clip")
    raised = None if clip is None else graph.match(clip.args[0], "add")
    floor = None if raised is None else graph.match(raised.args[0], "floor")
    whole = None if floor is None else graph.match(floor.args[0], "add")
    if clip is None or raised is None or whole is None:
        return None
    if not (is_scalar(raised.args[1]) and is_scalar(whole.args[1])):
        return None
    addends, levels = array_of(taken.args[0]), int(number(clip.args[2])) + 1
    if whole.args[0] != x or float(array_of(whole.args[1])) != SLACK or addends.size % levels:
        return None
    rows = np.round((1 + SLACK - addends) * 256).astype(np.uint8).reshape(-1, levels)
    if not np.array_equal(begins, _begins(rows)):
        return None
    first = zero_point - int(array_of(raised.args[1]))
    return Rounding(RoundingMode.BORDER, tuple(row.tobytes() for row in rows), first)


def match_tensor(graph: Graph, expr: Expr) -> Dequantize | None:
    """The dequantized tensor of codes, of one step, that ``expr`` is, or None."""
    found = match_dequantize(graph, expr)
    return found if found is not None and is_codes(found.codes) and found.step.size == 1 else None


def match_dequantize(graph: Graph, expr: Expr) -> Dequantize | None:
    """The dequantize that ``expr`` is the result of, or None."""
    product = graph.match(expr, "multiply")
    if product is None or not is_constant(product.args[1]):
        return None
    x, zero_point = product.args[0], 0
    if (shifted := graph.match(x, "subtract")) is not None and is_constant(shifted.args[1]):
        x, zero_point = shifted.args[0], int(array_of(shifted.args[1]))
    cast = graph.match(x, "astype")
    if cast is None or dtype_of(cast.args[0]) not in ("int8", "uint8", "int32"):
        return None
    return Dequantize(cast.args[0], array_of(product.args[1]), zero_point)
