"""Lower any function of a single quantized tensor, element by element, to a table.

    quantize(f(dequantize(x)))  -->  table[x],    table[q] = quantize(f(dequantize(q)))

``f`` is any expression of elementwise operators and scalar constants over one tensor of codes:
sigmoid, hardswish, a change of step (f = identity), a table that the importer made, ... It is
evaluated here for all 256 codes.

Needs: FoldActivations, SinkDequantize. Leaves: no quantize of a function of one tensor of codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tvm
from tvm import IRModule

from relay_passes.forms.quantization import match_dequantize, match_quantize
from relay_passes.forms.table import Table, emit_table, first_code
from relay_passes.relax_nodes import (
    Array,
    Expr,
    Graph,
    Rewriter,
    Var,
    array_of,
    dtype_of,
    is_codes,
    is_constant,
    is_var,
    number,
    op_of,
    rewrite,
)
from targets.rounding import round_reals


@tvm.transform.module_pass(opt_level=0, name="LowerLookup")
class LowerLookup:
    """Lower any function of a single quantized tensor, element by element, to a table."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        return rewrite(mod, _visit)


def _visit(rewriter: Rewriter, var: Var, _value: Expr) -> Expr | None:
    quantize = match_quantize(rewriter.graph, var)
    if quantize is None or quantize.step.size != 1 or len(quantize.rounding.borders) > 1:
        return None
    function = _Function(rewriter.graph)
    reals = function.values(quantize.source)
    if reals is None or function.codes is None:
        return None
    zero_point = quantize.zero_point
    whole = round_reals(reals / quantize.step, quantize.rounding, var.name, zero_point)
    codes = whole + zero_point
    entries = np.clip(codes, quantize.low, quantize.high).astype(quantize.dtype)
    return emit_table(rewriter.emit, Table(rewriter.get(function.codes), entries), var.name)


class _Function:
    """Evaluates an elementwise expression for every code of the one tensor it reads.

    Attributes:
        codes: that tensor, once met.
    """

    def __init__(self, graph: Graph) -> None:
        self.codes: Var | None = None
        self._graph = graph

    def values(self, expr: Expr) -> Array | None:
        """float64[256] (or a scalar) in ascending order of the codes; None if no such function."""
        if is_constant(expr):
            scalar = array_of(expr)
            return scalar.reshape(()) if scalar.size == 1 else None
        found = match_dequantize(self._graph, expr)
        if found is not None and is_var(found.codes) and is_codes(found.codes):
            if found.step.size != 1 or (self.codes is not None and self.codes != found.codes):
                return None
            self.codes = found.codes
            first = first_code(dtype_of(found.codes))
            return (np.arange(first, first + 256) - found.zero_point) * found.step.reshape(())
        call = self._graph.value(expr)
        if op_of(call) == "take" and is_constant(call.args[0]):
            index = self.values(call.args[1])
            return None if index is None else array_of(call.args[0])[index]
        evaluate = _ELEMENTWISE.get(op_of(call))
        if evaluate is None:
            return None
        operands = [self.values(arg) for arg in call.args if is_var(arg) or is_constant(arg)]
        if any(operand is None for operand in operands):
            return None
        with np.errstate(over="ignore"):  # exp of what where() drops
            return evaluate(call, *operands)


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


_ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "add": lambda _, a, b: a + b,
    "subtract": lambda _, a, b: a - b,
    "multiply": lambda _, a, b: a * b,
    "divide": lambda _, a, b: a / b,
    "maximum": lambda _, a, b: np.maximum(a, b),
    "minimum": lambda _, a, b: np.minimum(a, b),
    "greater": lambda _, a, b: a > b,
    "where": lambda _, c, a, b: np.asarray(np.where(c, a, b)),
    "round": lambda _, x: np.asarray(np.round(x)),
    "astype": lambda call, x: x.astype(call.attrs.dtype),
    "exp": lambda _, x: np.exp(x),
    "tanh": lambda _, x: np.tanh(x),
    "sigmoid": lambda _, x: _sigmoid(x),
    "clip": lambda call, x: np.clip(x, number(call.args[1]), number(call.args[2])),
    "nn.relu": lambda _, x: np.maximum(x, 0.0),
    "nn.silu": lambda _, x: x * _sigmoid(x),
    "nn.gelu": lambda _, x: 0.5 * x * (1.0 + _erf(x / np.sqrt(2.0))),
    "nn.gelu_tanh": lambda _, x: _gelu_tanh(x),
    "nn.leakyrelu": lambda call, x: np.where(x > 0, x, x * float(call.attrs.alpha)),
}
