"""Convolution and dense layers of codes: int32 sums of products, the bias added.

nn.conv2d(pad(codes, fill), weight) + bias        N H W C, weight O H W I
matmul(codes, transposed weight) + bias           dense

The bias holds what the input's zero point adds to each sum; the padding is with that zero point.
The sums of node ``x`` are called ``x_sums``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import relax

from relay_passes.forms.padding import Padded, Sides, emit_padded, match_padded
from relay_passes.forms.rounding import SUMS
from relay_passes.operators import PRODUCTS
from relay_passes.relax_nodes import (
    Emit,
    Expr,
    Graph,
    array_of,
    constant,
    dtype_of,
    is_codes,
    is_constant,
    op_of,
    pair,
)


@dataclass(frozen=True, eq=False)
class Product:
    """A convolution, or a dense layer.

    Attributes:
        node: name of the torch node that multiplies.
        codes: int8 or uint8 image, or vectors where dense.
        weight: int8[K, R, S, C / groups]; of a dense layer int8[K, 1, 1, C].
        bias: int32[K].
        dense: whether it is a matmul; then all that follows stays as it is here.
        strides: (y, x).
        padding: (top, left, bottom, right).
        fill: the code of the padding; 0 where there is none.
        dilation: (y, x).
        groups: divides the channels of input and output.
    """

    node: str
    codes: Expr
    weight: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    dense: bool = False
    strides: tuple[int, int] = (1, 1)
    padding: Sides = (0, 0, 0, 0)
    fill: int = 0
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def emit_product(emit: Emit, product: Product) -> Expr:
    """Bind the int32 sums."""
    if product.dense:
        weight = constant(product.weight[:, 0, 0].T, "int8")
        products = emit(relax.op.matmul(product.codes, weight, out_dtype="int32"))
    else:
        x = emit_padded(emit, Padded(product.codes, product.padding, product.fill))
        call = relax.op.nn.conv2d(
            x,
            constant(product.weight, "int8"),
            strides=product.strides,
            dilation=product.dilation,
            groups=product.groups,
            data_layout="NHWC",
            kernel_layout="OHWI",
            out_dtype="int32",
        )
        products = emit(call)
    return emit(relax.op.add(products, constant(product.bias, "int32")), f"{product.node}{SUMS}")


def match_product(graph: Graph, expr: Expr) -> Product | str:
    """The product that ``expr`` is the sums of, or why it is none."""
    added = graph.match(expr, "add")
    if added is None or not is_constant(added.args[1]):
        return "is no sum of products and a bias"
    call = graph.match(added.args[0], *PRODUCTS)
    if call is None or not is_codes(call.args[0]) or not is_constant(call.args[1]):
        return "is no sum of products of codes"
    weight, bias = array_of(call.args[1]), array_of(added.args[1])
    if str(weight.dtype) != "int8" or dtype_of(call) != "int32":
        return "multiplies something else than int8 weights to int32 sums"
    node = str(expr.name).removesuffix(SUMS)
    if op_of(call) == "matmul":
        if bias.shape != weight.shape[1:]:
            return "its bias is not one number per channel"
        return Product(node, call.args[0], weight.T[:, None, None].copy(), bias, dense=True)
    if bias.shape != weight.shape[:1]:
        return "its bias is not one number per channel"
    attrs = call.attrs
    if (str(attrs.data_layout), str(attrs.kernel_layout)) != ("NHWC", "OHWI"):
        return f"convolves an image held {attrs.data_layout}"
    if any(int(side) for side in attrs.padding):
        return "its convolution pads by itself, with code 0"
    padded = match_padded(graph, call.args[0])
    return Product(
        node,
        padded.codes,
        weight,
        bias,
        strides=pair(attrs.strides),
        padding=padded.sides,
        fill=padded.fill,
        dilation=pair(attrs.dilation),
        groups=int(attrs.groups),
    )
