"""A function of one code as a table of 256 entries: the normal form, written and read.

take(table, astype(codes, "int32"))            uint8 codes
take(table, astype(codes, "int32") + 128)      int8 codes
"""

from __future__ import annotations

from tvm import relax

from relay_passes.relax_nodes import Array, Emit, Expr, constant, dtype_of


def first_code(dtype: str) -> int:
    """The code that the first entry of a table belongs to."""
    return -128 if dtype == "int8" else 0


def emit_lookup(emit: Emit, table: Array, codes: Expr, name: str = "") -> Expr:
    """Bind the table's values at the codes.

    Args:
        emit: binds an expression.
        table: int8[256] or uint8[256], in ascending order of the codes.
        codes: int8 or uint8 tensor.
        name: of the result.
    """
    index = emit(relax.op.astype(codes, "int32"))
    if dtype_of(codes) == "int8":
        index = emit(relax.op.add(index, constant(128, "int32")))
    return emit(relax.op.take(constant(table, str(table.dtype)), index, axis=0), name)
