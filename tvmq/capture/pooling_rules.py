"""How pooling is written: max_pool2d or avg_pool2d with explicit windows, for ``canonicalize``.

A mean over height and width and an adaptive pooling that divides evenly are average poolings with
the window they have for the exported size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from tvmq.capture.canonical_graph import CanonicalGraph, Refusal, shape_of
from tvmq.capture.rule_table import Arguments, RuleTable, pair, positive_axis

aten = torch.ops.aten
rules = RuleTable()
rule = rules.rule
POOLING_RULES = rules.by_name


@rule("max_pool2d", "max_pool2d_with_indices")
def _max_pool(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    kernel, dilation = pair(a["kernel_size"]), pair(a["dilation"])
    stride, padding = pair(a["stride"] or kernel), pair(a["padding"])
    x = _image(a["self"])
    ceil_mode = _keep_ceil_mode(a, shape_of(x), kernel, stride, padding, dilation)
    result = g.call(aten.max_pool2d.default, x, kernel, stride, padding, dilation, ceil_mode)
    return [result, None] if isinstance(node.meta["val"], tuple | list) else result


@rule("avg_pool2d")
def _avg_pool(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    kernel = pair(a["kernel_size"])
    stride, padding = pair(a["stride"] or kernel), pair(a["padding"])
    x = _image(a["self"])
    ceil_mode = _keep_ceil_mode(a, shape_of(x), kernel, stride, padding, [1, 1])
    divisor = a["divisor_override"]
    counted = bool(a["count_include_pad"]) or padding == [0, 0] or divisor is not None
    if ceil_mode or not counted:
        raise Refusal(
            "windows at the border are divided by fewer elements; use ceil_mode=False and "
            "count_include_pad=True, or pad before pooling"
        )
    if divisor == kernel[0] * kernel[1]:
        divisor = None
    return g.call(aten.avg_pool2d.default, x, kernel, stride, padding, False, True, divisor)


def _keep_ceil_mode(
    a: Arguments,
    shape: tuple[int, ...],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> bool:
    """False where rounding up gives the same windows anyway, so that fewer cases remain."""
    spare = [
        (size + 2 * p - d * (k - 1) - 1) % s
        for size, k, s, p, d in zip(shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    return bool(a["ceil_mode"]) and any(spare)


@rule("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    x = _image(a["self"])
    window = _even_window(x, a["output_size"])
    if window == [1, 1]:
        return x
    return _mean_over(g, x, window)


@rule("adaptive_max_pool2d")
def _adaptive_max_pool(g: CanonicalGraph, _node: Node, a: Arguments) -> Any:
    x = _image(a["self"])
    window = _even_window(x, a["output_size"])
    return [g.call(aten.max_pool2d.default, x, window, window, [0, 0], [1, 1], False), None]


@rule("mean")
def _mean(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    shape = shape_of(a["self"])
    axes = a.get("dim")
    axes = sorted(positive_axis(axis, len(shape)) for axis in (axes or range(len(shape))))
    if 0 in axes:
        raise Refusal("averages over the batch")
    if len(shape) != 4 or axes != [2, 3]:
        raise Refusal(f"only a mean over height and width, got axes {axes} of {len(shape)}")
    pooled = _mean_over(g, a["self"], list(shape[2:]))
    return pooled if a["keepdim"] else g.call(aten.reshape.default, pooled, [-1, shape[1]])


def _mean_over(g: CanonicalGraph, x: Node, window: list[int]) -> Node:
    return g.call(aten.avg_pool2d.default, x, window, window, [0, 0], False, True, None)


def _image(x: Node) -> Node:
    if len(shape_of(x)) != 4:
        raise Refusal(f"only pooling of (N, C, H, W), got {len(shape_of(x))} axes")
    return x


def _even_window(x: Node, output_size: Any) -> list[int]:
    sizes = shape_of(x)[2:]
    wanted = pair(output_size)
    if any(size % out for size, out in zip(sizes, wanted, strict=True)):
        raise Refusal(f"{list(sizes)} to {wanted} has windows of different sizes")
    return [size // out for size, out in zip(sizes, wanted, strict=True)]
