"""Operators of transformers, written as they are: for fake quantization only, no integers follow.

``capture`` refuses them, since no pass lowers them; ``capture_program(..., attention=True)`` lets
them through for what ends in torch, such as a reconstruction. Each is a function of codes whose
result is held in codes again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from targets.refusal import Refusal
from tvmq.capture.canonical_graph import CanonicalGraph, is_constant
from tvmq.capture.operator_rules import OPERATOR_RULES
from tvmq.capture.rule_table import Arguments, RuleTable

aten = torch.ops.aten
rules = RuleTable()
rule = rules.rule
ATTENTION_RULES = rules.by_name


@rule("layer_norm")
def _layer_norm(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    return g.call(
        aten.layer_norm.default,
        *(a[name] for name in ("input", "normalized_shape", "weight", "bias", "eps")),
    )


@rule("softmax")
def _softmax(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    return g.call(aten.softmax.int, a["self"], a["dim"])


@rule("matmul")
def _product(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    if is_constant(a["self"]) or is_constant(a["other"]):
        return OPERATOR_RULES["matmul"](g, node, a)
    return g.call(aten.matmul.default, a["self"], a["other"])


@rule("scaled_dot_product_attention")
def _attention(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    if a["attn_mask"] is not None or a["is_causal"]:
        raise Refusal("attention with a mask", "Export it without the mask")
    operands = [a[name] for name in ("query", "key", "value")]
    if any(is_constant(operand) for operand in operands):
        raise Refusal("attention to a constant", "Let query, key and value be computed")
    return g.call(aten.scaled_dot_product_attention.default, *operands, scale=a["scale"])
