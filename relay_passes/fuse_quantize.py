"""Quantize the network's inputs in one pass over them.

The quantize of Relax is spelt out in operators of float64, of which TVM makes a loop over memory
each. What is computed is the same, element by element.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import IRModule, relax

from relay_passes.forms.quantization import Quantize, match_quantize
from relay_passes.relax_nodes import Expr, Graph, Rewriter, Var, dtype_of, is_var, rewrite, shape_of
from targets.cpu.quantize import build_quantize
from targets.rounding import ADDENDS


@tvm.transform.module_pass(opt_level=0, name="FuseQuantize")
class FuseQuantize:
    """Replace each quantize of ``main`` with one step and no borders by a kernel.

    Leaves alone: a ``main`` that calls other Relax functions, as that of networks with float ends.
    """

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        if any(
            isinstance(function, relax.Function) and var.name_hint != "main"
            for var, function in mod.functions_items()
        ):
            return mod
        graph = Graph(mod)
        found = {
            var: quantize
            for var, _ in graph.bindings
            if (quantize := match_quantize(graph, var)) is not None and _is_plain(quantize, var)
        }
        builder = relax.BlockBuilder(mod.clone())
        calls: dict[Var, tuple[Any, Var]] = {}
        for var, quantize in found.items():
            source = _source(graph, quantize)
            calls[var] = builder.add_func(_kernel(var, source, quantize), "cpu_quantize"), source

        def visit(rewriter: Rewriter, var: Var, _: Expr) -> Any:
            if var not in calls:
                return None
            kernel, source = calls[var]
            return relax.call_tir(kernel, [rewriter.get(source)], out_ty=var.ty)

        return rewrite(builder.get(), visit) if calls else mod


def _is_plain(quantize: Quantize, var: Var) -> bool:
    sizes = shape_of(var)[1:]
    fixed = all(isinstance(size, int) for size in sizes)
    return quantize.step.size == 1 and quantize.rounding in ADDENDS and fixed and bool(sizes)


def _source(graph: Graph, quantize: Quantize) -> Var:
    """What is read: the float32 behind the float64, where that is what it was."""
    cast = graph.match(quantize.source, "astype")
    if cast is not None and is_var(cast.args[0]) and dtype_of(cast.args[0]) == "float32":
        return cast.args[0]
    return quantize.source


def _kernel(var: Var, source: Var, quantize: Quantize) -> Any:
    ends = (quantize.zero_point, quantize.low, quantize.high)
    dtypes = (dtype_of(source), dtype_of(var))
    step, addend = float(quantize.step.item()), ADDENDS[quantize.rounding]
    return build_quantize(shape_of(var)[1:], dtypes, step, addend, ends)
