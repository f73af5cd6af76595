"""From int32 sums to codes, with or without a residual.

rounded(((sums << fraction) * multiplier[k]) + residual)      ``rounding.py``, ``term.py``

The sums are shifted in 32 bits; what follows is int64 where it must be (``wide``), and always with
multipliers. What is 0 or 1 everywhere is not written. ``targets/scale.py`` derives the integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from relay_passes.forms.rounding import Ints, Rounded, emit_rounded, match_rounded
from relay_passes.forms.term import Term, emit_term, match_term
from relay_passes.relax_nodes import (
    Array,
    Emit,
    Expr,
    Graph,
    array_of,
    constant,
    dtype_of,
    is_constant,
    is_scalar,
    is_var,
    shape_of,
)
from targets.rounding import Rounding
from targets.scale import Scale


@dataclass(frozen=True, eq=False)
class Requantization:
    """Sums, what is added to them, and their rounding.

    Attributes:
        sums: int32[..., K], bias added, channels last.
        scale: the integers, each one number or one per channel; read back per channel.
        residual: codes of the shape of ``sums`` and their zero point, or None.
        wide: whether what follows the sums is int64.
        zero_point: of the output; ``low``, ``high``, ``dtype``, ``rounding`` as in ``Rounded``.
    """

    sums: Expr
    scale: Scale
    residual: tuple[Expr, int] | None
    wide: bool
    zero_point: int
    low: int
    high: int
    dtype: str
    rounding: Rounding


def emit_requantization(emit: Emit, requantization: Requantization, name: str = "") -> Expr:
    """Bind a requantization; the codes get the name."""
    x, scale = requantization, requantization.scale
    K = shape_of(x.sums)[-1]
    t = x.sums
    if scale.fraction:
        t = emit(relax.op.left_shift(t, constant(scale.fraction, "int32")))
    if x.wide:
        t = emit(relax.op.astype(t, "int64"))
    if any(m != 1 for m in scale.multiplier):
        t = emit(relax.op.multiply(t, constant(_spread(scale.multiplier, K), "int64")))
    if x.residual is not None:
        codes, zero_point = x.residual
        shift = _spread(scale.residual_shift, K)
        term = Term(codes, zero_point, scale.residual_multiplier, shift)
        t = emit(relax.op.add(t, emit_term(emit, term, "int64" if x.wide else "int32")))
    shift = _spread(scale.shift, K)
    rounded = Rounded(t, shift, x.zero_point, x.low, x.high, x.dtype, x.rounding)
    return emit_rounded(emit, rounded, name)


def match_requantization(graph: Graph, expr: Expr) -> Requantization | str:
    """The requantization that ``expr`` is the result of, or why it is none."""
    rounded = match_rounded(graph, expr)
    if isinstance(rounded, str):
        return rounded
    t = rounded.total
    K = shape_of(t)[-1]
    term: Term | None = None
    added = graph.match(t, "add")
    if added is not None and all(is_var(arg) for arg in added.args):
        term = match_term(graph, added.args[1])
        if term is None:
            return "what is added to the sums is no quantized tensor"
        t = added.args[0]
        if shape_of(term.codes)[1:] != shape_of(t)[1:]:
            return "what is added to the sums has another shape"
    multiplier, fraction = np.ones((), np.int64), 0
    if (product := graph.match(t, "multiply")) is not None and is_constant(product.args[1]):
        t, multiplier = product.args[0], array_of(product.args[1])
    if (cast := graph.match(t, "astype")) is not None and dtype_of(cast) == "int64":
        t = cast.args[0]
    if (raised := graph.match(t, "left_shift")) is not None and is_scalar(raised.args[1]):
        t, fraction = raised.args[0], int(array_of(raised.args[1]))
    if dtype_of(t) != "int32":
        return "what is rounded are no 32-bit sums"
    scale = Scale(
        fraction,
        _channels(multiplier, K),
        _channels(rounded.shift, K),
        1 if term is None else term.multiplier,
        () if term is None else _channels(term.shift, K),
    )
    return Requantization(
        t,
        scale,
        None if term is None else (term.codes, term.zero_point),
        dtype_of(rounded.total) == "int64",
        rounded.zero_point,
        rounded.low,
        rounded.high,
        rounded.dtype,
        rounded.rounding,
    )


def _spread(numbers: tuple[int, ...], channels: int) -> Ints:
    return np.broadcast_to(np.array(numbers, np.int64), (channels,))


def _channels(numbers: Array, channels: int) -> tuple[int, ...]:
    return tuple(int(n) for n in np.broadcast_to(numbers, (channels,)))
