"""How group and instance norms are written: as layer norms of tokens, each a group of an image.

A group's channels of all pixels lie one behind the other for it, which is a move for all groups but
a single one; factors and summands of the channels are a layer behind, except of a single group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from targets.refusal import Refusal
from targets.rows import longest_norm
from tvmq.capture.canonical_graph import CanonicalGraph, is_constant, shape_of
from tvmq.capture.layout_rules import as_row, as_row_image, joined, sliced
from tvmq.capture.operator_rules import OPERATOR_RULES, computed, per_channel
from tvmq.capture.row_lengths import check_row
from tvmq.capture.rule_table import Arguments, RuleTable

aten = torch.ops.aten
rules = RuleTable()
rule = rules.rule
GROUP_NORM_RULES = rules.by_name


@rule("group_norm", "native_group_norm")
def _group_norm(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    groups = a["num_groups"] if "num_groups" in a else a["group"]
    result = _normed(g, node, a, groups)
    return [result, None, None] if isinstance(node.meta["val"], tuple | list) else result


@rule("instance_norm")
def _instance_norm(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    if not a["use_input_stats"]:
        return OPERATOR_RULES["batch_norm"](g, node, a)
    return _normed(g, node, a, shape_of(a["input"])[1])


def _normed(g: CanonicalGraph, node: Node, a: Arguments, groups: int) -> Node:
    x = a["input"]
    given = [vector for vector in (a["weight"], a["bias"]) if vector is not None]
    if not all(is_constant(vector) for vector in given):
        raise computed("its weights")
    if len(shape_of(x)) == 3:
        return as_row(g, _normed(g, node, a | {"input": as_row_image(g, x)}, groups))
    if len(shape_of(x)) != 4:
        raise Refusal(
            "only groups of (N, C, L) and (N, C, H, W) can be normalized",
            "Reshape to one of these around it",
            f"{len(shape_of(x))} axes",
        )
    _, channels, height, width = shape_of(x)
    each = channels // groups
    check_row(each * height * width, longest_norm(centred=True))
    gamma = torch.ones(channels) if a["weight"] is None else g.value(a["weight"])
    beta = torch.zeros(channels) if a["bias"] is None else g.value(a["bias"])
    pixels = height * width
    inside = (gamma, beta) if groups == 1 else (torch.ones(each), torch.zeros(each))
    factor, summand = (
        g.constant(f"{node.name}_{name}", vector.repeat(pixels))
        for name, vector in zip(("factor", "summand"), inside, strict=True)
    )
    above = joined(g, [sliced(g, x, 1, n * each, (n + 1) * each) for n in range(groups)], 2)
    last = g.call(aten.permute.default, above, [0, 2, 3, 1])
    tokens = g.call(aten.reshape.default, last, [-1, groups, pixels * each])
    normed = g.call(
        aten.layer_norm.default, tokens, [pixels * each], factor, summand, float(a["eps"])
    )
    image = g.call(aten.reshape.default, normed, [-1, groups * height, width, each])
    image = g.call(aten.permute.default, image, [0, 3, 1, 2])
    parts = [sliced(g, image, 2, n * height, (n + 1) * height) for n in range(groups)]
    beside = joined(g, parts, 1)
    return beside if groups == 1 else per_channel(g, node, beside, scale=gamma, shift=beta)
