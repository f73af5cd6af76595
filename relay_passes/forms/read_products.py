"""Read convolutions, dense layers, additions and max pooling back from their normal forms.

Each reader gives the layer, or the reason why the expression is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from relay_passes.code_ranges import code_range
from relay_passes.forms.lookup import first_code
from relay_passes.passes.name_values import SUMS
from relay_passes.relax_nodes import (
    Array,
    Expr,
    Graph,
    Var,
    array_of,
    dtype_of,
    ints,
    is_codes,
    is_constant,
    is_var,
    number,
    op_of,
    shape_of,
)
from targets.layers import Add, Conv2d, MaxPool2d, Operand, Requantize, Residual, Value
from targets.sum_bounds import bound_sums


class Reader(Protocol):
    """What the readers of single layers need of ``read_layers``."""

    graph: Graph

    def need(self, var: Var) -> Value:
        """The value of a tensor that the layer reads or makes."""

    def source(self, name: str) -> str:
        """Where the user's model says it."""


@dataclass(frozen=True, eq=False)
class _Term:
    """``((codes - zero_point) * multiplier) << shift``."""

    codes: Var
    zero_point: int
    multiplier: int
    shift: Array


@dataclass(frozen=True, eq=False)
class _Sums:
    """``conv2d(pad(x), weight) + bias``, dense layers as 1 x 1 convolutions."""

    name: str
    call: Expr
    source: Var
    padded: Expr
    padding: tuple[int, int, int, int]
    fill: int
    weight: Array
    bias: Array


def read_sums(reader: Reader, var: Var) -> Conv2d | str:
    """A convolution whose int32 sums are the network's output."""
    sums = _match_sums(reader.graph, var)
    if sums is None:
        return "the int32 output is no sum of products"
    return _convolution(reader, sums, var, None)


def read_arithmetic(reader: Reader, var: Var) -> Conv2d | Add | str:
    """Everything that ends in a rounding and a clip."""
    graph = reader.graph
    clip = graph.match(graph.value(var).args[0], "clip")
    if clip is None:
        return "its codes are not clipped"
    low, high = (int(number(clip.args[i])) for i in (1, 2))
    t, zero_point = clip.args[0], 0
    if _adds_scalar(graph, t):
        call = graph.value(t)
        t, zero_point = call.args[0], int(array_of(call.args[1]))
    shift = np.zeros((), np.int64)
    if (shifted := graph.match(t, "right_shift")) is not None:
        shift = array_of(shifted.args[1])
        raised = graph.match(shifted.args[0], "add")
        if raised is None or not is_constant(raised.args[1]):
            return "its right shift does not round half up"
        t = raised.args[0]

    term: _Term | None = None
    added = graph.match(t, "add")
    if added is not None and all(is_var(arg) for arg in added.args):
        term = _match_term(graph, added.args[1])
        first = _match_term(graph, added.args[0])
        if first is not None and term is not None:
            name = str(t.name).removesuffix(SUMS)
            a, b = (_operand(reader, side) for side in (first, term))
            output = reader.need(var)
            if shift.ndim:
                return "its shift differs by channel"
            place = reader.source(name)
            return Add(name, place, a, b, output, int(shift), zero_point, low, high)
        if term is None:
            return "what is added to the sums is no quantized tensor"
        t = added.args[0]
    scaled = _match_scaled_sums(graph, t)
    if scaled is None:
        return "what is rounded is neither a sum of products nor a sum of two tensors"
    sums, fraction, multiplier = scaled
    K = len(sums.bias)
    residual = None
    if term is not None:
        residual = Residual(
            reader.need(term.codes), term.zero_point, term.multiplier, _per_channel(term.shift, K)
        )
    requantize = Requantize(
        fraction,
        _per_channel(multiplier, K),
        _per_channel(shift, K),
        zero_point,
        low,
        high,
        residual,
    )
    return _convolution(reader, sums, var, requantize)


def read_pool(reader: Reader, var: Var) -> MaxPool2d | str:
    """Max pooling of codes, the padding in front of it included."""
    graph = reader.graph
    call = graph.value(var)
    source, padding, fill = unpadded(graph, call.args[0])
    if any(padding) and fill != first_code(dtype_of(source)):
        source, padding = call.args[0], (0, 0, 0, 0)
    return MaxPool2d(
        var.name,
        reader.source(var.name),
        reader.need(source),
        reader.need(var),
        _pair(call.attrs.pool_size),
        _pair(call.attrs.strides),
        padding,
        _pair(call.attrs.dilation),
    )


def unpadded(graph: Graph, var: Expr) -> tuple[Var, tuple[int, int, int, int], int]:
    """What a window's input is before padding of height and width that nothing else reads.

    Returns:
        The tensor, (top, left, bottom, right) and the code that fills them.
    """
    pad = graph.match(var, "nn.pad")
    if pad is None or len(graph.users(var)) > 1 or graph.is_output(var):
        return var, (0, 0, 0, 0), 0
    widths = ints(pad.attrs.pad_width)
    if len(widths) != 8 or any(widths[:2] + widths[6:]):
        return var, (0, 0, 0, 0), 0
    top, bottom, left, right = widths[2:6]
    return pad.args[0], (top, left, bottom, right), int(pad.attrs.pad_value)


def _convolution(reader: Reader, sums: _Sums, var: Var, requantize: Requantize | None) -> Conv2d:
    attrs = sums.call.attrs
    convolution = op_of(sums.call) == "nn.conv2d"
    groups = int(attrs.groups) if convolution else 1
    low, high = code_range(reader.graph, sums.padded)
    return Conv2d(
        name=sums.name,
        source=reader.source(sums.name),
        kind=_kind(sums, groups),
        input=reader.need(sums.source),
        output=reader.need(var),
        weight=sums.weight,
        bias=sums.bias.astype(np.int32),
        strides=_pair(attrs.strides) if convolution else (1, 1),
        padding=sums.padding,
        dilation=_pair(attrs.dilation) if convolution else (1, 1),
        groups=groups,
        input_zero_point=sums.fill,
        requantize=requantize,
        max_sum=bound_sums(sums.weight, sums.bias, low, high).reach,
        weight_bits=weight_bits(sums.weight),
    )


def _kind(sums: _Sums, groups: int) -> str:
    if op_of(sums.call) == "matmul":
        return "dense"
    if groups > 1 and groups == shape_of(sums.source)[3] == len(sums.bias):
        return "avg_pool2d" if (sums.weight == 1).all() else "depthwise_conv2d"
    return "conv2d"


def weight_bits(weight: Array) -> int:
    """The fewest bits, 2, 4 or 8, that hold all weights."""
    return next(
        (b for b in (2, 4) if -(1 << (b - 1)) <= weight.min() and weight.max() < 1 << (b - 1)), 8
    )


def _match_sums(graph: Graph, expr: Expr) -> _Sums | None:
    added = graph.match(expr, "add")
    if added is None or not is_constant(added.args[1]):
        return None
    call = graph.match(added.args[0], "nn.conv2d", "matmul")
    if call is None or not is_codes(call.args[0]) or not is_constant(call.args[1]):
        return None
    weight, bias = array_of(call.args[1]), array_of(added.args[1])
    name = str(expr.name).removesuffix(SUMS)
    x = call.args[0]
    if op_of(call) == "matmul":
        return _Sums(name, call, x, x, (0, 0, 0, 0), 0, weight.T[:, None, None, :].copy(), bias)
    source, padding, fill = unpadded(graph, x)
    return _Sums(name, call, source, x, padding, fill, weight, bias)


def _match_scaled_sums(graph: Graph, expr: Expr) -> tuple[_Sums, int, Array] | None:
    """``(sums << fraction) * multiplier``."""
    multiplier, fraction = np.ones((), np.int64), 0
    if (product := graph.match(expr, "multiply")) is not None:
        expr, multiplier = product.args[0], array_of(product.args[1])
    if (cast := graph.match(expr, "astype")) is not None:
        expr = cast.args[0]
    if (raised := graph.match(expr, "left_shift")) is not None:
        expr, fraction = raised.args[0], int(array_of(raised.args[1]))
    sums = _match_sums(graph, expr)
    return None if sums is None else (sums, fraction, multiplier)


def _match_term(graph: Graph, expr: Expr) -> _Term | None:
    shift, multiplier, zero_point = np.zeros((), np.int64), 1, 0
    if (raised := graph.match(expr, "left_shift")) is not None:
        expr, shift = raised.args[0], array_of(raised.args[1])
    if (product := graph.match(expr, "multiply")) is not None and is_scalar(product.args[1]):
        expr, multiplier = product.args[0], int(array_of(product.args[1]))
    if (centred := graph.match(expr, "subtract")) is not None and is_scalar(centred.args[1]):
        expr, zero_point = centred.args[0], int(array_of(centred.args[1]))
    cast = graph.match(expr, "astype")
    if cast is None or not is_codes(cast.args[0]):
        return None
    return _Term(cast.args[0], zero_point, multiplier, shift)


def _operand(reader: Reader, term: _Term) -> Operand:
    return Operand(reader.need(term.codes), term.zero_point, term.multiplier, int(term.shift))


def _adds_scalar(graph: Graph, expr: Expr) -> bool:
    """Whether the output's zero point is added here, and not a bias."""
    call = graph.match(expr, "add")
    return call is not None and is_scalar(call.args[1]) and _match_sums(graph, expr) is None


def is_scalar(expr: Expr) -> bool:
    """Whether it is a constant without axes."""
    return is_constant(expr) and array_of(expr).ndim == 0


def _per_channel(values: Array, channels: int) -> Array:
    return np.broadcast_to(values, (channels,)).astype(np.int32)


def _pair(values: Expr) -> tuple[int, int]:
    first, second = ints(values)
    return first, second
