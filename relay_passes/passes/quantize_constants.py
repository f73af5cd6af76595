"""Turn the quantized weights into constants.

    quantize(constant weight)  -->  constant int8 codes

Their dequantize stays; the lowering passes read the step from it.

Needs: nothing. Leaves: no quantize of a constant.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import IRModule

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
    if quantize is None or not is_constant(quantize.source):
        return None
    reals = array_of(quantize.source) / quantize.step
    codes = round_reals(reals, quantize.rounding, var.name) + quantize.zero_point
    return constant(np.clip(codes, quantize.low, quantize.high), quantize.dtype)
