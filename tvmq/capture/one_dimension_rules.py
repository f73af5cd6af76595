"""How operators on rows (N, C, L) are written: as those on images of one row, (N, C, 1, L).

The reshapes between cost nothing, and between two such operators there are none: a reshape of a
reshape is one, and what is applied to elements, channels or parts of a row is applied to its image,
see ``row_image`` in ``layout_rules.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from targets.refusal import Refusal
from tvmq.capture.canonical_graph import CanonicalGraph, is_constant, shape_of
from tvmq.capture.layout_rules import as_row, as_row_image
from tvmq.capture.operator_rules import OPERATOR_RULES, computed
from tvmq.capture.operators_without_rule import refusal_of
from tvmq.capture.pooling_rules import POOLING_RULES
from tvmq.capture.resampling_rules import (
    interpolated,
    linear_parts,
    nearest,
    transposed_convolution,
)
from tvmq.capture.rule_table import Arguments, RuleTable

rules = RuleTable()
rule = rules.rule
ONE_DIMENSION_RULES = rules.by_name

_ACROSS = {"kernel_size": 1, "stride": 1, "dilation": 1, "padding": 0, "output_padding": 0}
"""Arguments by axis, and what they are for the axis of size 1."""


def _with_two_axes(a: Arguments) -> Arguments:
    """Arguments of an operator on rows, as those of the same on images."""
    return a | {
        name: [still, *([value] if isinstance(value, int) else value)]
        for name, still in _ACROSS.items()
        if (value := a.get(name)) is not None and not isinstance(value, str) and value != []
    }


def _rows(x: Node) -> Node:
    if len(shape_of(x)) != 3:
        raise Refusal(
            "only (N, C, L) has one dimension",
            "Reshape to that before it",
            f"{len(shape_of(x))} axes",
        )
    return x


def _kernel(g: CanonicalGraph, weight: Node) -> Node:
    """Weights (K, C, k) as (K, C, 1, k)."""
    if not is_constant(weight):
        raise computed("its weights")
    return g.constant(f"{weight.name}_of_images", g.value(weight)[:, :, None])


@rule("conv1d")
def _conv1d(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    a = _with_two_axes(a)
    a |= {"input": as_row_image(g, _rows(a["input"])), "weight": _kernel(g, a["weight"])}
    return as_row(g, OPERATOR_RULES["conv2d"](g, node, a))


@rule("conv_transpose1d")
def _conv_transpose1d(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, weight = as_row_image(g, _rows(a["input"])), _kernel(g, a["weight"])
    return as_row(g, transposed_convolution(g, node, _with_two_axes(a), x, weight))


@rule("convolution")
def _convolution(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    """Any of them, as decompositions say it."""
    rank = len(shape_of(a["input"]))
    if not a["transposed"]:
        return (_conv1d if rank == 3 else OPERATOR_RULES["conv2d"])(g, node, a)
    if rank == 3:
        return _conv_transpose1d(g, node, a)
    if rank != 4:
        raise refusal_of("conv_transpose3d")
    return transposed_convolution(g, node, a, a["input"], a["weight"])


@rule(
    "max_pool1d", "max_pool1d_with_indices", "avg_pool1d", "adaptive_avg_pool1d",
    "adaptive_max_pool1d",
)  # fmt: skip
def _pool(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    name = str(node.target._schema.name).removeprefix("aten::").replace("1d", "2d")
    x = _rows(a["self"])
    a = {"divisor_override": None} | _with_two_axes(a) | {"self": as_row_image(g, x)}
    if "output_size" in a:
        size = a["output_size"]
        a["output_size"] = [1, *([size] if isinstance(size, int) else size)]
    pooled = POOLING_RULES[name](g, node, a)
    if isinstance(pooled, list):
        return [as_row(g, pooled[0]), *pooled[1:]]
    return as_row(g, pooled)


@rule("upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_linear1d")
def _upsample(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    first, *others = (argument.name for argument in node.target._schema.arguments)
    x, rest = _rows(a[first]), {name: a[name] for name in others}
    interpolates = "linear" in str(node.target._schema.name)
    # as precisely as torch works it out for the values themselves
    dtype = torch.float64 if interpolates else torch.float32
    places = node.target(torch.arange(shape_of(x)[2], dtype=dtype)[None, None], **rest)
    columns = [round(place, 9) for place in places[0, 0].tolist()]
    image = as_row_image(g, x)
    if interpolates:
        return as_row(g, interpolated(g, node, image, [0.0], columns, linear_parts))
    return as_row(g, nearest(g, image, [0.0], columns))
