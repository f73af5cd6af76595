"""Lower the sum of two quantized tensors.

    quantize(dequantize(a) + dequantize(b))
        -->  clip(round(A + B, s) + zero_point, low, high),    A = (a - za) * Na << ka

Both sides are brought to the finer of the two grids, then rounded once.

Needs: SinkDequantize, FoldActivations. Leaves: no add of two dequantized tensors in front of a
quantize. An add in which one side is a convolution belongs to LowerConvolution.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import IRModule

from relay_passes.code_ranges import CodeRanges
from relay_passes.forms.addition import Addition, emit_addition
from relay_passes.forms.quantization import exact_step, match_dequantize, match_quantize
from relay_passes.forms.term import Term
from relay_passes.relax_nodes import Expr, Graph, Rewriter, Var, is_codes, rewrite
from targets.errors import ArithmeticRangeError
from targets.scale import derive_addition
from targets.sum_bounds import CodeRange, add_needs_int64


@tvm.transform.module_pass(opt_level=0, name="LowerAdd")
class LowerAdd:
    """Lower the sum of two quantized tensors."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        ranges = CodeRanges(Graph(mod))
        return rewrite(mod, lambda rewriter, var, _: _lowered(rewriter, var, ranges))


def _lowered(rewriter: Rewriter, var: Var, ranges: CodeRanges) -> Expr | None:
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
    a_ratio, b_ratio = (exact_step(side.step) / step for side in operands)
    try:
        scale = derive_addition(a_ratio, b_ratio)
    except ArithmeticRangeError as error:
        raise ArithmeticRangeError(f"{name}: {error}", node=name) from None
    first, second = (CodeRange(*ranges.of(side.codes), side.zero_point) for side in operands)
    wide = add_needs_int64(scale, first, second, quantize.zero_point)
    a, b = (
        Term(rewriter.get(side.codes), side.zero_point, m, np.asarray(k, np.int64))
        for side, m, k in zip(operands, scale.multipliers, scale.shifts, strict=True)
    )
    addition = Addition(
        name,
        a,
        b,
        wide or scale.multipliers != (1, 1),
        np.asarray(scale.shift, np.int64),
        quantize.zero_point,
        quantize.low,
        quantize.high,
        quantize.dtype,
        quantize.rounding,
    )
    return emit_addition(rewriter.emit, addition, var.name)
