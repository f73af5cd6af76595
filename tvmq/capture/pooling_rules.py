"""How pooling is written: max_pool2d or avg_pool2d with explicit windows, for ``canonicalize``.

A mean or sum over height, width or both is an average pooling with the window it has for the
exported size; the largest of them is a max pooling. Where windows differ in size, as those of an
adaptive pooling and of averages at the border do, each rectangle of the output whose windows are
alike is a pooling of its own, and the results are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from targets.refusal import Refusal
from tvmq.capture.canonical_graph import CanonicalGraph, shape_of
from tvmq.capture.layout_rules import permuted, reshaped, sliced
from tvmq.capture.rule_table import Arguments, RuleTable, pair, positive_axis

aten = torch.ops.aten
rules = RuleTable()
rule = rules.rule
POOLING_RULES = rules.by_name

_MOST_RUNS = 5
"""Sorts of windows along an axis; each pair of them is a layer."""

_NAME_THE_AXES = "Name the axes behind the channels, such as (2, 3)"


@rule("max_pool2d", "max_pool2d_with_indices")
def _max_pool(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    kernel, dilation = pair(a["kernel_size"]), pair(a["dilation"])
    stride, padding = pair(a["stride"] or kernel), pair(a["padding"])
    x = _image(a["self"])
    ceil_mode = _keep_ceil_mode(a, shape_of(x), kernel, stride, padding, dilation)
    result = g.call(aten.max_pool2d.default, x, kernel, stride, padding, dilation, ceil_mode)
    return [result, None] if isinstance(node.meta["val"], tuple | list) else result


@rule("avg_pool2d")
def _avg_pool(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    kernel = pair(a["kernel_size"])
    stride, padding = pair(a["stride"] or kernel), pair(a["padding"])
    x = _image(a["self"])
    ceil_mode = _keep_ceil_mode(a, shape_of(x), kernel, stride, padding, [1, 1])
    divisor = a["divisor_override"]
    counted = bool(a["count_include_pad"]) or padding == [0, 0] or divisor is not None
    if ceil_mode or not counted:
        axes = [
            _spans(out, *rest, counted=bool(a["count_include_pad"]))
            for out, *rest in zip(
                _made_size(node), shape_of(x)[2:], kernel, stride, padding, strict=True
            )
        ]
        return _in_regions(g, x, axes, lambda part, run: _mean_of(g, part, run, divisor))
    if divisor == kernel[0] * kernel[1]:
        divisor = None
    return g.call(aten.avg_pool2d.default, x, kernel, stride, padding, False, True, divisor)


def _made_size(node: Node) -> list[int]:
    """Height and width of what a pooling makes; a row's height is 1."""
    sizes = list(node.meta["val"].shape[2:])
    return sizes if len(sizes) == 2 else [1, *sizes]


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
    axes = _adaptive_spans(x, a["output_size"])
    return _in_regions(g, x, axes, lambda part, run: _mean_of(g, part, run))


@rule("adaptive_max_pool2d")
def _adaptive_max_pool(g: CanonicalGraph, _node: Node, a: Arguments) -> Any:
    x = _image(a["self"])
    axes = _adaptive_spans(x, a["output_size"])
    return [_in_regions(g, x, axes, lambda part, run: _largest_of(g, part, *_windows(run))), None]


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
        raise Refusal("takes the largest of the whole batch", _NAME_THE_AXES)
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
        raise Refusal(f"{what} over the batch", _NAME_THE_AXES)
    if len(shape) in (3, 4) and axes == list(range(1, len(shape) - 1)):  # of tokens, or N H W C
        order = [0, len(shape) - 1, *axes]
        behind = a | {"self": permuted(g, x, order), "dim": [axis + 1 for axis in axes]}
        return reshaped(g, _reduced(g, behind, reduce, what), _kept(shape, axes, a["keepdim"]))
    if len(shape) not in (3, 4) or 1 in axes:
        raise Refusal(
            f"{what} over other axes than those behind the channels",
            "Reduce over axes 2 and 3 of (N, C, H, W), 2 of (N, C, L) or 1 of (N, T, C); a mean "
            "over channels is a 1x1 convolution",
            f"axes {axes} of {len(shape)}",
        )
    if len(shape) == 3:
        x = g.call(aten.reshape.default, x, [-1, *shape[1:], 1])
    window = [size if axis in axes else 1 for axis, size in ((2, shape[2]), (3, [*shape, 1][3]))]
    pooled = x if window == [1, 1] else reduce(x, window)
    kept = _kept(shape, axes, a["keepdim"])
    if tuple(kept[1:]) == shape_of(pooled)[1:]:
        return pooled
    return g.call(aten.reshape.default, pooled, [-1, *kept[1:]])


def _kept(shape: Sequence[int], axes: Sequence[int], keepdim: bool) -> list[int]:
    """The shape that a reduction leaves."""
    if keepdim:
        return [1 if axis in axes else size for axis, size in enumerate(shape)]
    return [size for axis, size in enumerate(shape) if axis not in axes]


def _largest_of(
    g: CanonicalGraph, x: Node, window: list[int], stride: list[int] | None = None
) -> Node:
    if window == [1, 1] and stride in (None, [1, 1]):
        return x
    return g.call(aten.max_pool2d.default, x, window, stride or window, [0, 0], [1, 1], False)


def _mean_over(g: CanonicalGraph, x: Node, window: list[int], divisor: int | None = None) -> Node:
    return g.call(aten.avg_pool2d.default, x, window, window, [0, 0], False, True, divisor)


def _image(x: Node) -> Node:
    if len(shape_of(x)) != 4:
        raise Refusal(
            "only (N, C, H, W) can be pooled",
            "Reshape to that before it",
            f"{len(shape_of(x))} axes",
        )
    return x


# ---- windows that differ


@dataclass(frozen=True)
class _Span:
    """What one element of the output reads along an axis: [start, stop), divided by ``divisor``."""

    start: int
    stop: int
    divisor: int


@dataclass(frozen=True)
class _Run:
    """Neighbouring elements of the output with windows of one size, one stride apart."""

    spans: tuple[_Span, ...]

    @property
    def window(self) -> int:
        return self.spans[0].stop - self.spans[0].start

    @property
    def stride(self) -> int:
        return self.spans[1].start - self.spans[0].start if len(self.spans) > 1 else self.window

    def goes_on(self, span: _Span) -> bool:
        """Whether the next element belongs to it."""
        last = self.spans[-1]
        stride = span.start - last.start
        alike = span.stop - span.start == self.window and span.divisor == last.divisor
        return alike and stride > 0 and (len(self.spans) == 1 or stride == self.stride)


def _spans(
    count: int, size: int, kernel: int, stride: int, padding: int, *, counted: bool
) -> list[_Span]:
    """The windows of an average pooling along an axis; ``counted``: padding is in the divisor."""
    spans = []
    for i in range(count):
        start = i * stride - padding
        stop = min(start + kernel, size + padding)
        first, last = max(start, 0), min(stop, size)
        spans.append(_Span(first, last, stop - start if counted else last - first))
    return spans


def _adaptive_spans(x: Node, output_size: Any) -> list[list[_Span]]:
    """The windows of an adaptive pooling along both axes; a size of None is the input's."""
    axes = []
    for size, wanted in zip(shape_of(x)[2:], pair(output_size), strict=True):
        count = size if wanted is None else wanted
        bounds = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        axes.append([_Span(start, stop, stop - start) for start, stop in bounds])
    return axes


def _in_regions(
    g: CanonicalGraph,
    x: Node,
    axes: list[list[_Span]],
    pool: Callable[[Node, tuple[_Run, _Run]], Node],
) -> Node:
    """Pool each rectangle of the output whose windows are alike, and join the rectangles."""
    rows, columns = (_runs(spans) for spans in axes)
    if max(len(rows), len(columns)) > _MOST_RUNS:
        raise Refusal(
            "its windows differ too much from each other",
            "Choose an output size that divides the input's, or windows that do",
            f"{len(rows)} sorts of rows and {len(columns)} of columns",
        )
    stripes = []
    for row in rows:
        stripe = sliced(g, x, 2, row.spans[0].start, row.spans[-1].stop)
        parts = [
            pool(sliced(g, stripe, 3, column.spans[0].start, column.spans[-1].stop), (row, column))
            for column in columns
        ]
        stripes.append(_joined(g, parts, 3))
    return _joined(g, stripes, 2)


def _runs(spans: list[_Span]) -> list[_Run]:
    runs: list[_Run] = []
    for span in spans:
        if runs and runs[-1].goes_on(span):
            runs[-1] = _Run((*runs[-1].spans, span))
        else:
            runs.append(_Run((span,)))
    return runs


def _windows(runs: tuple[_Run, _Run]) -> tuple[list[int], list[int]]:
    return [run.window for run in runs], [run.stride for run in runs]


def _mean_of(
    g: CanonicalGraph, x: Node, runs: tuple[_Run, _Run], divisor: int | None = None
) -> Node:
    window, stride = _windows(runs)
    divisor = divisor or runs[0].spans[0].divisor * runs[1].spans[0].divisor
    if divisor == window[0] * window[1]:
        if divisor == 1 and stride == [1, 1]:
            return x
        return g.call(aten.avg_pool2d.default, x, window, stride, [0, 0], False, True, None)
    return g.call(aten.avg_pool2d.default, x, window, stride, [0, 0], False, True, divisor)


def _joined(g: CanonicalGraph, parts: list[Node], axis: int) -> Node:
    return parts[0] if len(parts) == 1 else g.call(aten.cat.default, parts, axis)
