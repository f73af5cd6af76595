"""A part that was imported by itself, put into a module beside other such parts."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import IRModule, relax
from tvm.relax.expr_functor import PyExprMutator, mutator


def add_part(builder: relax.BlockBuilder, part: IRModule, name: str) -> relax.GlobalVar:
    """Add a part's ``main`` as ``name``, and what it calls under names that begin with it.

    Args:
        builder: of the module.
        part: from ``import_float``, left as it was.
        name: that no other function has.

    Returns:
        What to call.
    """
    known = {}
    for called, function in part.functions.items():
        if called.name_hint != "main":
            own = f"{name}_{called.name_hint}"
            known[called] = builder.add_func(function.with_attr("global_symbol", own), own)
    main = part["main"]
    if known:
        main = _Renamed(known).visit_expr(main)
    return builder.add_func(main.with_attr("global_symbol", name), name)


@mutator
class _Renamed(PyExprMutator):  # type: ignore[misc]
    """Calls of functions that have other names now."""

    def __init__(self, known: Mapping[relax.GlobalVar, relax.GlobalVar]) -> None:
        super().__init__()
        self.known = known

    def visit_global_var_(self, op: relax.GlobalVar) -> relax.GlobalVar:
        return self.known.get(op, op)
