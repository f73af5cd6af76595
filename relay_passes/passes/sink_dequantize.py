"""Move dequantize below the operators that only move or compare codes.

    max_pool(dequantize(q))                    -->  dequantize(max_pool(q))
    reshape, permute_dims, strided_slice       likewise
    pad(dequantize(q), 0.0)                    -->  dequantize(pad(q, zero_point))
    concat(dequantize(p), dequantize(q))       -->  dequantize(concat(p, q)), if step, zero point
                                                    and type are equal

A padded max pool pads with the lowest code, which never wins (each window holds a real element).

Needs: nothing. Leaves: an operator of these whose inputs are quantized alike works on codes.
"""

from __future__ import annotations

import tvm
from tvm import IRModule

from relay_passes.forms.move import emit_move
from relay_passes.forms.pool import MaxPool, emit_pool
from relay_passes.forms.quantization import Dequantize, emit_dequantize, match_dequantize
from relay_passes.operators import KEEPS_CODES
from relay_passes.relax_nodes import (
    Expr,
    Rewriter,
    Var,
    dtype_of,
    ints,
    is_codes,
    is_var,
    op_of,
    pair,
    rewrite,
    variables_in,
)


@tvm.transform.module_pass(opt_level=0, name="SinkDequantize")
class SinkDequantize:
    """Move dequantize below the operators that only move or compare codes."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        return rewrite(mod, _Sink().visit)


class _Sink:
    """Remembers which variables are dequantized codes, old variable -> new codes."""

    def __init__(self) -> None:
        self._known: dict[Var, Dequantize] = {}

    def visit(self, rewriter: Rewriter, var: Var, value: Expr) -> Expr | None:
        found = match_dequantize(rewriter.graph, var)
        if found is not None:
            if is_var(found.codes) and is_codes(found.codes) and found.step.size == 1:
                new = Dequantize(rewriter.get(found.codes), found.step, found.zero_point)
                self._known[var] = new
            return None
        if op_of(value) not in KEEPS_CODES:
            return None
        inputs = [self._known.get(arg) for arg in variables_in(value)]
        first = inputs[0] if inputs else None
        if first is None or not all(_alike(first, other) for other in inputs):
            return None
        codes = [known.codes for known in inputs if known is not None]
        name = f"{var.name}_codes"
        if op_of(value) == "nn.max_pool2d":
            moved = _pool_codes(rewriter, value, codes[0], name)
        else:
            moved = rewriter.emit(emit_move(value, codes, first.zero_point), name)
        sunk = Dequantize(moved, first.step, first.zero_point)
        self._known[var] = sunk
        return emit_dequantize(rewriter.emit, sunk, var.name)


def _alike(a: Dequantize, b: Dequantize | None) -> bool:
    return (
        b is not None
        and float(a.step) == float(b.step)
        and a.zero_point == b.zero_point
        and dtype_of(a.codes) == dtype_of(b.codes)
    )


def _pool_codes(rewriter: Rewriter, call: Expr, codes: Expr, name: str) -> Expr:
    attrs = call.attrs
    top, left, bottom, right = ints(attrs.padding)
    pool = MaxPool(
        codes,
        pair(attrs.pool_size),
        pair(attrs.strides),
        (top, left, bottom, right),
        pair(attrs.dilation),
    )
    return emit_pool(rewriter.emit, pool, name, "NCHW")
