"""Lower average pooling to a depthwise convolution with weights of one.

    quantize(avg_pool2d(dequantize(x)))  -->  requantize(conv2d(x, ones, groups=C) - window * zero)

The ratio ``step_x / (window * step_y)`` of a 7 x 7 window is no fraction of 2**s, so the multiplier
is the next 16-bit one above it; that every possible sum still gives the exactly rounded code is not
assumed but tried, sum by sum.

Needs: ConvertToNhwc, FoldActivations. Leaves: no average pooling of quantized codes.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import tvm
from tvm import IRModule, relax

from relay_passes.code_ranges import code_range
from relay_passes.forms.quantization import Quantize, match_dequantize, match_quantize
from relay_passes.forms.requantize import Target, emit_requantize, exact_step
from relay_passes.relax_nodes import (
    Expr,
    Rewriter,
    Var,
    constant,
    ints,
    is_codes,
    rewrite,
    shape_of,
)
from targets.arithmetic import MAX_MULTIPLIER
from targets.errors import ArithmeticRangeError
from targets.scale import derive_scale
from targets.sum_bounds import bound_sums, needs_int64


@tvm.transform.module_pass(opt_level=0, name="LowerAveragePool")
class LowerAveragePool:
    """Lower average pooling to a depthwise convolution with weights of one."""

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        """Return a new module; ``mod`` is left as it was."""
        return rewrite(mod, _visit)


def _visit(rewriter: Rewriter, var: Var, _value: Expr) -> Expr | None:
    graph = rewriter.graph
    quantize = match_quantize(graph, var)
    pool = None if quantize is None else graph.match(quantize.source, "nn.avg_pool2d")
    data = None if pool is None else match_dequantize(graph, pool.args[0])
    if (
        quantize is None
        or pool is None
        or data is None
        or not is_codes(data.codes)
        or data.step.size != 1
    ):
        return None
    name = quantize.source.name
    emit = rewriter.emit
    kernel = ints(pool.attrs.pool_size)
    window = math.prod(kernel)
    channels = shape_of(data.codes)[3]
    ones = np.ones((channels, *kernel, 1), np.int8)
    bias = np.full(channels, -window * data.zero_point)

    top, left, bottom, right = ints(pool.attrs.padding)
    low, high = code_range(graph, data.codes)
    x = rewriter.get(data.codes)
    if any((top, left, bottom, right)):
        widths = [0, 0, top, bottom, left, right, 0, 0]
        x = emit(relax.op.nn.pad(x, widths, "constant", data.zero_point))
        low, high = min(low, data.zero_point), max(high, data.zero_point)
    products = emit(
        relax.op.nn.conv2d(
            x,
            constant(ones, "int8"),
            strides=ints(pool.attrs.strides),
            dilation=ints(pool.attrs.dilation),
            groups=channels,
            data_layout="NHWC",
            kernel_layout="OHWI",
            out_dtype="int32",
        )
    )
    sums = emit(relax.op.add(products, constant(bias, "int32")), f"{name}_sums")

    step = exact_step(quantize.step)
    exact = exact_step(data.step) / step / window
    reach = (window * (low - data.zero_point), window * (high - data.zero_point))
    ratio = same_rounding(name, exact, reach, quantize)
    scale = derive_scale([ratio])
    wide = needs_int64(bound_sums(ones, bias, low, high), scale, None, quantize.zero_point)
    target = Target(step, quantize.zero_point, quantize.low, quantize.high, quantize.dtype)
    return emit_requantize(emit, sums, scale, wide, target, None, var.name)


def same_rounding(
    name: str, exact: Fraction, reach: tuple[int, int], quantize: Quantize
) -> Fraction:
    """A fraction ``M / 2**s`` that rounds every sum in ``reach`` to the code that ``exact`` does.

    Args:
        name: of the layer, for the error.
        exact: step of the sums over step of the output.
        reach: lowest and highest sum.
        quantize: for the codes that are kept.

    Raises:
        ArithmeticRangeError: no 16-bit multiplier does; names the layer and the sum.
    """
    shift = 15 - math.floor(math.log2(exact))
    scaled = exact * Fraction(2) ** shift
    near = round(scaled)
    if abs(scaled - near) <= scaled / 2**40:  # the planner chose the steps so
        return Fraction(near) / Fraction(2) ** shift
    # above and not nearest: a tie, which must go up, may not fall below the half
    chosen = min(math.ceil(scaled), MAX_MULTIPLIER) / Fraction(2) ** shift
    for total in range(reach[0], reach[1] + 1):
        if _code(total * exact, quantize) != _code(total * chosen, quantize):
            raise ArithmeticRangeError(
                f"{name}: no 16-bit multiplier stands for the ratio {float(exact)!r}; the sum "
                f"{total} would round differently. Choose another step for this layer."
            )
    return chosen


def _code(real: Fraction, quantize: Quantize) -> int:
    code = math.floor(real + Fraction(1, 2)) + quantize.zero_point
    return min(max(code, quantize.low), quantize.high)
