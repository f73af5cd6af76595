"""Lower convolution and dense layers, with bias and residual, to int8 products and int32 sums.

    quantize(conv2d(dequantize(x), dequantize(w)) + b)                 -->  integer normal form
    quantize(conv2d(dequantize(x), dequantize(w)) + b + dequantize(r)) -->  r joins the accumulator
    conv2d(...) + b, returned by the function                          -->  dequantize(int32 sums)
    dequantize(w) * factors                                            -->  products scaled by group

``matmul`` with a transposed constant likewise. Padding is with the input's zero point, whose part
of every sum is folded into the bias. The residual is added before the one rounding, from either
side of the add, to the convolution that nothing else reads; F fraction bits make room for a
residual finer than the sums.

Needs: ConvertToNhwc, FoldActivations, QuantizeConstants. Leaves: no convolution or matmul of floats
whose input is quantized and whose output is quantized or returned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import tvm
from tvm import IRModule

from relay_passes.code_ranges import CodeRanges
from relay_passes.forms.product import Product, emit_product
from relay_passes.forms.quantization import (
    Dequantize,
    Quantize,
    emit_dequantize,
    exact_step,
    match_dequantize,
    match_quantize,
)
from relay_passes.operators import MOVES, PRODUCTS
from relay_passes.passes.requantize_sums import Sums, requantize_sums
from relay_passes.relax_nodes import (
    Array,
    Expr,
    Graph,
    Rewriter,
    Var,
    array_of,
    ints,
    is_codes,
    is_constant,
    is_var,
    op_of,
    pair,
    rewrite,
    variables_in,
)
from targets.arithmetic import INT32_MAX
from targets.errors import ArithmeticRangeError, UnsupportedError
from targets.product_factors import ProductFactors, integer_factors
from targets.scale import power_of_two
from targets.sum_bounds import CodeRange, SumBounds, bound_sums


@tvm.transform.module_pass(opt_level=0, name="LowerConvolution")
class LowerConvolution:
    """Lower convolution and dense layers, with bias and residual, to integers."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        lowering = _Lowering(Graph(mod))
        return rewrite(mod, lowering.visit)


@dataclass(frozen=True, eq=False)
class RealProduct:
    """A convolution or dense layer of codes that still multiplies real numbers.

    Attributes:
        name: of the torch node.
        call: the float ``nn.conv2d`` or ``matmul``.
        data: the dequantized input.
        weight: int8[K, R, S, C / groups] or int8[K, C].
        steps: of the sums; one, or one per output channel.
        bias: int64[K], with the input's zero point folded in.
        factors: of the products; None if all are 1.
    """

    name: str
    call: Expr
    data: Dequantize
    weight: Array
    steps: list[Fraction]
    bias: Array
    factors: ProductFactors | None = None

    @property
    def scaled_weight(self) -> Array:
        """int[K, ..., C / groups]: what the input is multiplied by in the end."""
        return self.weight if self.factors is None else self.factors.scaled(self.weight)


class _Lowering:
    """What is known of the old graph before the first binding is written."""

    def __init__(self, graph: Graph) -> None:
        self._ranges = CodeRanges(graph)
        self._leaving = _leaving(graph)

    def visit(self, rewriter: Rewriter, var: Var, _value: Expr) -> Expr | None:
        graph = rewriter.graph
        quantize = match_quantize(graph, var)
        if quantize is not None:
            found = _product_and_residual(graph, quantize.source)
            return None if found is None else self._requantized(rewriter, var, quantize, *found)
        if var not in self._leaving:
            return None
        product = match_real_product(graph, var)
        if product is None:
            return None
        steps = np.broadcast_to([float(step) for step in product.steps], product.bias.shape)
        sums, _ = self._sums(rewriter, product)
        return emit_dequantize(rewriter.emit, Dequantize(sums, steps, 0), var.name)

    def _requantized(
        self,
        rewriter: Rewriter,
        var: Var,
        quantize: Quantize,
        product: RealProduct,
        residual: Dequantize | None,
    ) -> Expr:
        expr, bounds = self._sums(rewriter, product)
        sums = Sums(product.name, expr, product.steps, bounds)
        if residual is None:
            return requantize_sums(rewriter, var, quantize, sums)
        codes = CodeRange(*self._ranges.of(residual.codes), residual.zero_point)
        return requantize_sums(rewriter, var, quantize, sums, (residual, codes))

    def _sums(self, rewriter: Rewriter, product: RealProduct) -> tuple[Expr, SumBounds]:
        """Bind the int32 sums with their bias; also gives their bounds."""
        bounds = bound_sums(
            product.scaled_weight, product.bias, *self._ranges.of(product.data.codes)
        )
        if bounds.reach > INT32_MAX:
            raise ArithmeticRangeError(
                f"{product.name}: sums reach {bounds.reach}, more than int32 holds. Use fewer bits "
                "or split the layer.",
                node=product.name,
            )
        return emit_product(rewriter.emit, _on_codes(rewriter, product)), bounds


def match_real_product(graph: Graph, expr: Expr) -> RealProduct | None:
    """The product that ``expr`` is the result of, its bias included.

    Raises:
        ArithmeticRangeError: the bias is no multiple of the sums' step, or beyond int32; or a
            factor of the products is none.
    """
    if not is_var(expr):
        return None
    added = graph.match(expr, "add")
    biased = added is not None and is_constant(added.args[1])
    call = graph.match(added.args[0] if added is not None and biased else expr, *PRODUCTS)
    if call is None:
        return None
    data = match_dequantize(graph, call.args[0])
    scaled = _untransposed(graph, call)
    weight, factors = match_dequantize(graph, scaled), None
    if weight is None and (product := graph.match(scaled, "multiply")) is not None:
        weight = match_dequantize(graph, product.args[0])
        factors = array_of(product.args[1]) if is_constant(product.args[1]) else None
    if data is None or weight is None or not is_codes(data.codes) or data.step.size != 1:
        return None
    codes = array_of(weight.codes)
    K = codes.shape[0]
    scale, fraction = None, 0
    if factors is not None:
        try:
            integers, fraction = integer_factors(np.broadcast_to(factors, codes.shape))
            by_tap = integers.reshape(K, -1, codes.shape[-1])
            if (by_tap != by_tap[:, :1]).any():
                return None
            scale = ProductFactors.of(by_tap[:, 0])
        except ArithmeticRangeError as error:
            raise ArithmeticRangeError(f"{expr.name}: {error}", node=expr.name) from None
    unit = exact_step(data.step) * power_of_two(-fraction)
    steps = [unit * exact_step(step) for step in weight.step.reshape(-1)]
    offset = array_of(added.args[1]).reshape(-1) if added is not None and biased else np.zeros(K)
    bias = _integer_bias(expr.name, np.broadcast_to(offset, (K,)), steps)
    found = RealProduct(expr.name, call, data, codes, steps, bias, scale)
    taps = found.scaled_weight.reshape(K, -1).astype(np.int64).sum(1)
    return replace(found, bias=bias - data.zero_point * taps)


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
            "int32 number of them. Round the bias to a multiple of step_x * step_w when planning.",
            node=name,
        )
    return codes.astype(np.int64)


def _leaving(graph: Graph) -> set[Var]:
    """Values that go to the output as they are, cast or moved at most."""
    leaving = {output for output in graph.outputs if is_var(output)}
    for var, value in reversed(graph.bindings):
        if var in leaving and op_of(value) in ("astype", *MOVES):
            leaving.update(variables_in(value))
    return leaving


def _product_and_residual(
    graph: Graph, source: Expr
) -> tuple[RealProduct, Dequantize | None] | None:
    product = match_real_product(graph, source)
    if product is not None:
        return product, None
    added = graph.match(source, "add")
    if added is None or not all(is_var(arg) for arg in added.args):
        return None
    a, b = added.args
    products = [match_real_product(graph, arg) for arg in (a, b)]
    if all(products):
        raise UnsupportedError(
            f"{source.name}: adds the sums of '{a.name}' and '{b.name}'; one accumulator can't "
            "hold both. Quantize one of the two before the add.",
            node=source.name,
        )
    for product, other in zip(products, (b, a), strict=True):
        residual = match_dequantize(graph, other)
        if product is not None and residual is not None and is_codes(residual.codes):
            return product, residual
    return None


def _on_codes(rewriter: Rewriter, product: RealProduct) -> Product:
    """The same product of codes, padded with their zero point."""
    codes, weight = rewriter.get(product.data.codes), product.weight
    bias = product.bias.astype(np.int32)
    if op_of(product.call) == "matmul":
        dense = weight[:, None, None]
        return Product(product.name, codes, dense, bias, dense=True, factors=product.factors)
    attrs = product.call.attrs
    top, left, bottom, right = ints(attrs.padding)
    return Product(
        product.name,
        codes,
        weight,
        bias,
        strides=pair(attrs.strides),
        padding=(top, left, bottom, right),
        zero_point=product.data.zero_point,
        dilation=pair(attrs.dilation),
        groups=int(attrs.groups),
        factors=product.factors,
    )
