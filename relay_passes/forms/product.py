"""Convolutions, dense layers and products of two tensors: int32 sums of products, the bias added.

nn.conv2d(pad(codes, zero point), weight) + bias        N H W C, weight O H W I
matmul(codes, transposed weight) + bias                 dense
products of two tensors + bias                          ``factor.py``
products scaled by group of input channels + bias       ``scaled_products.py``

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
from relay_passes.forms.scaled_products import (
    Split,
    emit_scaled,
    joined,
    match_scaled,
    match_split_vectors,
    split,
    split_vectors,
)
from relay_passes.operators import PRODUCTS
from relay_passes.relax_nodes import (
    Array,
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
from targets.product_factors import ProductFactors


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
        factors: of the products with a weight, by input channel; None if all are 1.
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
    factors: ProductFactors | None = None


def emit_product(emit: Emit, product: Product) -> Expr:
    """Bind the int32 sums."""
    x, right = product, product.right
    if isinstance(right, Factor):
        products = emit_multiplied(emit, Multiplied(x.codes, x.zero_point, right, x.groups))
    elif x.factors is not None:
        products = _emit_scaled(emit, x, split(right, x.factors, x.groups))
    elif x.dense:
        weight = constant(right[:, 0, 0].T, "int8")
        products = emit(relax.op.matmul(x.codes, weight, out_dtype="int32"))
    else:
        products = _emit_convolution(emit, x, right, x.groups)
    return emit(relax.op.add(products, constant(x.bias, "int32")), f"{x.node}{SUMS}")


def _emit_convolution(emit: Emit, x: Product, weight: npt.NDArray[np.int8], groups: int) -> Expr:
    call = relax.op.nn.conv2d(
        emit_padded(emit, Padded(x.codes, x.padding, x.zero_point)),
        constant(weight, "int8"),
        strides=x.strides,
        dilation=x.dilation,
        groups=groups,
        data_layout="NHWC",
        kernel_layout="OHWI",
        out_dtype="int32",
    )
    return emit(call)


def _emit_scaled(emit: Emit, x: Product, parts: Split) -> Expr:
    groups, within, outputs = parts.factors.shape
    if not x.dense:
        sums = _emit_convolution(emit, x, parts.weight, groups * within)
        return emit_scaled(emit, sums, parts.factors, 1)
    weight = parts.weight.reshape(within, outputs, -1).transpose(0, 2, 1)
    vectors = split_vectors(emit, x.codes, within)
    sums = emit(relax.op.matmul(vectors, constant(weight, "int8"), out_dtype="int32"))
    return emit_scaled(emit, sums, parts.factors, 3)


def match_product(graph: Graph, expr: Expr) -> Product | str:
    """The product that ``expr`` is the sums of, or why it is none."""
    added = graph.match(expr, "add")
    if added is None or not is_constant(added.args[1]):
        return "is no sum of products and a bias"
    products, bias = added.args[0], array_of(added.args[1])
    node = str(expr.name).removesuffix(SUMS)
    if bias.shape != (shape_of(products)[-1],):
        return "its bias is not one number per channel"
    products, factors = match_scaled(graph, products)
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
    if op_of(call) != "matmul":
        return _match_convolution(graph, call, weight, factors, node, bias)
    if factors is not None:
        return _match_scaled_vectors(graph, call, weight, factors, node, bias)
    if weight.ndim != 2:
        return "multiplies vectors by more than one matrix"
    return Product(node, call.args[0], weight.T[:, None, None].copy(), bias, dense=True)


def _match_convolution(
    graph: Graph, call: Expr, weight: Array, factors: Array | None, node: str, bias: Array
) -> Product | str:
    attrs = call.attrs
    if (str(attrs.data_layout), str(attrs.kernel_layout)) != ("NHWC", "OHWI"):
        return f"convolves an image held {attrs.data_layout}"
    if any(int(side) for side in attrs.padding):
        return "its convolution pads by itself, with code 0"
    padded, groups, scale = match_padded(graph, call.args[0]), int(attrs.groups), None
    if factors is not None:
        if groups != factors.shape[0] * factors.shape[1]:
            return "scales other groups of products than its convolution has"
        groups, (weight, scale) = len(factors), joined(Split(weight, factors))
    return Product(
        node,
        padded.codes,
        weight,
        bias,
        strides=pair(attrs.strides),
        padding=padded.sides,
        zero_point=padded.fill,
        dilation=pair(attrs.dilation),
        groups=groups,
        factors=scale,
    )


def _match_scaled_vectors(
    graph: Graph, call: Expr, weight: Array, factors: Array, node: str, bias: Array
) -> Product | str:
    """A dense layer whose products are scaled."""
    vectors = match_split_vectors(graph, call.args[0])
    groups, within, outputs = factors.shape
    fits = weight.ndim == 3 and (weight.shape[0], weight.shape[2]) == (within, outputs)
    if vectors is None or groups != 1 or not fits:
        return "scales other groups of products than its matrices have"
    parts = weight.transpose(0, 2, 1).reshape(within * outputs, 1, 1, -1)
    joint, scale = joined(Split(parts, factors))
    return Product(node, vectors, joint, bias, dense=True, factors=scale)
