"""Lower the sum of two quantized tensors.

    quantize(dequantize(a) + dequantize(b))
        -->  clip((A + B + half >> s) + zero_point, low, high),    A = (a - za) * Na << ka

Both sides are brought to the finer of the two grids, then rounded once.

Needs: SinkDequantize, FoldActivations. Leaves: no add of two dequantized tensors in front of a
quantize. An add in which one side is a convolution belongs to LowerConvolution.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import IRModule, relax

from relay_passes.code_ranges import code_range
from relay_passes.forms.quantization import Dequantize, match_dequantize, match_quantize
from relay_passes.forms.requantize import (
    INT32,
    LARGEST_RESIDUAL_SHIFT,
    LARGEST_SHIFT,
    Target,
    dyadic,
    emit_operand,
    emit_rounding,
    exact_step,
)
from relay_passes.relax_nodes import Expr, Graph, Rewriter, Var, is_codes, rewrite
from targets.errors import ArithmeticRangeError


@tvm.transform.module_pass(opt_level=0, name="LowerAdd")
class LowerAdd:
    """Lower the sum of two quantized tensors."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        return rewrite(mod, _visit)


def _visit(rewriter: Rewriter, var: Var, _value: Expr) -> Expr | None:
    graph = rewriter.graph
    quantize = match_quantize(graph, var)
    added = None if quantize is None else graph.match(quantize.source, "add")
    if quantize is None or added is None:
        return None
    sides = [match_dequantize(graph, arg) for arg in added.args]
    operands = [side for side in sides if side is not None and is_codes(side.codes)]
    if len(operands) != 2:
        return None
    name = quantize.source.name
    step = exact_step(quantize.step)
    ratios = [dyadic(exact_step(side.step) / step, f"{name}, operand") for side in operands]
    s = max(0, *(shift for _, shift in ratios))
    shifts = [s - shift for _, shift in ratios]
    if s > LARGEST_SHIFT or max(shifts) > LARGEST_RESIDUAL_SHIFT:
        raise ArithmeticRangeError(
            f"{name}: the steps of its operands differ too much (shifts {shifts}, then {s}). "
            "Calibrate again or exclude the layer."
        )
    most = (1 << s) + sum(
        (_reach(graph, side) * m) << k
        for side, (m, _), k in zip(operands, ratios, shifts, strict=True)
    )
    wide = most >= INT32 or s > 30
    dtype = "int64" if wide or any(m != 1 for m, _ in ratios) else "int32"
    emit = rewriter.emit
    a, b = (
        emit_operand(
            emit, rewriter.get(side.codes), side.zero_point, m, np.asarray(k, np.int64), dtype
        )
        for side, (m, _), k in zip(operands, ratios, shifts, strict=True)
    )
    target = Target(step, quantize.zero_point, quantize.low, quantize.high, quantize.dtype)
    total = emit(relax.op.add(a, b), f"{name}_sums")
    return emit_rounding(emit, total, np.asarray(s, np.int64), target, var.name)


def _reach(graph: Graph, side: Dequantize) -> int:
    """Largest |code - zero point|."""
    return max(abs(code - side.zero_point) for code in code_range(graph, side.codes))
