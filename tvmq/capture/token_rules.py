"""How operators of transformers are written: products of matrices, softmax, layer norm.

All work on tokens (N, T, C), however the network has moved them: see ``rearranged.py`` and
``tvmq/token_operators.py``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from tvmq import token_operators  # noqa: F401  registers the operators
from tvmq.capture.canonical_graph import CanonicalGraph, Refusal, is_constant, shape_of
from tvmq.capture.layout_rules import reshaped
from tvmq.capture.operator_rules import OPERATOR_RULES
from tvmq.capture.rearranged import matrices_of, token_origin, tokens_of
from tvmq.capture.rule_table import Arguments, RuleTable, positive_axis

aten = torch.ops.aten
own = torch.ops.tvmq
rules = RuleTable()
rule = rules.rule
TOKEN_RULES = rules.by_name


@rule("matmul", "bmm")
def _product(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    x, y = a["self"], a["other"] if "other" in a else a["mat2"]
    if is_constant(x) or is_constant(y):
        return OPERATOR_RULES["matmul"](g, node, {"self": x, "other": y})
    if x.meta["val"].ndim != y.meta["val"].ndim or x.meta["val"].ndim not in (3, 4):
        raise Refusal(
            f"matrices of shapes {list(shape_of(x))} and {list(shape_of(y))}; give both the same "
            "leading axes, one or two"
        )
    return _matrix_product(g, x, y)


def _matrix_product(g: CanonicalGraph, x: Node, y: Node, factor: float = 1.0) -> Node:
    """``x @ y * factor`` of matrices (N, T, C) or (N, h, T, C)."""
    flat = len(shape_of(x)) == 3
    if flat:
        x, y = (reshaped(g, m, [-1, 1, *shape_of(m)[1:]]) for m in (x, y))
    heads = shape_of(x)[1]
    left, turned = tokens_of(g, x), g.call(aten.permute.default, y, [0, 1, 3, 2])
    # Whichever way round its tokens lie where they were made, y needs no transposition.
    if _lies_as_tokens(turned) and not _lies_as_tokens(y):
        result = g.call(own.matmul_rows.default, left, tokens_of(g, turned), heads, factor)
    else:
        result = g.call(own.matmul_columns.default, left, tokens_of(g, y), heads, factor)
    return result if flat else matrices_of(g, result, heads)


def _lies_as_tokens(matrices: Node) -> bool:
    """Whether the rows of matrices are vectors of what they were made from."""
    return token_origin(matrices) is not None


@rule("scaled_dot_product_attention")
def _attention(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    if a["attn_mask"] is not None or a["is_causal"]:
        raise Refusal("attention with a mask")
    query, key, value = operands = [a[name] for name in ("query", "key", "value")]
    if any(is_constant(operand) for operand in operands):
        raise Refusal("attention to a constant")
    scale = a["scale"] or 1 / math.sqrt(shape_of(query)[-1])
    rank = len(shape_of(key))
    turned = g.call(aten.permute.default, key, [*range(rank - 2), rank - 1, rank - 2])
    scores = _matrix_product(g, query, turned, scale)
    return _matrix_product(g, _softmax_of_rows(g, scores), value)


@rule("softmax", "_softmax")
def _softmax(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    x = a["self"]
    rank = len(shape_of(x))
    axis = positive_axis(a["dim"], rank)
    if axis == 0:
        raise Refusal("softmax over the batch")
    order = [*(i for i in range(rank) if i != axis), axis]
    back = sorted(range(rank), key=order.__getitem__)
    if order == sorted(order):
        return _softmax_of_rows(g, x)
    turned = g.call(aten.permute.default, x, order)
    return g.call(aten.permute.default, _softmax_of_rows(g, turned), back)


def _softmax_of_rows(g: CanonicalGraph, x: Node) -> Node:
    """Over the last axis."""
    shape = shape_of(x)
    if len(shape) == 4 and token_origin(x) is not None:
        tokens = g.call(own.softmax.default, tokens_of(g, x), shape[1])
        return matrices_of(g, tokens, shape[1])
    rows = reshaped(g, x, [-1, math.prod(shape[1:-1]), shape[-1]])
    return reshaped(g, g.call(own.softmax.default, rows, 1), shape)


@rule("layer_norm", "native_layer_norm")
def _layer_norm(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    x, shape = a["input"], shape_of(a["input"])
    if list(a["normalized_shape"]) != [shape[-1]]:
        raise Refusal(f"normalizes over axes {list(a['normalized_shape'])}; only over the last")
    weight, bias = a["weight"], a["bias"]
    if any(w is not None and not is_constant(w) for w in (weight, bias)):
        raise Refusal("weights that depend on the input")
    rows = reshaped(g, x, [-1, math.prod(shape[1:-1]), shape[-1]])
    result = g.call(
        aten.layer_norm.default, rows, [shape[-1]],
        weight or g.constant(f"{node.name}_gamma", torch.ones(shape[-1])),
        bias or g.constant(f"{node.name}_beta", torch.zeros(shape[-1])), a["eps"],
    )  # fmt: skip
    result = reshaped(g, result, shape)
    return [result, None, None] if isinstance(node.meta["val"], tuple | list) else result
