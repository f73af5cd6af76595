"""One converter per ATen operator of an annotated graph, from its torch node to Relax.

These are the operators of ``tvmq/capture/operator_rules.py`` that have integers, which has refused
whatever else their arguments could say; averages are convolutions by now. What is neither here
nor a function of one tensor, for which ``pointwise`` is, has no Relax.

Each binds its result under the node's name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from torch import fx
from tvm import relax

from relay_passes.forms.head_products import (
    HeadProduct,
    HeadSoftmax,
    emit_head_product,
    emit_head_softmax,
)
from relay_passes.forms.quantization import Dequantize, Quantize, emit_dequantize, emit_quantize
from relay_passes.frontend.pointwise import table_of
from relay_passes.relax_nodes import Array, Emit, Expr, Var, constant, shape_of
from targets.code_range import code_range
from targets.layers import Pairing
from targets.rounding import Rounding, RoundingMode


@dataclass(frozen=True)
class Importer:
    """What converters have in common.

    Attributes:
        emit: binds an expression.
        arrays: by node of the graph, the stored tensors.
        env: by node of the graph, what is computed.
    """

    emit: Emit
    arrays: dict[fx.Node, Array]
    env: dict[fx.Node, Expr] = field(default_factory=dict)

    def array(self, node: fx.Node | None) -> Array | None:
        """A stored tensor that may be left out."""
        return None if node is None else self.arrays[node]

    def operand(self, node: fx.Node) -> Expr:
        """What a node stands for, computed or stored."""
        stored = self.arrays.get(node)
        return self.env[node] if stored is None else constant(stored, str(stored.dtype))


Converter: TypeAlias = Callable[[fx.Node, Importer], Expr]


def arguments(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """Positional arguments, filled up with the operator's defaults."""
    return tuple(node.args) + defaults[len(node.args) :]


def pair(value: int | list[int]) -> list[int]:
    """One number per spatial axis."""
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _elementwise(build: Callable[..., Expr]) -> Converter:
    def convert(node: fx.Node, importer: Importer) -> Var:
        return importer.emit(
            build(importer.env[node.args[0]], *node.args[1:], **node.kwargs), node.name
        )

    return convert


def _scalar(value: float) -> Expr:
    return constant(value, "float64")


def _clamp(x: Expr, low: float, high: float) -> Expr:
    return relax.op.clip(x, low, high)


def _add(node: fx.Node, importer: Importer) -> Var:
    a, b = (importer.env[arg] for arg in node.args)
    return importer.emit(relax.op.add(a, b), node.name)


def _cat(node: fx.Node, importer: Importer) -> Var:
    tensors = [importer.env[arg] for arg in node.args[0]]
    (axis,) = arguments(node, None, 0)[1:]
    axis %= len(shape_of(tensors[0]))
    return importer.emit(relax.op.concat(tensors, axis), node.name)


def _max_pool2d(node: fx.Node, importer: Importer) -> Var:
    source, kernel, strides, padding, dilation, ceil_mode = arguments(
        node, None, None, (), (0, 0), (1, 1), False
    )
    x = importer.env[source]
    kernel, dilation = pair(kernel), pair(dilation)
    strides = pair(strides) if strides else kernel
    widths = _pool_padding(node, shape_of(x)[2:], kernel, strides, pair(padding), dilation)
    if not ceil_mode:
        widths = pair(padding) * 2
    pooled = relax.op.nn.max_pool2d(x, kernel, strides, widths, dilation)
    return importer.emit(pooled, node.name)


def _pool_padding(
    node: fx.Node,
    size: tuple[int, ...],
    kernel: list[int],
    strides: list[int],
    padding: list[int],
    dilation: list[int],
) -> list[int]:
    """Padding (top, left, bottom, right) that gives torch's output size, also in ceil mode."""
    after = []
    for axis in range(2):
        count = int(node.meta["val"].shape[2 + axis])
        reach = (count - 1) * strides[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        after.append(max(padding[axis], reach - size[axis] - padding[axis]))
    return [*padding, *after]


def _reshape(node: fx.Node, importer: Importer) -> Var:
    """Any change of shape that keeps the batch."""
    x = importer.env[node.args[0]]
    shape = [int(d) for d in node.meta["val"].shape[1:]]
    reshaped = relax.op.reshape(x, [shape_of(x)[0], *shape])
    return importer.emit(reshaped, node.name)


def _slice(node: fx.Node, importer: Importer) -> Var:
    source, axis, begin, end, step = arguments(node, None, 0, None, None, 1)
    x = importer.env[source]
    axis %= len(shape_of(x))
    if axis == 0 and not begin and end in (None, sys.maxsize) and step == 1:
        return x  # all images: how export says ``x[:, ...]``
    start, stop, step = slice(begin, end, step).indices(shape_of(x)[axis])
    sliced = relax.op.strided_slice(x, [axis], [start], [stop], [step])
    return importer.emit(sliced, node.name)


def _pad(node: fx.Node, importer: Importer) -> Var:
    source, widths = node.args[:2]
    x = importer.env[source]
    pairs = [widths[i : i + 2] for i in range(0, len(widths), 2)][::-1]  # torch: last axis first
    full = [[0, 0]] * (len(shape_of(x)) - len(pairs)) + pairs
    padded = relax.op.nn.pad(x, [width for pair in full for width in pair], "constant", 0.0)
    return importer.emit(padded, node.name)


def _permute(node: fx.Node, importer: Importer) -> Var:
    x = importer.env[node.args[0]]
    axes = [axis % len(node.args[1]) for axis in node.args[1]]
    return importer.emit(relax.op.permute_dims(x, axes), node.name)


def _fake_quantize(node: fx.Node, importer: Importer) -> Var:
    source, step_node, zero_point, low, high, axis, dtype, mode, *borders = node.args
    x = importer.operand(source)
    step = np.asarray(importer.array(step_node), np.float64)
    if axis >= 0:
        step = step.reshape([-1 if i == axis else 1 for i in range(len(shape_of(x)))])
    else:
        step = step.reshape(())
    rows, first = borders or (None, 0)
    array = importer.array(rows)
    table = () if array is None else tuple(row.tobytes() for row in array)
    rounding = Rounding(RoundingMode[mode], table, first)
    quantize = Quantize(x, step, zero_point, low, high, dtype, rounding)
    codes = emit_quantize(importer.emit, quantize, f"{source.name}_codes")
    return emit_dequantize(importer.emit, Dequantize(codes, step, zero_point), node.name)


def _conv2d(node: fx.Node, importer: Importer) -> Var:
    x, weight, bias, stride, padding, dilation, groups = arguments(
        node, None, None, None, (1, 1), (0, 0), (1, 1), 1
    )
    pad_y, pad_x = pair(padding)
    result = relax.op.nn.conv2d(
        importer.operand(x),
        importer.operand(weight),
        strides=pair(stride),
        padding=[pad_y, pad_x, pad_y, pad_x],
        dilation=pair(dilation),
        groups=groups,
    )
    offset = importer.array(bias)
    return _with_bias(
        node, importer, result, None if offset is None else offset.reshape(1, -1, 1, 1)
    )


def _linear(node: fx.Node, importer: Importer) -> Var:
    x, weight, bias = arguments(node, None, None, None)
    transposed = importer.emit(relax.op.permute_dims(importer.operand(weight)))
    result = relax.op.matmul(importer.operand(x), transposed)
    return _with_bias(node, importer, result, importer.array(bias))


def _with_bias(node: fx.Node, importer: Importer, product: Expr, bias: Array | None) -> Var:
    if bias is None:
        return importer.emit(product, node.name)
    total = relax.op.add(importer.emit(product), constant(bias, "float64"))
    return importer.emit(total, node.name)


def _multiply(node: fx.Node, importer: Importer) -> Var:
    a, b = node.args
    right = importer.operand(b) if isinstance(b, fx.Node) else _scalar(b)
    return importer.emit(relax.op.multiply(importer.env[a], right), node.name)


def _head_product(pairing: Pairing) -> Converter:
    def convert(node: fx.Node, importer: Importer) -> Expr:
        x, y, heads, _, windows = node.args
        product = HeadProduct(importer.env[x], importer.env[y], heads, windows, pairing)
        return emit_head_product(importer.emit, product, node.name)

    return convert


def _softmax(node: fx.Node, importer: Importer) -> Expr:
    source, _, heads, factor = node.args
    softmax = emit_head_softmax(importer.emit, HeadSoftmax(importer.env[source], heads), node.name)
    if factor == 1.0:
        return softmax
    return importer.emit(relax.op.multiply(softmax, _scalar(factor)), node.name)


def _norm(node: fx.Node, importer: Importer) -> Var:
    source, _, gamma, beta, gain_step, eps, centred = node.args
    codes = constant(np.rint(importer.arrays[gamma] / gain_step), "int32")
    factors = Dequantize(codes, np.asarray(gain_step, np.float64), 0)
    summands = constant(importer.arrays[beta], "float64")
    gain = emit_dequantize(importer.emit, factors, f"{node.name}_gain")
    x = importer.env[source]
    if centred:
        normed = relax.op.nn.layer_norm(x, gain, summands, axes=[-1], epsilon=float(eps))
    else:
        normed = relax.op.nn.rms_norm(x, gain, axes=[-1], epsilon=float(eps))
    return importer.emit(normed, node.name)


def _constant(node: fx.Node, importer: Importer) -> Var:
    """A tensor of the model for each image."""
    like, value = node.args
    stored = constant(importer.arrays[value], "float64")
    shape = (shape_of(importer.env[like])[0], *shape_of(stored)[1:])
    return importer.emit(relax.op.broadcast_to(stored, shape), node.name)


def pointwise(node: fx.Node, importer: Importer) -> Var:
    """Any function of one tensor: an element of its table, by the code that the tensor holds."""
    read = _quantizers(node.args[0])
    _, step_node, zero_point, _, _, _, dtype, *_ = read[0].args  # the same of all that are joined
    low, high = min(q.args[3] for q in read), max(q.args[4] for q in read)
    step = float(np.asarray(importer.array(step_node)).reshape(()))
    table = table_of(node, step, zero_point, low, high, dtype)
    code = relax.op.round(relax.op.divide(importer.env[node.args[0]], _scalar(step)))
    first = _scalar(float(code_range(8, dtype == "int8")[0] - zero_point))
    index = relax.op.astype(relax.op.subtract(code, first), "int32")
    return importer.emit(relax.op.take(constant(table, "float64"), index, 0), node.name)


def _quantizers(node: fx.Node) -> list[fx.Node]:
    """What made the codes of a tensor, through moves and concatenations."""
    if str(node.target) == "tvmq.fake_quantize.default":
        return [node]
    return [quantizer for source in node.all_input_nodes for quantizer in _quantizers(source)]


CONVERTERS: dict[str, Converter] = {
    "fake_quantize.default": _fake_quantize,
    "conv2d.default": _conv2d,
    "linear.default": _linear,
    "relu.default": _elementwise(relax.op.nn.relu),
    "clamp.default": _elementwise(_clamp),
    "add.Tensor": _add,
    "cat.default": _cat,
    "max_pool2d.default": _max_pool2d,
    "reshape.default": _reshape,
    "slice.Tensor": _slice,
    "constant_pad_nd.default": _pad,
    "permute.default": _permute,
    "mul.Tensor": _multiply,
    "mul.Scalar": _multiply,
    "matmul_rows.default": _head_product(Pairing.ROWS),
    "matmul_columns.default": _head_product(Pairing.COLUMNS),
    "integer_softmax.default": _softmax,
    "integer_norm.default": _norm,
    "constant.default": _constant,
}
