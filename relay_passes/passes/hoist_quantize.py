"""Quantize before a reshape or a transposition instead of after it.

    quantize(reshape(x))  -->  reshape(quantize(x))

so that the quantize stands next to the operator whose result it rounds (a mean over height and
width drops two axes before it is quantized).

Needs: nothing. Leaves: no quantize of one step whose source is a reshape or permute_dims.
"""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import IRModule, relax

from relay_passes.forms.quantization import emit_quantize, match_quantize
from relay_passes.relax_nodes import Expr, Rewriter, Var, rewrite


@tvm.transform.module_pass(opt_level=0, name="HoistQuantize")
class HoistQuantize:
    """Quantize before a reshape or a transposition instead of after it."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        return rewrite(mod, _visit)


def _visit(rewriter: Rewriter, var: Var, _value: Expr) -> Expr | None:
    quantize = match_quantize(rewriter.graph, var)
    if quantize is None or quantize.step.size != 1:
        return None
    moves = []
    source = quantize.source
    while (call := rewriter.graph.match(source, "reshape", "permute_dims")) is not None:
        moves.append(call)
        source = call.args[0]
    if not moves:
        return None
    hoisted = replace(quantize, source=rewriter.get(source))
    codes = emit_quantize(rewriter.emit, hoisted, f"{source.name}_codes")
    for call in reversed(moves[1:]):
        codes = rewriter.emit(relax.Call(call.op, [codes, *call.args[1:]], call.attrs))
    last = moves[0]
    return relax.Call(last.op, [codes, *last.args[1:]], last.attrs)
