"""The maximum of the codes in each window.

nn.max_pool2d(pad(codes, lowest code), kernel, strides, dilation)

The border never wins, since each window holds a real element. The operator's own padding stays 0:
with it TVM would fill in the lowest number of the type, which is the same, but not to be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax

from relay_passes.forms.padding import Layout, Padded, Sides, emit_padded, match_padded
from relay_passes.forms.table import first_code
from relay_passes.relax_nodes import Emit, Expr, Graph, dtype_of, is_codes, pair


@dataclass(frozen=True, eq=False)
class MaxPool:
    """Windows over codes.

    Attributes:
        codes: int8 or uint8 image.
        kernel: (y, x), as ``strides`` and ``dilation``.
        padding: (top, left, bottom, right).
    """

    codes: Expr
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: Sides
    dilation: tuple[int, int]


def emit_pool(emit: Emit, pool: MaxPool, name: str = "", layout: Layout = "NHWC") -> Expr:
    """Bind a pooling; the codes get the name."""
    lowest = first_code(dtype_of(pool.codes))
    x = emit_padded(emit, Padded(pool.codes, pool.padding, lowest), layout)
    return emit(
        relax.op.nn.max_pool2d(x, pool.kernel, pool.strides, [0] * 4, pool.dilation, layout=layout),
        name,
    )


def match_pool(graph: Graph, expr: Expr) -> MaxPool | str:
    """The pooling that ``expr`` is the result of, or why it is none."""
    call = graph.match(expr, "nn.max_pool2d")
    if call is None or not is_codes(call):
        return "is no maximum of codes"
    attrs = call.attrs
    if str(attrs.layout) != "NHWC":
        return f"pools an image held {attrs.layout}"
    if any(int(side) for side in attrs.padding) or bool(attrs.ceil_mode):
        return "its pooling pads by itself"
    padded = match_padded(graph, call.args[0])
    if any(padded.sides) and padded.fill != first_code(dtype_of(padded.codes)):
        padded = Padded(call.args[0], (0, 0, 0, 0), 0)  # a move of its own: its border may win
    return MaxPool(
        padded.codes,
        pair(attrs.pool_size),
        pair(attrs.strides),
        padded.sides,
        pair(attrs.dilation),
    )
