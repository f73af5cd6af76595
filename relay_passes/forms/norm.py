"""Norms of codes over the last axis: int32 sums (``targets/rows.py``).

x        astype(codes, "int32") [- zero point]
total    sum(x)
D        x * C - total
root     floor(sqrt(((C * sum(x * x) - total * total) << 2j) + E)), in float64, exactly
n        (D * reciprocal(root) + half) >> (bits + 15 - j - f)
sums     n * gain + bias

Without the mean there is no total: D is x * C, and the root is of C * sum(x * x). Squares of a row
that is longer than LONGEST_ROW are summed as int64.

The sums of node ``x`` are called ``x_sums``.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax

from relay_passes.forms.reciprocal import emit_reciprocal, match_reciprocal
from relay_passes.forms.rounding import SUMS
from relay_passes.forms.written_alike import written_alike
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
    shape_of,
)
from targets.rows import LONGEST_ROW, RECIPROCAL_BITS, NormScale, norm_fraction

_ROOT = ("astype", "sqrt", "floor", "astype")
"""Of an int64 below 2^52, an int64 again."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm over the last axis.

    Attributes:
        node: name of the torch node.
        codes: int8 or uint8.
        scale: its integers.
    """

    node: str
    codes: Expr
    scale: NormScale


def emit_norm(emit: Emit, norm: Norm) -> Expr:
    """Bind the int32 sums."""
    scale, count = norm.scale, int(shape_of(norm.codes)[-1])
    x = emit(relax.op.astype(norm.codes, "int32"))
    if scale.zero_point:
        x = emit(relax.op.subtract(x, constant(scale.zero_point, "int32")))
    total = emit(relax.op.sum(x, -1, keepdims=True)) if scale.centred else None
    scaled = emit(relax.op.multiply(x, constant(count, "int32")))
    centred = scaled if total is None else emit(relax.op.subtract(scaled, total))
    deviation = emit(relax.op.astype(centred, "int64"))
    squared = emit(relax.op.multiply(x, x))
    if count > LONGEST_ROW:
        squared = emit(relax.op.astype(squared, "int64"))
    squares = emit(relax.op.sum(squared, -1, keepdims=True))
    root = _emit_root(emit, _square(emit, squares, total, count, scale))
    reciprocal, bits = emit_reciprocal(emit, root)
    places = constant(RECIPROCAL_BITS - scale.lift - scale.fraction, "int64")
    shift = emit(relax.op.add(bits, places))
    one = constant(1, "int64")
    half = emit(relax.op.left_shift(one, emit(relax.op.subtract(shift, one))))
    n = emit(relax.op.add(emit(relax.op.multiply(deviation, reciprocal)), half))
    n = emit(relax.op.astype(emit(relax.op.right_shift(n, shift)), "int32"))
    gained = emit(relax.op.multiply(n, constant(scale.gain, "int32")))
    return emit(relax.op.add(gained, constant(scale.bias, "int32")), f"{norm.node}{SUMS}")


def _square(emit: Emit, squares: Expr, total: Expr | None, count: int, scale: NormScale) -> Expr:
    wide = squares if count > LONGEST_ROW else emit(relax.op.astype(squares, "int64"))
    variance = emit(relax.op.multiply(wide, constant(count, "int64")))
    if total is not None:
        mean = emit(relax.op.astype(total, "int64"))
        variance = emit(relax.op.subtract(variance, emit(relax.op.multiply(mean, mean))))
    lifted = emit(relax.op.left_shift(variance, constant(2 * scale.lift, "int64")))
    return emit(relax.op.add(lifted, constant(scale.epsilon, "int64")))


def _emit_root(emit: Emit, square: Expr) -> Expr:
    root = emit(relax.op.sqrt(emit(relax.op.astype(square, "float64"))))
    return emit(relax.op.astype(emit(relax.op.floor(root)), "int64"))


def match_root(graph: Graph, expr: Expr) -> Expr | None:
    """What ``expr`` is the whole root of, int64, or None."""
    chain = _root_chain(graph, expr)
    return graph.value(chain[-1]).args[0] if chain else None


def floats_of_root(graph: Graph, expr: Expr) -> list[Expr]:
    """The floats that ``expr`` is computed by if it is the whole root of an integer."""
    return _root_chain(graph, expr)[1:]


def _root_chain(graph: Graph, expr: Expr) -> list[Expr]:
    """The variables of a root, the result first; none if ``expr`` isn't one."""
    chain: list[Expr] = []
    for op in reversed(_ROOT):
        call = graph.match(expr, op)
        if call is None:
            return []
        chain.append(expr)
        expr = call.args[0]
    whole = dtype_of(chain[0]) == "int64" == dtype_of(expr)
    return chain if whole else []


def match_norm(graph: Graph, expr: Expr) -> Norm | str:
    """The norm that ``expr`` is the sums of, or why it is none."""
    none = "is no norm"
    added = graph.match(expr, "add")
    gained = None if added is None else graph.match(added.args[0], "multiply")
    if added is None or gained is None:
        return none
    if not is_constant(added.args[1]) or not is_constant(gained.args[1]):
        return none
    cast = graph.match(gained.args[0], "astype")
    shifted = None if cast is None else graph.match(cast.args[0], "right_shift")
    raised = None if shifted is None else graph.match(shifted.args[0], "add")
    product = None if raised is None else graph.match(raised.args[0], "multiply")
    divisor = None if product is None else match_reciprocal(graph, product.args[1])
    square = None if divisor is None else _square_of(graph, divisor)
    lifted = None if square is None else graph.match(square.args[0], "left_shift")
    if product is None or square is None or lifted is None:
        return none
    if not is_scalar(square.args[1]) or not is_scalar(lifted.args[1]):
        return none
    deviation = _match_deviation(graph, product.args[0])
    if deviation is None:
        return none
    codes, centred, zero_point = deviation
    scale = NormScale(
        epsilon=int(array_of(square.args[1])),
        lift=int(array_of(lifted.args[1])) // 2,
        fraction=norm_fraction(int(shape_of(codes)[-1])),
        gain=array_of(gained.args[1]),
        bias=array_of(added.args[1]),
        centred=centred,
        zero_point=zero_point,
    )
    found = Norm(str(expr.name).removesuffix(SUMS), codes, scale)
    alike = written_alike(graph, expr, codes, lambda emit: emit_norm(emit, found))
    return found if alike else none


def _square_of(graph: Graph, divisor: Expr) -> Expr | None:
    square = match_root(graph, divisor)
    return None if square is None else graph.match(square, "add")


def _match_deviation(graph: Graph, expr: Expr) -> tuple[Expr, bool, int] | None:
    """The codes, whether their mean is subtracted, and their zero point, or None."""
    cast = graph.match(expr, "astype")
    if cast is None:
        return None
    centred = graph.match(cast.args[0], "subtract")
    scaled = graph.match(cast.args[0] if centred is None else centred.args[0], "multiply")
    shifted = None if scaled is None else graph.match(scaled.args[0], "subtract")
    if scaled is None or (shifted is not None and not is_scalar(shifted.args[1])):
        return None
    codes = graph.match(scaled.args[0] if shifted is None else shifted.args[0], "astype")
    if codes is None or not is_codes(codes.args[0]):
        return None
    zero_point = 0 if shifted is None else int(array_of(shifted.args[1]))
    return codes.args[0], centred is not None, zero_point
