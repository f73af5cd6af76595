"""Convolutions, dense layers and products of two tensors: int32 sums of products, the bias added.

nn.conv2d(pad(codes, zero point), weight) + bias        N H W C, weight O H W I
matmul(codes, transposed weight) + bias                 dense
products of two tensors + bias                          ``factor.py``

With a weight the bias holds what the codes' zero point adds to each sum; the padding is with that
zero point. The sums of node ``x`` are called ``x_sums``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import relax

from relay_passes.forms.factor import Factor, Multiplied, emit_multiplied, match_multiplied
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
    shape_of,
)


@dataclass(frozen=True, eq=False)
class Product:
    """A convolution, a dense layer, or a product of two tensors.

    Attributes:
        node: name of the torch node that multiplies.
        codes: int8 or uint8 image, or vectors where dense.
        right: int8[K, R, S, C / groups], of a dense layer int8[K, 1, 1, C]; or another tensor.
        bias: int32[K].
        dense: whether it is a matmul; then all that follows stays as it is here.
        strides: (y, x).
        padding: (top, left, bottom, right).
        zero_point: of the codes. Fills the padding, 0 where there is none; of a product of two
            tensors subtracted.
        dilation: (y, x).
        groups: divides the channels of input and output.
    """

    node: str
    codes: Expr
    right: npt.NDArray[np.int8] | Factor
    bias: npt.NDArray[np.int32]
    dense: bool = False
    strides: tuple[int, int] = (1, 1)
    padding: Sides = (0, 0, 0, 0)
    zero_point: int = 0
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def emit_product(emit: Emit, product: Product) -> Expr:
    """Bind the int32 sums."""
    x, right = product, product.right
    if isinstance(right, Factor):
        products = emit_multiplied(emit, Multiplied(x.codes, x.zero_point, right, x.groups))
    elif x.dense:
        weight = constant(right[:, 0, 0].T, "int8")
        products = emit(relax.op.matmul(x.codes, weight, out_dtype="int32"))
    else:
        call = relax.op.nn.conv2d(
            emit_padded(emit, Padded(x.codes, x.padding, x.zero_point)),
            constant(right, "int8"),
            strides=x.strides,
            dilation=x.dilation,
            groups=x.groups,
            data_layout="NHWC",
            kernel_layout="OHWI",
            out_dtype="int32",
        )
        products = emit(call)
    return emit(relax.op.add(products, constant(x.bias, "int32")), f"{x.node}{SUMS}")


def match_product(graph: Graph, expr: Expr) -> Product | str:
    """The product that ``expr`` is the sums of, or why it is none."""
    added = graph.match(expr, "add")
    if added is None or not is_constant(added.args[1]):
        return "is no sum of products and a bias"
    products, bias = added.args[0], array_of(added.args[1])
    node = str(expr.name).removesuffix(SUMS)
    if bias.shape != (shape_of(products)[-1],):
        return "its bias is not one number per channel"
    call = graph.match(products, *PRODUCTS)
    if call is None or not is_constant(call.args[1]):
        x = match_multiplied(graph, products)
        if isinstance(x, str):
            return x
        return Product(node, x.codes, x.factor, bias, zero_point=x.zero_point, groups=x.groups)
    weight = array_of(call.args[1])
    if not is_codes(call.args[0]):
        return "is no sum of products of codes"
    if str(weight.dtype) != "int8" or dtype_of(call) != "int32":
        return "multiplies something else than int8 weights to int32 sums"
    if op_of(call) == "matmul":
        return Product(node, call.args[0], weight.T[:, None, None].copy(), bias, dense=True)
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
        zero_point=padded.fill,
        dilation=pair(attrs.dilation),
        groups=int(attrs.groups),
    )
