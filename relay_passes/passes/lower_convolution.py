"""Lower convolution and dense layers, with bias and residual, to int8 products and int32 sums.

    quantize(conv2d(dequantize(x), dequantize(w)) + b)                 -->  integer normal form
    quantize(conv2d(dequantize(x), dequantize(w)) + b + dequantize(r)) -->  r joins the accumulator
    conv2d(...) + b, returned by the function                          -->  dequantize(int32 sums)

``matmul`` with a transposed constant likewise. Padding is with the input's zero point, whose part
of every sum is folded into the bias. The residual is added before the one rounding, from either
side of the add, to the convolution that nothing else reads; F fraction bits make room for a
residual finer than the sums.

Needs: ConvertToNhwc, FoldActivations, QuantizeConstants. Leaves: no convolution or matmul of floats
whose input is quantized and whose output is quantized or returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import tvm
from tvm import IRModule, relax

from relay_passes.code_ranges import code_range
from relay_passes.forms.quantization import (
    Dequantize,
    Quantize,
    emit_dequantize,
    match_dequantize,
    match_quantize,
)
from relay_passes.forms.requantize import Target, emit_requantize, exact_step
from relay_passes.relax_nodes import (
    Array,
    Expr,
    Graph,
    Rewriter,
    Var,
    array_of,
    constant,
    ints,
    is_codes,
    is_constant,
    is_var,
    op_of,
    rewrite,
)
from targets.arithmetic import INT32_MAX
from targets.errors import ArithmeticRangeError, UnsupportedError
from targets.scale import derive_scale
from targets.sum_bounds import CodeRange, SumBounds, bound_sums, needs_int64


@tvm.transform.module_pass(opt_level=0, name="LowerConvolution")
class LowerConvolution:
    """Lower convolution and dense layers, with bias and residual, to integers."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        return rewrite(mod, _visit)


@dataclass(frozen=True, eq=False)
class Product:
    """A convolution or dense layer of codes.

    Attributes:
        name: of the torch node.
        call: the float ``nn.conv2d`` or ``matmul``.
        data: the dequantized input.
        weight: int8[K, R, S, C / groups] or int8[K, C].
        steps: of the sums; one, or one per output channel.
        bias: int64[K], with the input's zero point folded in.
    """

    name: str
    call: Expr
    data: Dequantize
    weight: Array
    steps: list[Fraction]
    bias: Array


def match_product(graph: Graph, expr: Expr) -> Product | None:
    """The product that ``expr`` is the result of, its bias included.

    Raises:
        ArithmeticRangeError: the bias is no multiple of the sums' step, or beyond int32.
    """
    if not is_var(expr):
        return None
    added = graph.match(expr, "add")
    biased = added is not None and is_constant(added.args[1])
    call = graph.match(added.args[0] if added is not None and biased else expr, *_PRODUCTS)
    if call is None:
        return None
    data = match_dequantize(graph, call.args[0])
    weight = match_dequantize(graph, _untransposed(graph, call))
    if data is None or weight is None or not is_codes(data.codes) or data.step.size != 1:
        return None
    codes = array_of(weight.codes)
    K = codes.shape[0]
    steps = [exact_step(data.step) * exact_step(step) for step in weight.step.reshape(-1)]
    offset = array_of(added.args[1]).reshape(-1) if added is not None and biased else np.zeros(K)
    bias = _integer_bias(expr.name, np.broadcast_to(offset, (K,)), steps)
    taps = codes.reshape(K, -1).astype(np.int64).sum(1)
    return Product(expr.name, call, data, codes, steps, bias - data.zero_point * taps)


_PRODUCTS = ("nn.conv2d", "matmul")


def _untransposed(graph: Graph, call: Expr) -> Expr:
    """The weight of a product as [K, ...]; a dense layer's comes transposed."""
    if op_of(call) == "nn.conv2d":
        return call.args[1]
    transposed = graph.match(call.args[1], "permute_dims")
    return call.args[1] if transposed is None else transposed.args[0]


def _integer_bias(name: str, bias: Array, steps: list[Fraction]) -> Array:
    real = bias / np.array([float(step) for step in steps])
    codes = np.rint(real)
    if np.abs(real - codes).max() > 2**-10 or np.abs(codes).max() > INT32_MAX:
        k = int(np.abs(real - codes).argmax())
        raise ArithmeticRangeError(
            f"{name}, channel {k}: the bias {bias[k]!r} is {real[k]!r} steps of the sums, not an "
            "int32 number of them. Round the bias to a multiple of step_x * step_w when planning."
        )
    return codes.astype(np.int64)


def _visit(rewriter: Rewriter, var: Var, _value: Expr) -> Expr | None:
    graph = rewriter.graph
    quantize = match_quantize(graph, var)
    if quantize is not None:
        found = _product_and_residual(graph, quantize.source)
        return None if found is None else _requantized(rewriter, var, quantize, *found)
    if not _leaves_integers(graph, var):
        return None
    product = match_product(graph, var)
    if product is None:
        return None
    steps = np.broadcast_to([float(step) for step in product.steps], product.bias.shape)
    sums, _ = _emit_sums(rewriter, product)
    return emit_dequantize(rewriter.emit, Dequantize(sums, steps, 0), var.name)


def _leaves_integers(graph: Graph, var: Var) -> bool:
    """Whether the value goes to the output as it is, cast or reordered at most."""
    if graph.is_output(var):
        return True
    users = graph.users(var)
    moves = ("astype", "permute_dims", "reshape")
    return any(op_of(graph.value(u)) in moves and _leaves_integers(graph, u) for u in users)


def _product_and_residual(graph: Graph, source: Expr) -> tuple[Product, Dequantize | None] | None:
    product = match_product(graph, source)
    if product is not None:
        return product, None
    added = graph.match(source, "add")
    if added is None or not all(is_var(arg) for arg in added.args):
        return None
    a, b = added.args
    products = [match_product(graph, arg) for arg in (a, b)]
    if all(products):
        raise UnsupportedError(
            f"{source.name}: adds the sums of '{a.name}' and '{b.name}'; one accumulator can't "
            "hold both. Quantize one of the two before the add."
        )
    for product, other in zip(products, (b, a), strict=True):
        residual = match_dequantize(graph, other)
        if product is not None and residual is not None and is_codes(residual.codes):
            return product, residual
    return None


def _requantized(
    rewriter: Rewriter, var: Var, quantize: Quantize, product: Product, residual: Dequantize | None
) -> Expr:
    sums, bounds = _emit_sums(rewriter, product)
    step = exact_step(quantize.step)
    other = None if residual is None else exact_step(residual.step) / step
    try:
        scale = derive_scale([s / step for s in product.steps], other)
    except ArithmeticRangeError as error:
        raise ArithmeticRangeError(f"{product.name}: {error}") from None
    codes = added = None
    if residual is not None:
        codes = CodeRange(*code_range(rewriter.graph, residual.codes), residual.zero_point)
        added = rewriter.get(residual.codes), residual.zero_point
    if bounds.reach << scale.fraction > INT32_MAX:
        raise ArithmeticRangeError(
            f"{product.name}: the sums reach {bounds.reach} and need {scale.fraction} fraction "
            "bits, more than int32 holds. Use a coarser step for the residual or fewer bits."
        )
    wide = needs_int64(bounds, scale, codes, quantize.zero_point)
    target = Target(step, quantize.zero_point, quantize.low, quantize.high, quantize.dtype)
    return emit_requantize(rewriter.emit, sums, scale, wide, target, added, var.name)


def _emit_sums(rewriter: Rewriter, product: Product) -> tuple[Expr, SumBounds]:
    """Bind the int32 sums with their bias; also gives their bounds."""
    codes = code_range(rewriter.graph, product.data.codes)
    bounds = bound_sums(product.weight, product.bias, *codes)
    if bounds.reach > INT32_MAX:
        raise ArithmeticRangeError(
            f"{product.name}: sums reach {bounds.reach}, more than int32 holds. Use fewer bits or "
            "split the layer."
        )
    emit = rewriter.emit
    x = rewriter.get(product.data.codes)
    if op_of(product.call) == "matmul":
        weight = constant(product.weight.T, "int8")
        products = emit(relax.op.matmul(x, weight, out_dtype="int32"))
    else:
        products = emit(emit_conv2d(rewriter, x, product))
    sums = relax.op.add(products, constant(product.bias, "int32"))
    return emit(sums, f"{product.name}_sums"), bounds


def emit_conv2d(rewriter: Rewriter, x: Expr, product: Product) -> Expr:
    """The integer convolution of codes, padded with their zero point."""
    attrs = product.call.attrs
    top, left, bottom, right = ints(attrs.padding)
    if any((top, left, bottom, right)):
        widths = [0, 0, top, bottom, left, right, 0, 0]
        x = rewriter.emit(relax.op.nn.pad(x, widths, "constant", product.data.zero_point))
    return relax.op.nn.conv2d(
        x,
        constant(product.weight, "int8"),
        strides=ints(attrs.strides),
        dilation=ints(attrs.dilation),
        groups=int(attrs.groups),
        data_layout="NHWC",
        kernel_layout="OHWI",
        out_dtype="int32",
    )
