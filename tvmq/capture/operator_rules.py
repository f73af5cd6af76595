"""How each ATen operator is written in the canonical ones; one small rule per operator.

A rule gets the graph to write to, the exported node and its arguments by schema name, and returns
the node that stands for the result. It raises Refusal with a reason where it can't.
Canonical: conv2d, linear, batch_norm (until folded), relu, clamp, add, cat, max_pool2d,
avg_pool2d, reshape, permute, slice, constant_pad_nd and the unary functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from targets.refusal import Refusal
from tvmq.capture.canonical_graph import BATCH_STAYS, CanonicalGraph, is_constant, shape_of
from tvmq.capture.interleaving import on_phases
from tvmq.capture.layout_rules import (
    REPEATED,
    as_row,
    as_row_image,
    joined,
    permuted,
    repeated,
    reshaped,
    row_image,
    sliced,
)
from tvmq.capture.rearranged import base_of, in_order_of_base, moved_again
from tvmq.capture.rule_table import Arguments, RuleTable, pair, positive_axis
from tvmq.capture.token_matrices import image_of_channels, of_base

aten = torch.ops.aten
rules = RuleTable()
rule = rules.rule
OPERATOR_RULES = rules.by_name


def computed(what: str) -> Refusal:
    """Why weights and the like can't be quantized that are no constants."""
    return Refusal(
        f"{what} depend on the input",
        "Make them parameters or buffers of the module",
    )


# ---- layers with weights


@rule("conv2d")
def _conv(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    if not is_constant(a["weight"]) or (a["bias"] is not None and not is_constant(a["bias"])):
        raise computed("its weights")
    x, weight = a["input"], a["weight"]
    if len(shape_of(x)) != 4 or len(shape_of(weight)) != 4:
        raise Refusal(
            "only two-dimensional convolutions of a batch can be quantized",
            "Give it (N, C, H, W); one dimension is an image of height 1",
            f"{len(shape_of(x))} axes",
        )
    stride, dilation, padding = pair(a["stride"]), pair(a["dilation"]), a["padding"]
    x = image_of_channels(g, x)
    if isinstance(padding, str):
        x, padding = _resolve_padding(g, x, padding, shape_of(weight)[2:], dilation)
    weight, padding, dilation = _on_the_image(g, x, weight, stride, pair(padding), dilation)
    return g.call(aten.conv2d.default, x, weight, a["bias"], stride, padding, dilation, a["groups"])


def _resolve_padding(
    g: CanonicalGraph, x: Node, padding: str, kernel: Sequence[int], dilation: list[int]
) -> tuple[Node, list[int]]:
    """``same`` as numbers; torch puts the odd one at the end, which needs a pad of its own."""
    if padding == "valid":
        return x, [0, 0]
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    before = [t // 2 for t in total]
    odd = [t % 2 for t in total]
    if any(odd):
        x = g.call(aten.constant_pad_nd.default, x, [0, odd[1], 0, odd[0]], 0.0)
    return x, before


def _on_the_image(
    g: CanonicalGraph,
    x: Node,
    weight: Node,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[Node, list[int], list[int]]:
    """Weight, padding and dilation without the outer taps that meet nothing but padding.

    Dilations are chosen for large images: on 14 x 14 pixels, all but the middle one of 3 x 3 taps
    that are 24 apart multiply zeros.
    """
    padding, dilation, windows = list(padding), list(dilation), []
    for axis, (size, kernel) in enumerate(zip(shape_of(x)[2:], shape_of(weight)[2:], strict=True)):
        step, apart = stride[axis], dilation[axis]
        room = size + 2 * padding[axis] - apart * (kernel - 1) - 1
        last = room // step * step  # where the last window begins
        begins = [tap * apart - padding[axis] for tap in range(kernel)]
        met = [
            tap
            for tap, begin in enumerate(begins)
            if any(0 <= begin + place < size for place in range(0, last + 1, step))
        ]
        cut = min(met[0], kernel - 1 - met[-1]) if met else 0
        cut = min(cut, padding[axis] // apart)
        windows.append(slice(cut, kernel - cut))
        padding[axis] -= cut * apart
        if kernel - 2 * cut == 1:
            dilation[axis] = 1
    if all(window.start == 0 for window in windows):
        return weight, padding, dilation
    rows, columns = windows
    name = f"{weight.name}_rows_{rows.start}_{rows.stop}_columns_{columns.start}_{columns.stop}"
    return g.constant(name, g.value(weight)[:, :, rows, columns]), padding, dilation


@rule("linear")
def _linear(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    if not is_constant(a["weight"]) or (a["bias"] is not None and not is_constant(a["bias"])):
        raise computed("its weights")
    return _dense(g, a["input"], a["weight"], a["bias"])


def _dense(g: CanonicalGraph, x: Node, weight: Node, bias: Node | None) -> Node:
    """A linear layer; whatever axes stand before the channels are tokens, or two an image."""
    shape = shape_of(x)
    if len(shape) <= 3:
        return g.call(aten.linear.default, x, weight, bias)
    if len(shape) == 4:
        kernel = g.constant(f"{weight.name}_kernel", g.value(weight)[:, :, None, None])
        image = permuted(g, x, [0, 3, 1, 2])
        made = g.call(aten.conv2d.default, image, kernel, bias, [1, 1], [0, 0], [1, 1], 1)
        return permuted(g, made, [0, 2, 3, 1])
    tokens = reshaped(g, x, [-1, math.prod(shape[1:-1]), shape[-1]])
    made = g.call(aten.linear.default, tokens, weight, bias)
    return reshaped(g, made, [-1, *shape[1:-1], shape_of(weight)[0]])


@rule("mm", "matmul", "addmm")
def _matrix_product(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, matrix = a.get("mat1", a.get("self")), a.get("mat2", a.get("other"))
    bias = a["self"] if "mat1" in a else None
    if is_constant(x) or not is_constant(matrix) or len(shape_of(matrix)) != 2:
        raise Refusal(
            "multiplies by a matrix from the left, or by more than one matrix",
            "Write it as nn.Linear of the transposed tensor",
        )
    if bias is not None and (not is_constant(bias) or a["alpha"] != 1 or a["beta"] != 1):
        raise Refusal(
            "its bias is computed, or alpha or beta isn't 1",
            "Write it as nn.Linear",
        )
    weight = g.constant(f"{node.name}_weight", g.value(matrix).t())
    return _dense(g, x, weight, bias)


@rule("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def _batch_norm(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    mean, variance = a["running_mean"], a["running_var"]
    if a.get("training") or mean is None or variance is None:
        raise Refusal(
            "uses the statistics of the batch",
            "Export model.eval(), with track_running_stats=True",
        )
    if len(shape_of(a["input"])) not in (2, 3, 4):
        raise Refusal(
            "only batch norms of (N, C), (N, C, L) and (N, C, H, W) can be folded",
            "Reshape to one of these around it",
            f"{len(shape_of(a['input']))} axes",
        )
    channels = shape_of(mean)[0]
    given = [mean, variance, *filter(None, (a["weight"], a["bias"]))]
    if any(shape_of(each) != shape_of(a["input"])[1:2] for each in given):
        raise Refusal(
            "has statistics of another number of channels than its input has",
            "Mend the module and export it again",
        )
    gamma = a["weight"] or g.constant(f"{node.name}_gamma", torch.ones(channels))
    beta = a["bias"] or g.constant(f"{node.name}_beta", torch.zeros(channels))
    vectors = (gamma, beta, mean, variance)
    x = a["input"]
    if len(shape_of(x)) == 3 and x.target is not aten.permute.default:
        result = as_row(g, _normed(g, as_row_image(g, x), vectors, a["eps"]))
    else:
        result = _normed(g, x, vectors, a["eps"])
    return [result, None, None] if isinstance(node.meta["val"], tuple | list) else result


def _normed(g: CanonicalGraph, x: Node, vectors: Sequence[Node], eps: float) -> Node:
    """A batch norm: of an image, or of vectors or tokens that have their channels on axis 1."""

    def of_phases(image: Node, count: int) -> Node:
        repeated = [
            g.constant(f"{vector.name}_{count}_times", g.value(vector).repeat(count))
            for vector in vectors
        ]
        return _normed(g, image, vectors if count == 1 else repeated, eps)

    return on_phases(g, x, of_phases) or g.call(
        aten.batch_norm.default, x, *vectors, False, 0.0, eps, False
    )


# ---- activations


@rule("relu")
def _relu(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    return _bounded(g, a["self"], 0.0, None)


@rule("relu6")
def _relu6(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    return _bounded(g, a["self"], 0.0, 6.0)


@rule("hardtanh")
def _hardtanh(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    return _bounded(g, a["self"], a["min_val"], a["max_val"])


@rule("clamp", "clamp_min", "clamp_max", "clip")
def _clamp(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    return _bounded(g, a["self"], a.get("min"), a.get("max"))


def _bounded(g: CanonicalGraph, x: Node, low: Any, high: Any) -> Node:
    if isinstance(low, Node) or isinstance(high, Node):
        raise Refusal("its bounds are tensors", "Give the bounds as Python numbers")
    if low == 0 and (high is None or high == math.inf):
        return _of_elements(g, x, aten.relu.default)
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return _of_elements(g, x, aten.clamp.default, low, high)


def _of_elements(g: CanonicalGraph, x: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A function of every element, applied in front of whatever only moves them."""

    def applied(base: Node) -> Node:
        of_phases = on_phases(
            g, base, lambda image, _: _of_elements(g, image, target, *args, **kwargs)
        )
        return of_phases or g.call(target, base, *args, **kwargs)

    return of_base(g, x, applied)


def pointwise(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    """Any other function of one tensor, element by element, as it is."""
    if not node.meta["val"].is_floating_point():
        raise Refusal(
            "only floats can be quantized",
            "Use functions that give floats, such as relu or sigmoid in place of a comparison; or "
            "do it outside of the network",
            f"gives {str(node.meta['val'].dtype)[6:]}",
        )
    first, *others = (argument.name for argument in node.target._schema.arguments)
    rest = {name: a[name] for name in others if name != "dtype"}
    return _of_elements(g, a[first], node.target, **rest)


@rule("prelu", "_prelu_kernel")
def _prelu(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    """``relu(x) - slope * relu(-x)``; one slope for all is a leaky ReLU."""
    x, slopes = a["self"], a["weight"]
    if not is_constant(slopes):
        raise computed("its slopes")
    values = g.value(slopes).reshape(-1)
    if bool((values == values[0]).all()):
        return _of_elements(g, x, aten.leaky_relu.default, float(values[0]))
    if len(shape_of(x)) == 3:
        return as_row(g, _sloped(g, node, as_row_image(g, x), values))
    return _sloped(g, node, x, values)


def _sloped(g: CanonicalGraph, node: Node, x: Node, values: torch.Tensor) -> Node:
    """With a slope of each channel below zero."""
    below = g.call(aten.relu.default, per_channel(g, node, x, scale=-1.0))
    column = values.reshape(1, -1, *[1] * (len(shape_of(x)) - 2))
    return g.call(
        aten.add.Tensor,
        g.call(aten.relu.default, x),
        per_channel(g, node, below, scale=-column, name="slopes"),
    )


# ---- several inputs


@rule("add")
def _add(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, y = a["self"], a["other"]
    if _is_activation(x) and _is_activation(y):
        return _sum(g, node, x, y, a["alpha"])
    if _is_activation(y):  # alpha * activation + constant
        return _affine(g, node, y, scale=a["alpha"], shift=x)
    return _affine(g, node, x, shift=y, shift_factor=a["alpha"])


def _sum(g: CanonicalGraph, node: Node, x: Node, y: Node, alpha: float) -> Node:
    """``x + alpha * y``; the factor is folded into the layer that makes y, if it can be."""
    x, y = _of_one_shape(g, x, y)
    if alpha != 1:
        y = _affine(g, node, y, scale=alpha)
    return _of_both(g, aten.add.Tensor, x, y)


def _of_one_shape(g: CanonicalGraph, x: Node, y: Node) -> tuple[Node, Node]:
    """Both, the smaller repeated along its axes of size 1."""
    sizes = shape_of(x)[1:], shape_of(y)[1:]
    if sizes[0] == sizes[1]:
        return x, y
    pairs = list(zip(*sizes, strict=False))
    if len(sizes[0]) != len(sizes[1]) or any(a != b and 1 not in (a, b) for a, b in pairs):
        raise Refusal(
            "only tensors of one shape can be added, these shapes differ",
            "Give both the same number of axes, of equal size or 1, by slices or unsqueeze",
            f"{list(shape_of(x))} and {list(shape_of(y))}",
        )
    largest = [max(pair) for pair in pairs]
    return repeated(g, x, largest), repeated(g, y, largest)


def _of_both(g: CanonicalGraph, target: Any, x: Node, y: Node) -> Node:
    """An elementwise operator of two tensors; where both were moved alike, of what was moved."""
    if len(shape_of(x)) == 3 and (row_image(x) or row_image(y)):
        return as_row(g, _of_both(g, target, as_row_image(g, x), as_row_image(g, y)))
    (a, moves), (b, others) = base_of(x), base_of(y)
    alike = [(m.target, m.args[1]) for m in moves] == [(m.target, m.args[1]) for m in others]
    if alike and shape_of(a) == shape_of(b):
        return moved_again(g, g.call(target, a, b), moves)
    return g.call(target, x, y)


@rule("neg")
def _neg(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    return _affine(g, node, a["self"], scale=-1.0)


@rule("sub")
def _sub(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, y = a["self"], a["other"]
    if _is_activation(x) and _is_activation(y):
        return _sum(g, node, x, y, -a["alpha"])
    if _is_activation(y):
        return _affine(g, node, y, scale=-a["alpha"], shift=x)
    return _affine(g, node, x, shift=y, shift_factor=-a["alpha"])


@rule("rsub")
def _rsub(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    return _sub(g, node, {"self": a["other"], "other": a["self"], "alpha": a["alpha"]})


@rule("mul")
def _mul(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, y = a["self"], a["other"]
    if _is_activation(x) and _is_activation(y):
        return _elements(g, x, y)
    x, factor = (x, y) if _is_activation(x) else (y, x)
    return _affine(g, node, x, scale=factor)


def _elements(g: CanonicalGraph, x: Node, y: Node) -> Node:
    """``x * y``, of which one may be repeated along axes where it has size 1."""
    ranks = len(shape_of(x)), len(shape_of(y))
    shapes = f"shapes {list(shape_of(x))} and {list(shape_of(y))}"
    if ranks[0] != ranks[1]:
        raise Refusal(
            "two tensors of different numbers of axes are multiplied",
            "Give both the same number of axes, by unsqueeze or [..., None]",
            shapes,
        )
    # What repeats the other need not be repeated itself.
    if REPEATED in y.meta and shape_of(x) == shape_of(y):
        y = y.meta[REPEATED]
    elif REPEATED in x.meta and shape_of(x) == shape_of(y):
        x = x.meta[REPEATED]
    result = _of_both(g, aten.mul.Tensor, x, y)
    if shape_of(result) not in (shape_of(x), shape_of(y)):
        raise Refusal(
            "a product repeats both of its operands",
            "Multiply such that one of the two has the shape of the result",
            shapes,
        )
    return result


@rule("glu")
def _glu(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    """The first half of an axis times the sigmoid of the second."""
    x = a["self"]
    axis = positive_axis(a["dim"], len(shape_of(x)))
    half = shape_of(x)[axis] // 2
    gate = _of_elements(g, sliced(g, x, axis, half), aten.sigmoid.default)
    return _elements(g, sliced(g, x, axis, 0, half), gate)


@rule("addcmul")
def _addcmul(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    one, two, factor = a["tensor1"], a["tensor2"], a["value"]
    if _is_activation(one) and _is_activation(two):
        return _add(g, node, {"self": a["self"], "other": _elements(g, one, two), "alpha": factor})
    if is_constant(one) and is_constant(two):
        product = g.constant(f"{node.name}_product", g.value(one) * g.value(two) * factor)
    else:
        one, two = (two, one) if is_constant(one) else (one, two)
        product = _affine(g, node, one, scale=_constant(g, two) * factor)
    return _add(g, node, {"self": a["self"], "other": product, "alpha": 1})


@rule("div")
def _div(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, y = a["self"], a["other"]
    if not _is_activation(x) or _is_activation(y) or a.get("rounding_mode"):
        raise Refusal(
            "only a division by a constant can be quantized",
            "Divide by a number or a buffer, without rounding_mode",
        )
    divisor = g.value(y) if is_constant(y) else torch.tensor(float(y))
    return _affine(g, node, x, scale=divisor.double().reciprocal())


def _is_activation(value: Any) -> bool:
    return isinstance(value, Node) and not is_constant(value)


def _affine(
    g: CanonicalGraph,
    node: Node,
    x: Node,
    *,
    scale: Any = 1.0,
    shift: Any = 0.0,
    shift_factor: float = 1.0,
) -> Node:
    """``x * scale + shift`` with constants: numbers, one per channel, or one per element."""
    scale, shift = (_constant(g, value) for value in (scale, shift))
    shift = shift * shift_factor
    scale, shift = _as_number(scale), _as_number(shift)
    if scale.numel() == 1 and shift.numel() == 1:
        one, two = (value.reshape(()) for value in (scale, shift))
        return of_base(g, x, lambda base: per_channel(g, node, base, scale=one, shift=two))
    if len(shape_of(x)) == 3 and all(_is_per_channel(v, shape_of(x), 1) for v in (scale, shift)):
        image = as_row_image(g, x)
        return as_row(g, per_channel(g, node, image, scale=scale, shift=shift))
    axis = channel_axis(x)
    if not all(_is_per_channel(value, shape_of(x), axis) for value in (scale, shift)):
        return per_element(g, node.name, x, scale, shift)
    return per_channel(g, node, x, scale=scale, shift=shift)


def _as_number(value: torch.Tensor) -> torch.Tensor:
    """One element where all are equal."""
    first = value.reshape(-1)[:1]
    return first if bool((value == first).all()) else value


def channel_axis(x: Node) -> int:
    """Where a value has its channels: images on axis 1, tokens behind."""
    return 1 if len(shape_of(x)) in (2, 4) else len(shape_of(x)) - 1


def per_element(
    g: CanonicalGraph, name: str, x: Node, scale: torch.Tensor, shift: torch.Tensor
) -> Node:
    """``x * scale + shift`` with tensors of the model that are held in codes like any other.

    They are constants under names that begin with ``name``.
    """
    shape = (1, *shape_of(x)[1:])
    base, moves = base_of(x)
    for kind, target, value, neutral in (
        ("scale", aten.mul.Tensor, scale, 1.0),
        ("shift", aten.add.Tensor, shift, 0.0),
    ):
        if bool((value == neutral).all()):
            continue
        if value.ndim > len(shape) or (value.ndim == len(shape) and value.shape[0] > 1):
            raise Refusal(
                "a constant factor or summand is repeated less often than the tensor beside it",
                "Give it at most the axes of the tensor, and size 1 on axis 0",
                f"a constant of shape {list(value.shape)} beside {list(shape_of(x))}",
            )
        held = in_order_of_base(x, value.expand(shape)).float()
        constant = g.for_each_image(g.constant(f"{name}_{kind}", held))
        base = g.call(target, base, constant)
    return moved_again(g, base, moves)


def per_channel(
    g: CanonicalGraph,
    node: Node,
    x: Node,
    *,
    scale: Any = 1.0,
    shift: Any = 0.0,
    name: str = "",
) -> Node:
    """``x * scale + shift`` with constants per channel, written as a batch norm to be folded."""
    axis = channel_axis(x)
    gamma, beta = (_channel_vector(g, x, value) for value in (scale, shift))
    if bool((gamma == 1).all()) and bool((beta == 0).all()):
        return x

    def of_phases(image: Node, count: int) -> Node:
        scales, shifts = gamma.repeat(count), beta.repeat(count)
        return per_channel(
            g, node, image, scale=scales, shift=shifts, name=f"{name}_{count}".lstrip("_")
        )

    if (found := on_phases(g, x, of_phases)) is not None:
        return found
    channels, prefix = shape_of(x)[axis], f"{node.name}_{name}".rstrip("_")
    result = g.call(
        aten.batch_norm.default,
        _channels_first(g, x),
        g.constant(f"{prefix}_scale", gamma),
        g.constant(f"{prefix}_shift", beta),
        g.constant(f"{prefix}_zeros", torch.zeros(channels)),
        g.constant(f"{prefix}_ones", torch.ones(channels)),
        False, 0.0, 0.0, False,
    )  # fmt: skip
    result.meta["affine"] = True
    return result if axis == 1 else _channels_last(g, result, shape_of(x))


def _channels_first(g: CanonicalGraph, x: Node) -> Node:
    """A value with its channels on axis 1, all that is between them and the batch behind them."""
    shape = shape_of(x)
    if channel_axis(x) == 1:
        return x
    tokens = reshaped(g, x, [-1, math.prod(shape[1:-1]), shape[-1]])
    return permuted(g, tokens, [0, 2, 1])


def _channels_last(g: CanonicalGraph, x: Node, shape: Sequence[int]) -> Node:
    return reshaped(g, permuted(g, x, [0, 2, 1]), shape)


def _constant(g: CanonicalGraph, value: Any) -> torch.Tensor:
    held = g.value(value) if isinstance(value, Node) else value
    return torch.as_tensor(held, dtype=torch.float64)


def _is_per_channel(value: torch.Tensor, shape: Sequence[int], axis: int) -> bool:
    """Whether a constant varies over the channels only."""
    sizes = [1] * (len(shape) - value.ndim) + list(value.shape)
    return len(sizes) == len(shape) and all(s == 1 for i, s in enumerate(sizes) if i != axis)


def _channel_vector(g: CanonicalGraph, x: Node, value: Any) -> torch.Tensor:
    """A number or a constant that varies over the channels only, as float64[C]."""
    channels = shape_of(x)[channel_axis(x)]
    return _constant(g, value).reshape(-1).expand(channels).clone()


@rule("cat", "concat", "concatenate")
def _cat(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    parts = list(a["tensors"])
    axis = positive_axis(a["dim"], len(shape_of(parts[0])))
    if axis == 0:
        raise Refusal("concatenates along the batch", BATCH_STAYS)
    parts = [part if _is_activation(part) else g.for_each_image(part) for part in parts]
    return joined(g, parts, axis)


@rule("stack")
def _stack(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    parts = list(a["tensors"])
    parts = [part if _is_activation(part) else g.for_each_image(part) for part in parts]
    shape = shape_of(parts[0])
    axis = positive_axis(a["dim"], len(shape) + 1)
    if axis == 0:
        raise Refusal("stacks before the batch", BATCH_STAYS)
    joined = parts[0] if len(parts) == 1 else g.call(aten.cat.default, parts, 1)
    stacked = g.call(aten.reshape.default, joined, [-1, len(parts), *shape[1:]])
    order = [0, *range(2, axis + 1), 1, *range(axis + 1, len(shape) + 1)]
    if order == sorted(order):
        return stacked
    return permuted(g, stacked, order)
