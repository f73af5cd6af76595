"""Verify that nothing between the input's quantize and the output's dequantize is a float.

A float may be computed from the network's inputs alone (the quantize), or be used by nothing but
other floats (the dequantize), and there only by the operators that those two consist of, and by
moves: outputs of the network may be joined from tensors with steps of their own. The whole root of
an integer goes through a float64, which holds it exactly (``forms/norm.py``).

Needs: every lowering pass. Leaves: the module as it is, or an error that names the value.
"""

from __future__ import annotations

import tvm
from tvm import IRModule

from relay_passes.forms.norm import floats_of_root
from relay_passes.operators import MOVES
from relay_passes.relax_nodes import Expr, Graph, Var, is_float, op_of, variables_in
from targets.errors import UnsupportedError

_QUANTIZE = ("astype", "divide", "add", "floor", "clip")
_DEQUANTIZE = ("astype", "subtract", "multiply", *MOVES)

_REASONS = {
    "concat": "its inputs have different steps or zero points; give them one step",
    "add": "it is neither added in a convolution's accumulator nor quantized afterwards",
    "nn.conv2d": "its input, its weight or its output is not quantized",
    "matmul": "its input, its weight or its output is not quantized",
    "nn.relu": "its output is not quantized",
    "clip": "its output is not quantized",
    "astype": "its codes are used as real numbers",
}
_ANY_REASON = "there is no integer form of this operator here"


@tvm.transform.module_pass(opt_level=0, name="VerifyInteger")
class VerifyInteger:
    """Verify that nothing between the input's quantize and the output's dequantize is a float."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return ``mod`` itself.

        Raises:
            UnsupportedError: names the first value that is still a float, and why.
        """
        verify_integer(mod)
        return mod


def verify_integer(mod: IRModule) -> None:
    """Raise ``UnsupportedError`` if anything between the quantize and the dequantize is a float."""
    graph = Graph(mod)
    from_integers: set[Var] = set()
    for var, value in graph.bindings:
        sources = variables_in(value)
        if any(source in from_integers or _is_integer(source) for source in sources):
            from_integers.add(var)
    to_integers: set[Var] = set()
    for var, _ in reversed(graph.bindings):
        if any(user in to_integers or _is_integer(user) for user in graph.users(var)):
            to_integers.add(var)

    exact = {var for root, _ in graph.bindings for var in floats_of_root(graph, root)}
    for var, value in graph.bindings:
        if not _is_integer(var) and op_of(value) and var not in exact:
            after, before = var in from_integers, var in to_integers
            allowed = _DEQUANTIZE if after else _QUANTIZE
            if (after and before) or op_of(value) not in allowed:
                name = _named(graph, var)
                raise UnsupportedError(
                    f"{name}: '{op_of(value)}' is still computed in floating point: "
                    f"{_REASONS.get(op_of(value), _ANY_REASON)}. Quantize the values around it, or "
                    "leave it to what reads the outputs.",
                    node=name,
                )
    for output in graph.outputs:
        if output not in from_integers:
            raise UnsupportedError(
                f"{output.name}: the network returns it without having quantized anything. Leave "
                "it out of the outputs.",
                node=output.name,
            )


def _is_integer(var: Expr) -> bool:
    return hasattr(var.ty, "dtype") and not is_float(var)


def _named(graph: Graph, var: Var) -> str:
    """The value's name, or that of the first named one computed from it."""
    while var.name.startswith("lv") and (users := graph.users(var)):
        var = users[0]
    return str(var.name)
