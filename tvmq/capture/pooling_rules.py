"""How pooling is written: max_pool2d or avg_pool2d with explicit windows, for ``canonicalize``.

A mean or sum over height, width or both and an adaptive pooling that divides evenly are average
poolings with the window they have for the exported size; the largest of them is a max pooling.
"""

from __future__ import annotations

from collections.abc import Callable
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
    return [_largest_of(g, x, window), None]


@rule("mean")
def _mean(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    return _reduced(g, a, lambda x, window: _mean_over(g, x, window), "averages")


@rule("sum")
def _sum(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    """An average that isn't divided."""
    return _reduced(g, a, lambda x, window: _mean_over(g, x, window, divisor=1), "adds up")


@rule("amax")
def _amax(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    return _reduced(g, a, lambda x, window: _largest_of(g, x, window), "takes the largest")


@rule("max")
def _max(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    if a.get("dim") is None:
        raise Refusal("takes the largest of the batch; name the axes, as in amax(x, (2, 3))")
    found = _reduced(
        g, a | {"dim": [a["dim"]]}, lambda x, window: _largest_of(g, x, window), "takes the largest"
    )
    return [found, None] if isinstance(node.meta["val"], tuple | list) else found


def _reduced(
    g: CanonicalGraph, a: Arguments, reduce: Callable[[Node, list[int]], Node], what: str
) -> Node:
    """A reduction over some of the axes behind the channels, by a pooling of windows that large."""
    x, shape = a["self"], shape_of(a["self"])
    axes = a.get("dim")
    axes = sorted(positive_axis(axis, len(shape)) for axis in (axes or range(len(shape))))
    if 0 in axes:
        raise Refusal(f"{what} over the batch; name the axes, such as (2, 3)")
    if len(shape) not in (3, 4) or 1 in axes:
        raise Refusal(f"{what} over axes {axes} of {len(shape)}, only those behind the channels")
    if len(shape) == 3:
        x = g.call(aten.reshape.default, x, [-1, *shape[1:], 1])
    window = [size if axis in axes else 1 for axis, size in ((2, shape[2]), (3, [*shape, 1][3]))]
    pooled = x if window == [1, 1] else reduce(x, window)
    kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
    if not a["keepdim"]:
        kept = [size for axis, size in enumerate(shape) if axis not in axes]
    if tuple(kept[1:]) == shape_of(pooled)[1:]:
        return pooled
    return g.call(aten.reshape.default, pooled, [-1, *kept[1:]])


def _largest_of(g: CanonicalGraph, x: Node, window: list[int]) -> Node:
    return g.call(aten.max_pool2d.default, x, window, window, [0, 0], [1, 1], False)


def _mean_over(g: CanonicalGraph, x: Node, window: list[int], divisor: int | None = None) -> Node:
    return g.call(aten.avg_pool2d.default, x, window, window, [0, 0], False, True, divisor)


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
