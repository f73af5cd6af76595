"""Codes of real numbers, in one pass over them."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx

from targets.cpu.elements import function, schedule_elements
from targets.cpu.requantize import Expr


def build_quantize(
    shape: Sequence[int],
    dtypes: tuple[str, str],
    step: float,
    addend: float,
    ends: tuple[int, int, int],
) -> tirx.PrimFunc:
    """``clip(floor(x / step + addend) + zero_point, low, high)`` of each element, in float64.

    Args:
        shape: of an image.
        dtypes: of the real numbers and of the codes.
        step: of the codes.
        addend: what rounds.
        ends: zero point, lowest and highest code.
    """
    n = tirx.Var("n", "int64")
    x = te.placeholder((n, *shape), dtypes[0], name="x")
    zero_point, low, high = (tirx.const(float(end), "float64") for end in ends)

    def code(*at: Expr) -> Expr:
        real = x[at].astype("float64") / tirx.const(step, "float64")
        whole = tirx.floor(real + tirx.const(addend, "float64"))
        whole = whole + zero_point if ends[0] else whole
        return tirx.max(tirx.min(whole, high), low).astype(dtypes[1])

    out = te.compute((n, *shape), code, name="out")
    return schedule_elements(function([x, out]), shape, vectors=True)
