"""Padding of height and width in front of a window, with one code.

nn.pad(codes, [0, 0, top, bottom, left, right, 0, 0], fill)      N H W C
nn.pad(codes, [0, 0, 0, 0, top, bottom, left, right], fill)      N C H W, written only

No operator where all four are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tvm import relax

from relay_passes.relax_nodes import Emit, Expr, Graph, ints

Sides: TypeAlias = tuple[int, int, int, int]
Layout: TypeAlias = Literal["NHWC", "NCHW"]


@dataclass(frozen=True, eq=False)
class Padded:
    """Codes with a border.

    Attributes:
        codes: what is padded.
        sides: (top, left, bottom, right).
        fill: the code of the border; 0 where there is none.
    """

    codes: Expr
    sides: Sides
    fill: int


def emit_padded(emit: Emit, padded: Padded, layout: Layout = "NHWC") -> Expr:
    """Bind the padded codes, or give the codes as they are."""
    if not any(padded.sides):
        return padded.codes
    top, left, bottom, right = padded.sides
    image = [top, bottom, left, right]
    widths = [0, 0, *image, 0, 0] if layout == "NHWC" else [0, 0, 0, 0, *image]
    return emit(relax.op.nn.pad(padded.codes, widths, "constant", padded.fill))


def match_padded(graph: Graph, expr: Expr) -> Padded:
    """What a window's input is before a padding that nothing else reads."""
    pad = graph.match(expr, "nn.pad")
    if pad is None or len(graph.users(expr)) > 1 or graph.is_output(expr):
        return Padded(expr, (0, 0, 0, 0), 0)
    widths = ints(pad.attrs.pad_width)
    if len(widths) != 8 or any(widths[:2] + widths[6:]):
        return Padded(expr, (0, 0, 0, 0), 0)
    top, bottom, left, right = widths[2:6]
    return Padded(pad.args[0], (top, left, bottom, right), int(pad.attrs.pad_value))
