"""How norms without a mean are written: root mean square, and vectors of length 1.

All are ``tvmq::rms_norm`` of rows: a vector divided by its length is one divided by the root of its
mean square, times 1 / sqrt(C). What a program writes out in several operators is known by the last
of them, which divides.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from targets.refusal import Refusal
from targets.rows import longest_norm
from tvmq.capture.canonical_graph import BATCH_STAYS, CanonicalGraph, is_constant, shape_of
from tvmq.capture.layout_rules import REPEATED, permuted, reshaped
from tvmq.capture.operator_rules import OPERATOR_RULES, computed
from tvmq.capture.row_lengths import check_row
from tvmq.capture.rule_table import Arguments, RuleTable, positive_axis
from tvmq.capture.token_matrices import as_matrices, token_origin, tokens_of

aten = torch.ops.aten
own = torch.ops.tvmq
rules = RuleTable()
rule = rules.rule
NORM_RULES = rules.by_name

_SMALLEST = torch.finfo(torch.float32).eps
"""What torch adds where nothing is said."""


@rule("rms_norm", "_fused_rms_norm")
def _rms_norm(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    x, weight = a["input"], a["weight"]
    if list(a["normalized_shape"]) != [shape_of(x)[-1]]:
        raise Refusal(
            "only a norm over the last axis can be quantized",
            "Flatten the axes that it normalizes into one",
            f"normalizes over {list(a['normalized_shape'])} of {list(shape_of(x))}",
        )
    if weight is not None and not is_constant(weight):
        raise computed("its weights")
    gamma = torch.ones(shape_of(x)[-1]) if weight is None else g.value(weight)
    result = _normed(g, node, x, -1, gamma, _SMALLEST if a["eps"] is None else a["eps"])
    return [result, None] if isinstance(node.meta["val"], tuple | list) else result


@rule("linalg_vector_norm")
def _length(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    """Stands for the length until something is divided by it."""
    x, axes = a["self"], a["dim"]
    axes = [axes] if isinstance(axes, int) else axes
    if a["ord"] != 2 or axes is None or len(axes) != 1 or not a["keepdim"]:
        raise Refusal(
            "only vectors along one axis can be divided by their Euclidean length",
            "Use torch.nn.functional.normalize(x, dim=...)",
        )
    axis = positive_axis(axes[0], len(shape_of(x)))
    if axis == 0:
        raise Refusal("the length of a vector of images", BATCH_STAYS)
    return g.call(aten.linalg_vector_norm.default, x, 2, [axis], True)


@rule("div")
def _div(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, y = a["self"], a["other"]
    if isinstance(x, Node) and isinstance(y, Node):
        length = y.meta.get(REPEATED, y)
        while length.target is aten.clamp.default:
            length = length.args[0]
        if length.target is aten.linalg_vector_norm.default and length.args[0] is x:
            (axis,) = length.args[2]
            count = shape_of(x)[axis]
            return _normed(g, node, x, axis, torch.full((count,), 1 / math.sqrt(count)), 0.0)
        eps = _mean_square(node.args[1], "sqrt", node.args[0])
        if eps is not None and not is_constant(x):
            return _normed(g, node, x, -1, torch.ones(shape_of(x)[-1]), eps)
    return OPERATOR_RULES["div"](g, node, a)


@rule("mul")
def _mul(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    """``x * rsqrt(mean(x^2) + eps)``, as language models write it out."""
    for name, (x, root) in (("self", node.args[:2]), ("other", node.args[1::-1])):
        eps = _mean_square(root, "rsqrt", x)
        if eps is not None and isinstance(a[name], Node) and not is_constant(a[name]):
            return _normed(g, node, a[name], -1, torch.ones(shape_of(a[name])[-1]), eps)
    return OPERATOR_RULES["mul"](g, node, a)


def _normed(
    g: CanonicalGraph, node: Node, x: Node, axis: int, gamma: torch.Tensor, eps: float
) -> Node:
    """Divided by the root of the mean square along an axis.

    Channels of tokens, as attention among channels has them, (N, h, d, T), are rows of all tokens.
    """
    rank = len(shape_of(x))
    axis = positive_axis(axis, rank)
    check_row(len(gamma), longest_norm(centred=False))
    if rank == 4 and axis == 3:
        matrices = as_matrices(g, permuted(g, x, [0, 1, 3, 2]))
        if shape_of(matrices)[1] == 1 and token_origin(matrices) is not None:
            tokens = permuted(g, tokens_of(g, matrices), [0, 2, 1])
            factors = g.constant(f"{node.name}_gamma", gamma)
            return reshaped(g, g.call(own.rms_norm.default, tokens, factors, eps), shape_of(x))
    order = [*(i for i in range(rank) if i != axis), axis]
    turned = permuted(g, x, order)
    shape = shape_of(turned)
    rows = reshaped(g, turned, [-1, math.prod(shape[1:-1]), shape[-1]])
    made = g.call(own.rms_norm.default, rows, g.constant(f"{node.name}_gamma", gamma), float(eps))
    return permuted(g, reshaped(g, made, shape), sorted(range(rank), key=order.__getitem__))


def _mean_square(root: Any, function: str, x: Any) -> float | None:
    """What is added to the mean square of ``x`` that ``root`` is the root of; None if it isn't."""
    inner = _argument(_unchanged(root), function)
    added = _unchanged(inner)
    eps = 0.0
    if isinstance(added, Node) and _name(added) == "add" and isinstance(added.args[1], float | int):
        added, eps = _unchanged(added.args[0]), float(added.args[1])
    if not isinstance(added, Node) or _name(added) != "mean" or len(added.args) < 3:
        return None
    value = added.meta["val"]
    if list(added.args[1]) not in ([-1], [value.ndim - 1]) or not added.args[2]:
        return None
    square = _unchanged(added.args[0])
    if not isinstance(square, Node):
        return None
    squares = (
        (_name(square) == "pow" and square.args[1] == 2)
        or _name(square) == "square"
        or (_name(square) == "mul" and square.args[0] is square.args[1])
    )
    return eps if squares and _unchanged(square.args[0]) is _unchanged(x) else None


def _argument(node: Any, name: str) -> Any:
    return node.args[0] if isinstance(node, Node) and _name(node) == name else None


def _unchanged(node: Any) -> Any:
    """Behind conversions to another float type, and repetitions."""
    while isinstance(node, Node) and _name(node) in ("_to_copy", "to", "expand", "alias"):
        node = node.args[0]
    return node


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).removeprefix("aten::")
