"""Give the codes the name of the torch node whose value they carry.

    relu_1_codes  -->  relu_1

The float value that had the name is gone by now. The input's codes keep ``_codes``, since the
parameter holds the name of the node; where both the sums and the codes of a node are alive the sums
are ``<node>_sums``.

Needs: every lowering pass. Leaves: names as in the plan.
"""

from __future__ import annotations

import tvm
from tvm import IRModule

from relay_passes.relax_nodes import Expr, Graph, Rewriter, Var, rewrite

CODES = "_codes"


@tvm.transform.module_pass(opt_level=0, name="NameValues")
class NameValues:
    """Give the codes the name of the torch node whose value they carry."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        graph = Graph(mod)
        taken = {var.name for var in graph.params} | {var.name for var, _ in graph.bindings}

        def visit(rewriter: Rewriter, var: Var, value: Expr) -> Expr | None:
            name = var.name.removesuffix(CODES)
            return None if name in taken else rewriter.emit(rewriter.copy(value), name)

        return rewrite(mod, visit)
