"""How operators of transformers are written: products of matrices, softmax, layer norm.

All work on tokens (N, T, C), however the network has moved them: see ``rearranged.py`` and
``tvmq/token_operators.py``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from targets.refusal import Refusal
from targets.rows import LONGEST_ROW, longest_norm
from tvmq import token_operators  # noqa: F401  registers the operators
from tvmq.capture.canonical_graph import BATCH_STAYS, CanonicalGraph, is_constant, shape_of
from tvmq.capture.constant_masks import causal, masked
from tvmq.capture.layout_rules import permuted, reshaped
from tvmq.capture.operator_rules import OPERATOR_RULES, computed
from tvmq.capture.row_lengths import check_row
from tvmq.capture.rule_table import Arguments, RuleTable, positive_axis
from tvmq.capture.token_matrices import as_matrices, matrices_of, token_origin, tokens_of

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
    if shape_of(x)[:-2] != shape_of(y)[:-2] or len(shape_of(x)) < 3:
        raise Refusal(
            "matrices are multiplied that differ in their leading axes",
            "Expand both to the same leading axes before",
            f"shapes {list(shape_of(x))} and {list(shape_of(y))}",
        )
    return _matrix_product(g, x, y)


def _matrix_product(g: CanonicalGraph, x: Node, y: Node, factor: float = 1.0) -> Node:
    """``x @ y * factor`` of matrices (N, ..., T, C).

    Where the left ones are of no tokens, but the right ones are, turned, as in attention among
    channels, the product is made turned, of operands that are both turned if that makes tokens of
    the left ones, too (channels in front of pixels); where none are, all matrices are windows.
    """
    shape = [*shape_of(x)[:-1], shape_of(y)[-1]]
    left = as_matrices(g, x)
    by_head, across = token_origin(left) is not None, as_matrices(g, _turned(g, y))
    if not by_head and None not in (token_origin(_turned(g, left)), token_origin(across)):
        return _turned(g, _matrix_product(g, _turned(g, y), _turned(g, x), factor))
    windows, heads = shape_of(across)[1:3]
    if (not by_head or shape_of(left)[2] < heads) and token_origin(across) is not None:
        rows = reshaped(g, x, [-1, windows, heads, *shape_of(x)[-2:]])
        tokens = [tokens_of(g, matrices) for matrices in (across, rows)]
        made = g.call(own.matmul_rows.default, *tokens, heads, factor, windows)
        back = reshaped(g, matrices_of(g, made, windows, heads), [*shape[:-2], *shape[:-3:-1]])
        return _turned(g, back)
    if not by_head:
        left = reshaped(g, x, [-1, math.prod(shape[1:-2]), 1, *shape_of(x)[-2:]])
    windows, heads = shape_of(left)[1:3]
    right = reshaped(g, y, [-1, windows, heads, *shape_of(y)[-2:]])
    turned = _turned(g, right)
    tokens = tokens_of(g, left)
    # Whichever way round its tokens lie where they were made, y needs no transposition.
    if token_origin(turned) is not None and token_origin(right) is None:
        y, target = tokens_of(g, turned), own.matmul_rows.default
    else:
        y, target = tokens_of(g, right), own.matmul_columns.default
    result = g.call(target, tokens, y, heads, factor, windows)
    return reshaped(g, matrices_of(g, result, windows, heads), shape)


def _turned(g: CanonicalGraph, matrices: Node) -> Node:
    rank = len(shape_of(matrices))
    return permuted(g, matrices, [*range(rank - 2), rank - 1, rank - 2])


@rule("scaled_dot_product_attention")
def _attention(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    mask = a["attn_mask"]
    operands = [a[name] for name in ("query", "key", "value")]
    query, key, value = (g.for_each_image(x) if is_constant(x) else x for x in operands)
    scale = 1 / math.sqrt(shape_of(query)[-1]) if a["scale"] is None else a["scale"]
    scores = _matrix_product(g, query, _turned(g, key), scale)
    if a["is_causal"]:
        scores = masked(g, node.name, scores, causal(*shape_of(scores)[-2:]))
    elif mask is not None and is_constant(mask):
        scores = masked(g, node.name, scores, g.value(mask))
    elif mask is not None:
        scores = OPERATOR_RULES["add"](g, node, {"self": scores, "other": mask, "alpha": 1})
    return _matrix_product(g, _softmax_of_rows(g, scores), value)


@rule("softmax", "_softmax")
def _softmax(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    x = a["self"]
    rank = len(shape_of(x))
    axis = positive_axis(a["dim"], rank)
    if axis == 0:
        raise Refusal("softmax over the batch", BATCH_STAYS)
    order = [*(i for i in range(rank) if i != axis), axis]
    back = sorted(range(rank), key=order.__getitem__)
    if order == sorted(order):
        return _softmax_of_rows(g, x)
    turned = permuted(g, x, order)
    return permuted(g, _softmax_of_rows(g, turned), back)


def _softmax_of_rows(g: CanonicalGraph, x: Node) -> Node:
    """Over the last axis."""
    shape = shape_of(x)
    check_row(shape[-1], LONGEST_ROW)
    if len(shape) > 3:
        matrices = as_matrices(g, x)
        if token_origin(matrices) is not None:
            windows, heads = shape_of(matrices)[1:3]
            tokens = g.call(own.softmax.default, tokens_of(g, matrices), heads)
            return reshaped(g, matrices_of(g, tokens, windows, heads), shape)
    rows = reshaped(g, x, [-1, math.prod(shape[1:-1]), shape[-1]])
    return reshaped(g, g.call(own.softmax.default, rows, 1), shape)


@rule("layer_norm", "native_layer_norm")
def _layer_norm(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    x, shape = a["input"], shape_of(a["input"])
    if list(a["normalized_shape"]) != [shape[-1]]:
        raise Refusal(
            "only a layer norm over the last axis can be quantized",
            "Flatten the axes that it normalizes into one, or use batch norm",
            f"normalizes over {list(a['normalized_shape'])} of {list(shape)}",
        )
    weight, bias = a["weight"], a["bias"]
    if any(w is not None and not is_constant(w) for w in (weight, bias)):
        raise computed("its weights")
    check_row(shape[-1], longest_norm(centred=True))
    rows = reshaped(g, x, [-1, math.prod(shape[1:-1]), shape[-1]])
    result = g.call(
        aten.layer_norm.default, rows, [shape[-1]],
        weight or g.constant(f"{node.name}_gamma", torch.ones(shape[-1])),
        bias or g.constant(f"{node.name}_beta", torch.zeros(shape[-1])), a["eps"],
    )  # fmt: skip
    result = reshaped(g, result, shape)
    return [result, None, None] if isinstance(node.meta["val"], tuple | list) else result
