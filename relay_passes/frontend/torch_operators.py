"""One converter per ATen operator of the canonical graph, from its torch node to Relax.

Each binds its result under the node's name. Operators that read parameters (convolution, linear,
quantization) are in ``import_torch.py``, which knows the stored tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from torch import fx
from tvm import relax

from relay_passes.relax_nodes import Expr, Var, constant, dtype_of, shape_of
from targets.errors import UnsupportedError

Importer: TypeAlias = Any  # tvm's BaseFXGraphImporter: ``env`` and ``block_builder``
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
        return importer.block_builder.emit(
            build(importer.env[node.args[0]], *node.args[1:], **node.kwargs), name_hint=node.name
        )

    return convert


def _scalar(value: float) -> Expr:
    return constant(value, "float64")


def _clamp(x: Expr, low: float | None = None, high: float | None = None) -> Expr:
    return relax.op.clip(
        x, -np.inf if low is None else float(low), np.inf if high is None else float(high)
    )


def _hardsigmoid(x: Expr) -> Expr:
    shifted = relax.op.clip(relax.op.add(x, _scalar(3.0)), 0.0, 6.0)
    return relax.op.divide(shifted, _scalar(6.0))


def _gelu(x: Expr, approximate: str = "none") -> Expr:
    return relax.op.nn.gelu(x) if approximate == "none" else relax.op.nn.gelu_tanh(x)


def _elu(x: Expr, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Expr:
    if scale != 1 or input_scale != 1:
        raise UnsupportedError("Import: elu with a scale is not supported. Use plain elu.")
    grown = relax.op.multiply(
        _scalar(float(alpha)), relax.op.subtract(relax.op.exp(x), _scalar(1.0))
    )
    return relax.op.where(relax.op.greater(x, _scalar(0.0)), x, grown)


def _add(node: fx.Node, importer: Importer) -> Var:
    if node.kwargs.get("alpha", 1) != 1:
        raise UnsupportedError(f"Import: add with alpha at '{node.name}' is not supported.")
    a, b = (importer.env[arg] for arg in node.args)
    return importer.block_builder.emit(relax.op.add(a, b), name_hint=node.name)


def _cat(node: fx.Node, importer: Importer) -> Var:
    tensors = [importer.env[arg] for arg in node.args[0]]
    (axis,) = arguments(node, None, 0)[1:]
    axis %= len(shape_of(tensors[0]))
    return importer.block_builder.emit(relax.op.concat(tensors, axis), name_hint=node.name)


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
    return importer.block_builder.emit(pooled, name_hint=node.name)


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


def _avg_pool2d(node: fx.Node, importer: Importer) -> Var:
    source, kernel, strides, padding, ceil_mode, count_padding, divisor = arguments(
        node, None, None, (), (0, 0), False, True, None
    )
    if ceil_mode or divisor is not None or (not count_padding and any(pair(padding))):
        raise UnsupportedError(
            f"Import: average pooling '{node.name}' with ceil_mode, divisor_override or "
            "count_include_pad=False. Pad explicitly and pool without them."
        )
    kernel = pair(kernel)
    strides = pair(strides) if strides else kernel
    return _average(node, importer, importer.env[source], kernel, strides, pair(padding))


def _average(
    node: fx.Node,
    importer: Importer,
    x: Expr,
    kernel: list[int],
    strides: list[int],
    padding: list[int],
) -> Var:
    pooled = relax.op.nn.avg_pool2d(x, kernel, strides, padding * 2, count_include_pad=True)
    return importer.block_builder.emit(pooled, name_hint=node.name)


def _adaptive_avg_pool2d(node: fx.Node, importer: Importer) -> Var:
    x = importer.env[node.args[0]]
    size, wanted = shape_of(x)[2:], pair(node.args[1])
    if any(have % want for have, want in zip(size, wanted, strict=True)):
        raise UnsupportedError(
            f"Import: adaptive pooling '{node.name}' from {size} to {tuple(wanted)}: the windows "
            "differ in size. Use an output size that divides the input's."
        )
    kernel = [have // want for have, want in zip(size, wanted, strict=True)]
    return _average(node, importer, x, kernel, kernel, [0, 0])


def _mean(node: fx.Node, importer: Importer) -> Var:
    x = importer.env[node.args[0]]
    _, axes, keep = arguments(node, None, None, False)
    rank = len(shape_of(x))
    if rank != 4 or sorted(axis % rank for axis in axes) != [2, 3]:
        raise UnsupportedError(
            f"Import: mean '{node.name}' over {axes}: only the mean over height and width of an "
            "image can be quantized."
        )
    window = list(shape_of(x)[2:])
    pooled = _average(node, importer, x, window, window, [0, 0])
    return pooled if keep else _reshape(node, importer, pooled)


def _reshape(node: fx.Node, importer: Importer, source: Expr | None = None) -> Var:
    """Any change of shape that keeps the batch: view, flatten, squeeze, unsqueeze."""
    x = importer.env[node.args[0]] if source is None else source
    shape = [int(d) for d in node.meta["val"].shape[1:]]
    reshaped = relax.op.reshape(x, [shape_of(x)[0], *shape])
    return importer.block_builder.emit(reshaped, name_hint=node.name)


def _slice(node: fx.Node, importer: Importer) -> Var:
    source, axis, begin, end, step = arguments(node, None, 0, None, None, 1)
    x = importer.env[source]
    axis %= len(shape_of(x))
    if axis == 0:
        raise UnsupportedError(f"Import: slice '{node.name}' along the batch is not supported.")
    start, stop, step = slice(begin, end, step).indices(shape_of(x)[axis])
    sliced = relax.op.strided_slice(x, [axis], [start], [stop], [step])
    return importer.block_builder.emit(sliced, name_hint=node.name)


def _pad(node: fx.Node, importer: Importer) -> Var:
    source, widths, *rest = node.args
    x = importer.env[source]
    if any(rest) and rest not in (["constant"], ["constant", 0]):
        raise UnsupportedError(f"Import: '{node.name}' pads with something else than zeros.")
    if min(widths) < 0:
        raise UnsupportedError(f"Import: '{node.name}' pads by a negative width. Slice instead.")
    pairs = [widths[i : i + 2] for i in range(0, len(widths), 2)][::-1]  # torch: last axis first
    full = [[0, 0]] * (len(shape_of(x)) - len(pairs)) + pairs
    padded = relax.op.nn.pad(x, [width for pair in full for width in pair], "constant", 0.0)
    return importer.block_builder.emit(padded, name_hint=node.name)


def _permute(node: fx.Node, importer: Importer) -> Var:
    x = importer.env[node.args[0]]
    axes = [axis % len(node.args[1]) for axis in node.args[1]]
    return importer.block_builder.emit(relax.op.permute_dims(x, axes), name_hint=node.name)


def _cast(node: fx.Node, importer: Importer) -> Var:
    x = importer.env[node.args[0]]
    dtype = str(node.meta["val"].dtype).removeprefix("torch.")
    return x if dtype == dtype_of(x) else importer.block_builder.emit(relax.op.astype(x, dtype))


def _nothing(_node: fx.Node, _importer: Importer) -> None:
    """Sizes and assertions about them: shapes are read from the node's own metadata."""


CONVERTERS: dict[str, Converter] = {
    "relu.default": _elementwise(relax.op.nn.relu),
    "relu6.default": _elementwise(lambda x: _clamp(x, 0.0, 6.0)),
    "clamp.default": _elementwise(_clamp),
    "hardtanh.default": _elementwise(lambda x, low=-1.0, high=1.0: _clamp(x, low, high)),
    "sigmoid.default": _elementwise(relax.op.sigmoid),
    "silu.default": _elementwise(relax.op.nn.silu),
    "tanh.default": _elementwise(relax.op.tanh),
    "hardsigmoid.default": _elementwise(_hardsigmoid),
    "hardswish.default": _elementwise(lambda x: relax.op.multiply(x, _hardsigmoid(x))),
    "gelu.default": _elementwise(_gelu),
    "leaky_relu.default": _elementwise(lambda x, slope=0.01: relax.op.nn.leakyrelu(x, slope)),
    "elu.default": _elementwise(_elu),
    "add.Tensor": _add,
    "cat.default": _cat,
    "max_pool2d.default": _max_pool2d,
    "avg_pool2d.default": _avg_pool2d,
    "adaptive_avg_pool2d.default": _adaptive_avg_pool2d,
    "mean.dim": _mean,
    **dict.fromkeys(
        (
            "reshape.default",
            "view.default",
            "flatten.using_ints",
            "squeeze.default",
            "squeeze.dim",
            "squeeze.dims",
            "unsqueeze.default",
        ),
        _reshape,
    ),
    "slice.Tensor": _slice,
    "constant_pad_nd.default": _pad,
    "pad.default": _pad,
    "permute.default": _permute,
    "to.dtype": _cast,
    "_to_copy.default": _cast,
    **dict.fromkeys(
        ("sym_size.int", "_assert_scalar.default", "_assert_tensor_metadata.default"), _nothing
    ),
}
