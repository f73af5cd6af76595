"""Lower softmax and norms of a quantized tensor to integer sums and their requantization.

    quantize(tvmq.softmax(dequantize(x), heads) [* factor])         -->  integer normal form
    quantize(nn.layer_norm(dequantize(x), dequantize(gain), bias))  -->  integer normal form
    quantize(nn.rms_norm(dequantize(x), dequantize(gain)))          -->  integer normal form

Needs: ConvertToNhwc, FoldActivations. Leaves: none of them between a dequantize and a quantize.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import tvm
from tvm import IRModule

from relay_passes.forms.head_products import match_head_softmax
from relay_passes.forms.norm import Norm, emit_norm
from relay_passes.forms.quantization import (
    Quantize,
    exact_step,
    match_dequantize,
    match_quantize,
    match_tensor,
)
from relay_passes.forms.softmax import Softmax, emit_softmax
from relay_passes.passes.requantize_sums import Sums, requantize_sums
from relay_passes.relax_nodes import (
    Expr,
    Rewriter,
    Var,
    array_of,
    is_constant,
    is_scalar,
    op_of,
    rewrite,
)
from targets.errors import ArithmeticRangeError
from targets.rows import SOFTMAX_BITS, NormScale, derive_norm, exponentials, softmax_bounds
from targets.scale import power_of_two


@tvm.transform.module_pass(opt_level=0, name="LowerRows")
class LowerRows:
    """Lower softmax and norms to integer sums and their requantization."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        return rewrite(mod, _visit)


def _visit(rewriter: Rewriter, var: Var, _value: Expr) -> Expr | None:
    quantize = match_quantize(rewriter.graph, var)
    if quantize is None:
        return None
    softmax = _softmax(rewriter, var, quantize)
    return _norm(rewriter, var, quantize) if softmax is None else softmax


def _softmax(rewriter: Rewriter, var: Var, quantize: Quantize) -> Expr | None:
    source, factor = quantize.source, Fraction(1)
    scaled = rewriter.graph.match(source, "multiply")
    if scaled is not None and is_scalar(scaled.args[1]):
        source, factor = scaled.args[0], exact_step(array_of(scaled.args[1]))
    found = match_head_softmax(rewriter.graph, source)
    data = None if found is None else match_tensor(rewriter.graph, found.data)
    if found is None or data is None:
        return None
    codes, table = rewriter.get(data.codes), exponentials(float(data.step))
    name, unit = quantize.source.name, factor * power_of_two(-SOFTMAX_BITS)
    made = emit_softmax(rewriter.emit, Softmax(name, codes, found.heads, table))
    return requantize_sums(rewriter, var, quantize, Sums(name, made, [unit], softmax_bounds()))


def _norm(rewriter: Rewriter, var: Var, quantize: Quantize) -> Expr | None:
    graph = rewriter.graph
    call = graph.match(quantize.source, "nn.layer_norm", "nn.rms_norm")
    data = None if call is None else match_tensor(graph, call.args[0])
    gain = None if call is None else match_dequantize(graph, call.args[1])
    if call is None or data is None or gain is None or not all(map(is_constant, call.args[2:])):
        return None
    centred = op_of(call) == "nn.layer_norm"
    gain_step = float(gain.step)
    gamma = array_of(gain.codes) * gain_step
    beta = array_of(call.args[2]) if centred else np.zeros_like(gamma)
    name, epsilon = quantize.source.name, float(call.attrs.epsilon)
    try:
        scale: NormScale = derive_norm(
            gamma,
            beta,
            epsilon,
            float(data.step),
            gain_step,
            centred=centred,
            zero_point=data.zero_point,
        )
    except ArithmeticRangeError as error:
        raise ArithmeticRangeError(f"{name}: {error}", node=name) from None
    made = emit_norm(rewriter.emit, Norm(name, rewriter.get(data.codes), scale))
    unit = exact_step(gain.step) * power_of_two(-scale.fraction)
    return requantize_sums(rewriter, var, quantize, Sums(name, made, [unit], scale.bounds))
