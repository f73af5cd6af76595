"""Turn the quantized weights into constants.

    quantize(constant weight)                -->  constant int8 codes
    quantize(constant, for each image)       -->  constant codes, for each image

Their dequantize stays; the lowering passes read the step from it.

Needs: nothing. Leaves: no quantize of a constant.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import IRModule, relax

from relay_passes.forms.quantization import match_quantize
from relay_passes.relax_nodes import (
    Expr,
    Rewriter,
    Var,
    array_of,
    constant,
    is_constant,
    rewrite,
)
from targets.rounding import round_reals


@tvm.transform.module_pass(opt_level=0, name="QuantizeConstants")
class QuantizeConstants:
    """Turn the quantized weights into constants."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        return rewrite(mod, _visit)


def _visit(rewriter: Rewriter, var: Var, _value: Expr) -> Expr | None:
    quantize = match_quantize(rewriter.graph, var)
    if quantize is None:
        return None
    repeated = rewriter.graph.match(quantize.source, "broadcast_to")
    source = quantize.source if repeated is None else repeated.args[0]
    if not is_constant(source):
        return None
    reals = array_of(source) / quantize.step
    zero_point = quantize.zero_point
    codes = round_reals(reals, quantize.rounding, var.name, zero_point) + zero_point
    held = constant(np.clip(codes, quantize.low, quantize.high), quantize.dtype)
    return held if repeated is None else relax.op.broadcast_to(held, repeated.args[1])
