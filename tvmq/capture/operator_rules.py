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
from tvmq.capture.layout_rules import before_permuting, permuted
from tvmq.capture.operators_without_rule import refusal_of
from tvmq.capture.rule_table import Arguments, RuleTable, pair, positive_axis

aten = torch.ops.aten
rules = RuleTable()
rule = rules.rule
OPERATOR_RULES = rules.by_name


def _computed(what: str) -> Refusal:
    return Refusal(
        f"{what} depend on the input",
        "Make them parameters or buffers of the module",
    )


def _product_of_two() -> Refusal:
    return Refusal(
        "product of two activations",
        "Let one of the two be constant; a gate such as squeeze-and-excitation must be left out, "
        "and x * sigmoid(x) is F.silu(x)",
    )


def _joins_a_constant() -> Refusal:
    return Refusal(
        "joins a constant with activations",
        "Join activations only, and add what is constant to the layer that reads the result",
    )


# ---- layers with weights


@rule("conv2d", "convolution")
def _conv(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    if a.get("transposed"):
        raise refusal_of("conv_transpose2d")
    if not is_constant(a["weight"]) or (a["bias"] is not None and not is_constant(a["bias"])):
        raise _computed("its weights")
    x, weight = a["input"], a["weight"]
    if len(shape_of(x)) != 4 or len(shape_of(weight)) != 4:
        raise Refusal(
            "only two-dimensional convolutions of a batch can be quantized",
            "Give it (N, C, H, W); one dimension is an image of height 1",
            f"{len(shape_of(x))} axes",
        )
    stride, dilation, padding = pair(a["stride"]), pair(a["dilation"]), a["padding"]
    if isinstance(padding, str):
        x, padding = _resolve_padding(g, x, padding, shape_of(weight)[2:], dilation)
    return g.call(
        aten.conv2d.default, x, weight, a["bias"], stride, pair(padding), dilation, a["groups"]
    )


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


@rule("linear")
def _linear(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    if not is_constant(a["weight"]) or (a["bias"] is not None and not is_constant(a["bias"])):
        raise _computed("its weights")
    x, rank = a["input"], len(shape_of(a["input"]))
    if rank != 4:
        return g.call(aten.linear.default, x, a["weight"], a["bias"])
    # Over the last of four axes: a 1x1 convolution of the image whose channels that axis is.
    kernel = g.constant(f"{node.name}_weight", g.value(a["weight"])[:, :, None, None])
    image = permuted(g, x, [0, 3, 1, 2])
    product = g.call(aten.conv2d.default, image, kernel, a["bias"], [1, 1], [0, 0], [1, 1], 1)
    return permuted(g, product, [0, 2, 3, 1])


@rule("mm", "matmul", "addmm")
def _matrix_product(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, matrix = a.get("mat1", a.get("self")), a.get("mat2", a.get("other"))
    bias = a["self"] if "mat1" in a else None
    if is_constant(x) or not is_constant(matrix) or len(shape_of(matrix)) != 2:
        raise _product_of_two()
    if bias is not None and (not is_constant(bias) or a["alpha"] != 1 or a["beta"] != 1):
        raise Refusal(
            "its bias is computed, or alpha or beta isn't 1",
            "Write it as nn.Linear",
        )
    weight = g.constant(f"{node.name}_weight", g.value(matrix).t())
    return g.call(aten.linear.default, x, weight, bias)


@rule("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def _batch_norm(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    mean, variance = a["running_mean"], a["running_var"]
    if a.get("training") or mean is None or variance is None:
        raise Refusal(
            "uses the statistics of the batch",
            "Export model.eval(), with track_running_stats=True",
        )
    if len(shape_of(a["input"])) not in (2, 4):
        raise Refusal(
            "only batch norms of (N, C) and (N, C, H, W) can be folded",
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
    result = g.call(
        aten.batch_norm.default,
        a["input"], gamma, beta, mean, variance, False, 0.0, a["eps"], False,
    )  # fmt: skip
    return [result, None, None] if isinstance(node.meta["val"], tuple | list) else result


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
        return before_permuting(g, x, lambda x: g.call(aten.relu.default, x))
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return before_permuting(g, x, lambda x: g.call(aten.clamp.default, x, low, high))


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
    given = {name: a[name] for name in others if name != "dtype"}
    return before_permuting(g, a[first], lambda x: g.call(node.target, x, **given))


@rule("prelu", "_prelu_kernel")
def _prelu(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    """``relu(x) - slope * relu(-x)``; one slope for all is a leaky ReLU."""
    x, slopes = a["self"], a["weight"]
    if not is_constant(slopes):
        raise _computed("its slopes")
    values = g.value(slopes).reshape(-1)
    if bool((values == values[0]).all()):
        return g.call(aten.leaky_relu.default, x, float(values[0]))
    below = g.call(aten.relu.default, _per_channel(g, node, x, scale=-1.0))
    column = values.reshape(1, -1, *[1] * (len(shape_of(x)) - 2))
    return g.call(
        aten.add.Tensor,
        g.call(aten.relu.default, x),
        _per_channel(g, node, below, scale=-column, name="slopes"),
    )


# ---- several inputs


@rule("add")
def _add(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, y = a["self"], a["other"]
    if _is_activation(x) and _is_activation(y):
        return _sum(g, node, x, y, a["alpha"])
    if _is_activation(y):  # alpha * activation + constant
        return _per_channel(g, node, y, scale=a["alpha"], shift=x)
    return _per_channel(g, node, x, shift=y, shift_factor=a["alpha"])


def _sum(g: CanonicalGraph, node: Node, x: Node, y: Node, alpha: float) -> Node:
    """``x + alpha * y``; the factor is folded into the layer that makes y, if it can be."""
    if shape_of(x) != shape_of(y):
        raise Refusal(
            "only tensors of one shape can be added, these shapes differ",
            "Bring both to one shape before, by convolutions, slices or torch.cat",
            f"{list(shape_of(x))} and {list(shape_of(y))}",
        )
    if alpha != 1:
        y = _per_channel(g, node, y, scale=alpha)
    return g.call(aten.add.Tensor, x, y)


@rule("neg")
def _neg(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    return _per_channel(g, node, a["self"], scale=-1.0)


@rule("sub")
def _sub(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, y = a["self"], a["other"]
    if _is_activation(x) and _is_activation(y):
        return _sum(g, node, x, y, -a["alpha"])
    if _is_activation(y):
        return _per_channel(g, node, y, scale=-a["alpha"], shift=x)
    return _per_channel(g, node, x, shift=y, shift_factor=-a["alpha"])


@rule("rsub")
def _rsub(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    return _sub(g, node, {"self": a["other"], "other": a["self"], "alpha": a["alpha"]})


@rule("mul")
def _mul(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, y = a["self"], a["other"]
    if _is_activation(x) and _is_activation(y):
        raise _product_of_two()
    x, factor = (x, y) if _is_activation(x) else (y, x)
    return _per_channel(g, node, x, scale=factor)


@rule("div")
def _div(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, y = a["self"], a["other"]
    if not _is_activation(x) or _is_activation(y) or a.get("rounding_mode"):
        raise Refusal(
            "only a division by a constant can be quantized",
            "Divide by a number or a buffer, without rounding_mode",
        )
    divisor = g.value(y) if is_constant(y) else torch.tensor(float(y))
    return _per_channel(g, node, x, scale=divisor.double().reciprocal())


def _is_activation(value: Any) -> bool:
    return isinstance(value, Node) and not is_constant(value)


def _per_channel(
    g: CanonicalGraph,
    node: Node,
    x: Node,
    *,
    scale: Any = 1.0,
    shift: Any = 0.0,
    shift_factor: float = 1.0,
    name: str = "",
) -> Node:
    """``x * scale + shift`` with constants per channel, written as a batch norm to be folded."""
    if len(shape_of(x)) not in (2, 4):
        raise Refusal(
            "constants are multiplied by or added to tensors of 2 or 4 axes only",
            "Do it on (N, C) or (N, C, H, W), before the reshape",
            f"{len(shape_of(x))} axes",
        )
    gamma = _channel_vector(g, x, scale)
    beta = _channel_vector(g, x, shift) * shift_factor
    if bool((gamma == 1).all()) and bool((beta == 0).all()):
        return x
    channels, prefix = shape_of(x)[1], f"{node.name}_{name}".rstrip("_")
    result = g.call(
        aten.batch_norm.default,
        x,
        g.constant(f"{prefix}_scale", gamma),
        g.constant(f"{prefix}_shift", beta),
        g.constant(f"{prefix}_zeros", torch.zeros(channels)),
        g.constant(f"{prefix}_ones", torch.ones(channels)),
        False, 0.0, 0.0, False,
    )  # fmt: skip
    result.meta["affine"] = True
    return result


def _channel_vector(g: CanonicalGraph, x: Node, value: Any) -> torch.Tensor:
    """A number or a constant tensor that varies over axis 1 only, as float64[C]."""
    if isinstance(value, Node):
        value = g.value(value)
    tensor = torch.as_tensor(value, dtype=torch.float64)
    shape = shape_of(x)
    sizes = [1] * (len(shape) - tensor.ndim) + list(tensor.shape)
    channels = shape[1]
    if tensor.ndim > len(shape) or any(n != 1 for axis, n in enumerate(sizes) if axis != 1):
        raise Refusal(
            "a constant factor or summand has one value per channel, or one for all",
            f"Give it the shape {[channels, *[1] * (len(shape) - 2)]}, or write it as a depthwise "
            "convolution",
            f"a constant of shape {list(tensor.shape)}",
        )
    return tensor.reshape(-1).expand(channels).clone()


@rule("cat", "concat", "concatenate")
def _cat(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    parts = list(a["tensors"])
    axis = positive_axis(a["dim"], len(shape_of(parts[0])))
    if axis == 0:
        raise Refusal("concatenates along the batch", BATCH_STAYS)
    if not all(_is_activation(part) for part in parts):
        raise _joins_a_constant()
    return parts[0] if len(parts) == 1 else g.call(aten.cat.default, parts, axis)


@rule("stack")
def _stack(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    parts = list(a["tensors"])
    if not all(_is_activation(part) for part in parts):
        raise _joins_a_constant()
    shape = shape_of(parts[0])
    axis = positive_axis(a["dim"], len(shape) + 1)
    if axis == 0:
        raise Refusal("stacks before the batch", BATCH_STAYS)
    joined = parts[0] if len(parts) == 1 else g.call(aten.cat.default, parts, 1)
    stacked = g.call(aten.reshape.default, joined, [-1, len(parts), *shape[1:]])
    order = [0, *range(2, axis + 1), 1, *range(axis + 1, len(shape) + 1)]
    if order == sorted(order):
        return stacked
    return g.call(aten.permute.default, stacked, order)
