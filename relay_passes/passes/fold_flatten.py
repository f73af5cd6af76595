"""Reorder a dense layer's weight instead of the image that is flattened into it.

    matmul(reshape(permute_dims(x, NCHW)), W)  -->  matmul(reshape(x), W')

torch flattens in the order C H W, the tensor is held H W C; the rows of W follow it. What is left
of the flatten is the same bytes under another shape.

Needs: LowerConvolution. Leaves: no transposed image in front of an integer dense layer.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax

from relay_passes.passes.convert_to_nhwc import TO_NCHW
from relay_passes.relax_nodes import (
    Expr,
    Rewriter,
    Var,
    array_of,
    constant,
    dtype_of,
    ints,
    is_codes,
    is_constant,
    op_of,
    rewrite,
    shape_of,
)


@tvm.transform.module_pass(opt_level=0, name="FoldFlatten")
class FoldFlatten:
    """Reorder a dense layer's weight instead of the image that is flattened into it."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        return rewrite(mod, _visit)


def _visit(rewriter: Rewriter, _var: Var, value: Expr) -> Expr | None:
    if op_of(value) != "matmul" or not is_codes(value.args[0]) or not is_constant(value.args[1]):
        return None
    flat = rewriter.graph.match(value.args[0], "reshape")
    moved = None if flat is None else rewriter.graph.match(flat.args[0], "permute_dims")
    if flat is None or moved is None or ints(moved.attrs.axes) != TO_NCHW:
        return None
    if len(shape_of(flat)) != 2:
        return None
    H, W, C = shape_of(moved.args[0])[1:]
    weight = array_of(value.args[1])
    reordered = weight.reshape(C, H, W, -1).transpose(1, 2, 0, 3).reshape(weight.shape)
    x = relax.op.reshape(rewriter.get(moved.args[0]), [shape_of(flat)[0], H * W * C])
    return relax.op.matmul(
        rewriter.emit(x, value.args[0].name),
        constant(reordered, "int8"),
        out_dtype=dtype_of(value),
    )
