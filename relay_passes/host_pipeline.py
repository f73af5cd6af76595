"""How TVM lowers a placed module for the host: its own pipeline, and always the same way.

TVM keeps the sizes that depend on the batch in a set of addresses and computes them in its order,
which is another one in some processes. The library would differ from build to build.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import IRModule, relax, tirx

from relay_passes.fuse_quantize import FuseQuantize


def host_pipeline() -> Any:
    """TVM's default pipeline of a Relax module, with what it leaves to chance put in order.

    Before it, the inputs' quantize is made a kernel.
    """
    return tvm.transform.Sequential([FuseQuantize(), relax.get_pipeline("default"), OrderSizes()])


@tvm.transform.module_pass(opt_level=0, name="OrderSizes")
class OrderSizes:
    """Compute the sizes that depend on the batch in the order of their places.

    Needs: TVM's VMShapeLower, which makes functions of stores into one buffer.
    """

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        ordered = mod.clone()
        for name, function in mod.functions.items():
            if isinstance(function, tirx.PrimFunc) and isinstance(function.body, tirx.SeqStmt):
                stores = list(function.body.seq)
                if _are_independent(stores):
                    stores.sort(key=_place)
                    ordered[name] = function.with_body(tirx.SeqStmt(stores))
        return ordered


def _are_independent(statements: list[Any]) -> bool:
    """Whether all write elements of one buffer at constant places, and read none of these."""
    if not all(isinstance(s, tirx.BufferStore) and _is_constant(s) for s in statements):
        return False
    if any(not s.buffer.same_as(statements[0].buffer) for s in statements):
        return False
    written = {_place(s) for s in statements}
    return all(_reads_none_of(written, statement.value) for statement in statements)


def _reads_none_of(written: set[int], expr: Any) -> bool:
    """Whether an expression is plain arithmetic, and of other elements than these."""
    if isinstance(expr, tirx.IntImm):
        return True
    if isinstance(expr, tvm.ir.expr.TensorLoad):
        return _is_constant(expr) and _place(expr) not in written
    if isinstance(expr, tirx.Cast):
        return _reads_none_of(written, expr.value)
    if not (hasattr(expr, "a") and hasattr(expr, "b")):
        return False
    return _reads_none_of(written, expr.a) and _reads_none_of(written, expr.b)


def _is_constant(access: Any) -> bool:
    return len(access.indices) == 1 and isinstance(access.indices[0], tirx.IntImm)


def _place(access: Any) -> int:
    return int(access.indices[0])
