"""How operators that only move or drop values are written, for ``canonicalize``.

Reshapes get -1 for the batch, so that a batch baked in by the exporter disappears; slices, splits
and selections become ``slice``; what changes nothing in evaluation mode is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from targets.refusal import Refusal
from tvmq.capture.canonical_graph import BATCH_STAYS, CanonicalGraph, is_constant, shape_of
from tvmq.capture.operators_without_rule import refusal_of
from tvmq.capture.rearranged import simplest
from tvmq.capture.rule_table import Arguments, RuleTable, positive_axis

Cut = tuple[int, int, int]
"""First, end and step of a slice."""

aten = torch.ops.aten
rules = RuleTable()
rule = rules.rule
LAYOUT_RULES = rules.by_name

REPEATED = "repeated"
"""Where ``meta`` of a node says what its elements repeat, for operators that do so themselves."""


@rule(
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout",
    "detach", "detach_", "clone", "contiguous", "alias", "lift_fresh_copy", "positive",
)  # fmt: skip
def _nothing(_g: CanonicalGraph, _node: Node, a: Arguments) -> Any:
    return a["self"] if "self" in a else a["input"]


@rule("_to_copy", "to")
def _conversion(_g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    if not node.meta["val"].is_floating_point():
        raise Refusal(
            "the network must stay in floats",
            "Leave the conversion out, or do it outside of the network",
            f"converts to {str(node.meta['val'].dtype)[6:]}",
        )
    return a["self"]  # everything is float32 in the canonical graph


@rule("expand", "expand_as", "broadcast_to")
def _expand(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    x, wanted = a["self"], tuple(node.meta["val"].shape[1:])
    return repeated(g, x, wanted)


def repeated(g: CanonicalGraph, x: Node, sizes: Sequence[int]) -> Node:
    """A value with axes of size 1 repeated, to these sizes behind the batch."""
    if len(sizes) != len(shape_of(x)) - 1:
        raise Refusal(
            "it repeats values along a new axis",
            "Give the tensor that axis before, by unsqueeze",
            f"shape {list(shape_of(x))} to {['N', *sizes]}",
        )
    result = x
    for axis in range(len(sizes), 0, -1):
        if sizes[axis - 1] != shape_of(x)[axis]:
            result = assembled(g, result, {axis: [(0, 1, 1)] * sizes[axis - 1]})
    if result is not x:
        result.meta[REPEATED] = x
    return result


@rule("getitem")
def _getitem(_g: CanonicalGraph, _node: Node, a: Arguments) -> Any:
    value = a["values"][a["index"]]
    if value is None:
        raise Refusal(
            "uses the indices or statistics that an operator returns beside its result",
            "Use the result alone, and compute the rest outside of the network",
        )
    return value


@rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_copy",
    "_reshape_alias", "view_as", "reshape_as",
)  # fmt: skip
def _reshape(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    return reshaped(g, a["self"] if "self" in a else a["input"], node.meta["val"].shape)


def reshaped(g: CanonicalGraph, x: Node, exported_shape: Sequence[Any]) -> Node:
    """Reshape with a free batch; axis 0 stays the batch exactly if the rest keeps its size."""
    old, new = shape_of(x), tuple(exported_shape)
    fixed = all(isinstance(size, int) for size in new[1:])
    if not new or not fixed or math.prod(new[1:]) != math.prod(old[1:]):
        raise Refusal(
            "moves the batch, which must stay axis 0",
            _reshape_advice(old, new),
            f"reshape of {['N', *old[1:]]} to {[str(size) for size in new]}",
        )
    if new[1:] == old[1:]:
        return x
    if x.target is aten.reshape.default:
        return reshaped(g, x.args[0], new)
    return simplest(g, g.call(aten.reshape.default, x, [-1, *new[1:]]))


def _reshape_advice(old: Sequence[Any], new: Sequence[Any]) -> str:
    """A squeeze takes the batch along where one image is exported; the rest is reshaped wrongly."""
    if old[0] == 1 and [size for size in old if size != 1] == [size for size in new if size != 1]:
        axes = [axis for axis, size in enumerate(old) if size == 1 and axis]
        named = f"({', '.join(map(str, axes))}{',' if len(axes) == 1 else ''})"
        return f"Export with batch 2, or name the axes: squeeze({named})"
    return "Reshape with x.shape[0] or -1 on axis 0, and the sizes of one image behind it"


def as_row_image(g: CanonicalGraph, x: Node) -> Node:
    """Rows (N, C, L) as images of one row, (N, C, 1, L)."""
    _, channels, length = shape_of(x)
    return reshaped(g, x, [-1, channels, 1, length])


def as_row(g: CanonicalGraph, image: Node) -> Node:
    """Images of one row as rows."""
    _, channels, _, length = shape_of(image)
    return reshaped(g, image, [-1, channels, length])


def row_image(x: Node) -> Node | None:
    """The image that rows (N, C, L) are of; None for tokens, which have their channels last."""
    if x.target is not aten.reshape.default or len(shape_of(x)) != 3:
        return None
    image: Node = x.args[0]
    _, channels, length = shape_of(x)
    return image if shape_of(image)[1:] == (channels, 1, length) else None


@rule("permute")
def _permute(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    return permuted(g, a["self"], a["dims"])


@rule("transpose")
def _transpose(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    rank = len(shape_of(a["self"]))
    order = list(range(rank))
    first, second = positive_axis(a["dim0"], rank), positive_axis(a["dim1"], rank)
    order[first], order[second] = second, first
    return permuted(g, a["self"], order)


def permuted(g: CanonicalGraph, x: Node, order: Sequence[int]) -> Node:
    """With axes in another order, axis 0 staying where it is."""
    order = [positive_axis(axis, len(order)) for axis in order]
    if order[0] != 0:
        raise Refusal("moves the batch away from axis 0", BATCH_STAYS)
    if x.target is aten.permute.default:
        x, order = x.args[0], [x.args[1][axis] for axis in order]
    return x if order == sorted(order) else simplest(g, g.call(aten.permute.default, x, order))


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    _, channels, *rest = shape_of(a["self"])
    groups = a["groups"]
    split = g.call(aten.reshape.default, a["self"], [-1, groups, channels // groups, *rest])
    swapped = permuted(g, split, [0, 2, 1, *range(3, 3 + len(rest))])
    return g.call(aten.reshape.default, swapped, [-1, channels, *rest])


@rule("slice")
def _slice(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    return sliced(g, a["self"], a["dim"], a["start"], a["end"], a["step"])


@rule("copy")
def _copy(_g: CanonicalGraph, _node: Node, a: Arguments) -> Any:
    if is_constant(a["src"]) or shape_of(a["src"]) != shape_of(a["self"]):
        raise refusal_of("repeat")
    return a["src"]


@rule("slice_scatter")
def _slice_scatter(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    """What is before, instead of and behind the slice, joined."""
    x, part = a["self"], a["src"]
    axis = positive_axis(a["dim"], len(shape_of(x)))
    if axis == 0:  # refused, unless it is all images
        sliced(g, x, 0, a["start"], a["end"], a["step"])
        return part
    size = shape_of(x)[axis]
    first, last, step = slice(a["start"], a["end"], a["step"]).indices(size)
    if step != 1 or is_constant(x) or is_constant(part):
        raise Refusal(
            "writes a constant, or to every so many elements",
            "Join activations by torch.cat instead",
        )
    parts = [part]
    if first > 0:
        parts.insert(0, sliced(g, x, axis, 0, first))
    if last < size:
        parts.append(sliced(g, x, axis, last, size))
    return part if len(parts) == 1 else g.call(aten.cat.default, parts, axis)


@rule("narrow")
def _narrow(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    return sliced(g, a["self"], a["dim"], a["start"], a["start"] + a["length"])


@rule("select")
def _select(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x = a["self"]
    axis = positive_axis(a["dim"], len(shape_of(x)))
    index = positive_axis(a["index"], shape_of(x)[axis])
    return reshaped(g, sliced(g, x, axis, index, index + 1), node.meta["val"].shape)


@rule("unbind")
def _unbind(g: CanonicalGraph, node: Node, a: Arguments) -> list[Node]:
    x = a["self"]
    axis = positive_axis(a["dim"], len(shape_of(x)))
    return [
        reshaped(g, sliced(g, x, axis, index, index + 1), value.shape)
        for index, value in enumerate(node.meta["val"])
    ]


@rule("split", "split_with_sizes", "chunk", "tensor_split")
def _split(g: CanonicalGraph, node: Node, a: Arguments) -> list[Node]:
    axis = positive_axis(a["dim"], len(shape_of(a["self"])))
    parts, start = [], 0
    for value in node.meta["val"]:
        size = value.shape[axis]
        parts.append(sliced(g, a["self"], axis, start, start + size))
        start += size
    return parts


def sliced(
    g: CanonicalGraph, x: Node, axis: int, start: Any = None, end: Any = None, step: int = 1
) -> Node:
    """Slice with bounds inside the axis, or ``x`` itself where nothing is cut off."""
    shape = shape_of(x)
    axis = positive_axis(axis, len(shape))
    whole = (start or 0) == 0 and step == 1
    if axis == 0:
        if whole and (end is None or (isinstance(end, int) and end >= 2**31)):
            return x
        raise Refusal("slices the batch", BATCH_STAYS)
    first, last, step = slice(start, end, step).indices(shape[axis])
    if (first, last, step) == (0, shape[axis], 1):
        return x
    image = row_image(x)
    if image is not None:
        return as_row(g, sliced(g, image, 2 * axis - 1, first, last, step))
    return g.call(aten.slice.Tensor, x, axis, first, last, step)


def assembled(g: CanonicalGraph, x: Node, cuts: Mapping[int, Sequence[Cut]]) -> Node:
    """Cuttings of a value beside each other.

    Args:
        g: to write to.
        x: a value.
        cuts: by axis, in the order of the result; those of two axes meet in corners.
    """
    if x.target is aten.permute.default and list(x.args[1]) in ([0, 2, 3, 1], [0, 2, 1]):
        source, order = x.args  # what has its channels last is held as what it was turned from
        moved = {order[axis]: parts for axis, parts in cuts.items()}
        return g.call(aten.permute.default, assembled(g, source, moved), order)
    image = row_image(x)
    if image is not None:
        return as_row(g, assembled(g, image, {2 * axis - 1: c for axis, c in cuts.items()}))
    return _beside(g, x, cuts, {})


def _beside(
    g: CanonicalGraph, x: Node, cuts: Mapping[int, Sequence[Cut]], chosen: Mapping[int, Cut]
) -> Node:
    """The cuttings of all axes of which none is chosen yet."""
    left = [axis for axis in sorted(cuts) if axis not in chosen]
    if left:
        axis = left[0]
        return joined(g, [_beside(g, x, cuts, {**chosen, axis: cut}) for cut in cuts[axis]], axis)
    for axis, cut in chosen.items():  # slices of its own, so that each cutting is one box
        x = sliced(g, x, axis, *cut)
    return x


def joined(g: CanonicalGraph, parts: Sequence[Node], axis: int) -> Node:
    """A concatenation; of rows, one of their images."""
    if len(parts) == 1:
        return parts[0]
    if any(row_image(part) for part in parts):
        images = [as_row_image(g, part) for part in parts]
        return as_row(g, g.call(aten.cat.default, images, 2 * axis - 1))
    return g.call(aten.cat.default, list(parts), axis)
