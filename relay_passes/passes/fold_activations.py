"""Fold ReLU and clamp into the clip of the quantize that follows.

    quantize(relu(x), low, high)        -->  quantize(x, max(low, zero_point), high)
    quantize(clip(x, a, b), low, high)  -->  quantize(x, max(low, q(a)), min(high, q(b)))

Exact, whether or not the bounds lie on the grid: each way of rounding is monotone, by borders too
(a code is never rounded beyond the next), so it commutes with clamping.

Needs: nothing. Leaves: no quantize whose source is a relu or a clip.
"""

from __future__ import annotations

import math
from dataclasses import replace

import tvm
from tvm import IRModule

from relay_passes.forms.quantization import Quantize, emit_quantize, match_quantize
from relay_passes.relax_nodes import Expr, Graph, Rewriter, Var, number, op_of, rewrite
from targets.errors import UnsupportedError
from targets.rounding import round_reals


@tvm.transform.module_pass(opt_level=0, name="FoldActivations")
class FoldActivations:
    """Fold ReLU and clamp into the clip of the quantize that follows."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        return rewrite(mod, _visit)


def _visit(rewriter: Rewriter, var: Var, _value: Expr) -> Expr | None:
    quantize = match_quantize(rewriter.graph, var)
    if quantize is None:
        return None
    source, low, high = _bounds(rewriter.graph, quantize, var.name)
    folded = replace(quantize, source=rewriter.get(source), low=low, high=high)
    return emit_quantize(rewriter.emit, folded, var.name)


def _bounds(graph: Graph, quantize: Quantize, name: str) -> tuple[Expr, int, int]:
    """What is rounded when no activation stands before it, and between which codes."""
    source, low, high = quantize.source, quantize.low, quantize.high
    while (call := graph.match(source, "nn.relu", "clip")) is not None:
        least, most = 0.0, math.inf
        if op_of(call) == "clip":
            least, most = number(call.args[1]), number(call.args[2])
        low, high = (
            max(min(bound, _code(most, quantize, name)), _code(least, quantize, name))
            for bound in (low, high)
        )
        source = call.args[0]
    return source, low, high


def _code(x: float, quantize: Quantize, name: str) -> int:
    """The code of a real number, saturated."""
    if math.isinf(x):
        return quantize.high if x > 0 else quantize.low
    ratio = [x / float(quantize.step)]
    whole = round_reals(ratio, quantize.rounding, name, quantize.zero_point)
    if whole.min() != whole.max():
        raise UnsupportedError(
            f"{name}: its borders cut the bound {x:g} to another code in some channels than in "
            "others. Use the same border for all channels at that level."
        )
    code = int(whole[0]) + quantize.zero_point
    return min(max(code, quantize.low), quantize.high)
