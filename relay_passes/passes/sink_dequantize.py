"""Move dequantize below the operators that only move or compare codes.

    max_pool(dequantize(q))                    -->  dequantize(max_pool(q))
    reshape, permute_dims, strided_slice       likewise
    pad(dequantize(q), 0.0)                    -->  dequantize(pad(q, zero_point))
    concat(dequantize(p), dequantize(q))       -->  dequantize(concat(p, q)), if step, zero point
                                                    and type are equal
    relu(dequantize(q))                        -->  dequantize(table[q]), where no quantize follows

A padded max pool pads with the lowest code, which never wins (each window holds a real element).

Needs: FoldActivations (a relu in front of a quantize costs nothing there). Leaves: a transparent
operator whose inputs are quantized alike works on codes.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import IRModule, relax

from relay_passes.forms.lookup import emit_lookup, first_code
from relay_passes.forms.quantization import Dequantize, emit_dequantize, match_dequantize
from relay_passes.relax_nodes import (
    Expr,
    Rewriter,
    Var,
    dtype_of,
    ints,
    is_codes,
    is_var,
    op_of,
    rewrite,
    variables_in,
)

_MOVES = ("reshape", "permute_dims", "strided_slice")
_TRANSPARENT = (*_MOVES, "nn.max_pool2d", "nn.pad", "concat", "nn.relu")


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
        if op_of(value) not in _TRANSPARENT:
            return None
        inputs = [self._known.get(arg) for arg in variables_in(value)]
        first = inputs[0] if inputs else None
        if first is None or not all(_alike(first, other) for other in inputs):
            return None
        codes = [known.codes for known in inputs if known is not None]
        name = f"{var.name}_codes"
        sunk = Dequantize(
            rewriter.emit(_on_codes(rewriter, value, codes, first, name), name),
            first.step,
            first.zero_point,
        )
        self._known[var] = sunk
        return emit_dequantize(rewriter.emit, sunk, var.name)


def _alike(a: Dequantize, b: Dequantize | None) -> bool:
    return (
        b is not None
        and float(a.step) == float(b.step)
        and a.zero_point == b.zero_point
        and dtype_of(a.codes) == dtype_of(b.codes)
    )


def _on_codes(
    rewriter: Rewriter, value: Expr, codes: list[Expr], source: Dequantize, name: str
) -> Expr:
    """The operator applied to codes."""
    op, attrs, x = op_of(value), value.attrs, codes[0]
    dtype = dtype_of(x)
    lowest = first_code(dtype)
    if op in _MOVES:
        return relax.Call(value.op, [x, *value.args[1:]], attrs, value.ty_args)
    if op == "concat":
        return relax.op.concat(codes, int(attrs.axis))
    if op == "nn.pad":
        return relax.op.nn.pad(x, ints(attrs.pad_width), "constant", source.zero_point)
    if op == "nn.relu":
        table = np.maximum(np.arange(lowest, lowest + 256), source.zero_point)
        return emit_lookup(rewriter.emit, table.astype(dtype), x, name)
    top, left, bottom, right = ints(attrs.padding)
    if any((top, left, bottom, right)):
        widths = [0, 0, 0, 0, top, bottom, left, right]
        x = rewriter.emit(relax.op.nn.pad(x, widths, "constant", lowest))
    return relax.op.nn.max_pool2d(
        x, ints(attrs.pool_size), ints(attrs.strides), [0] * 4, ints(attrs.dilation)
    )
