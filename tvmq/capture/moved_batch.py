"""Values whose batch the program has not alone on axis 0, where the canonical graph has it.

A program may put the batch elsewhere for a while, (N, T, 3 C) to (3, N, h, T, d) or (T, N, C), or
join it with another axis, (N h, T, d). Such a value is held as a canonical node with the batch in
front and a note of where the program has its axes. Moves change the note; an operator along the
last axis works on the node; and a value whose batch has come back is a node like any other.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.fx import Node

from targets.refusal import Refusal
from tvmq.capture.canonical_graph import BATCH_STAYS, CanonicalGraph, is_constant, shape_of
from tvmq.capture.layout_rules import permuted, reshaped, sliced
from tvmq.capture.program_nodes import numeric_shape
from tvmq.capture.rule_table import Arguments, Rule, positive_axis

aten = torch.ops.aten


@dataclass(frozen=True)
class Moved:
    """A value of the program.

    Attributes:
        node: (N, ...) in the canonical graph.
        axes: for each axis of the program's value, which axes of the node it is made of.
        batch: size of axis 0 in the program, ``PRIME`` if it is dynamic.
    """

    node: Node
    axes: tuple[tuple[int, ...], ...]
    batch: int

    @property
    def sizes(self) -> list[int]:
        """Of the node's axes, the batch's as in the program."""
        return [self.batch, *shape_of(self.node)[1:]]

    @property
    def shape(self) -> list[int]:
        """Of the program's value."""
        return [math.prod(self.sizes[axis] for axis in group) for group in self.axes]


def as_moved(node: Node, batch: int) -> Moved:
    """A canonical node, whose batch is in front."""
    rank = len(shape_of(node))
    return Moved(node, tuple((axis,) for axis in range(rank)), batch)


def settled(g: CanonicalGraph, moved: Moved) -> Node | Moved:
    """The value as a node, if its batch is alone on axis 0."""
    if moved.axes[:1] != ((0,),):
        return moved
    order = [axis for group in moved.axes for axis in group]
    node = moved.node
    if order != sorted(order):
        node = permuted(g, node, order)
    return reshaped(g, node, moved.shape)


# ---- moves


def _axes_permuted(_g: CanonicalGraph, x: Moved, order: Sequence[int]) -> Moved:
    """With the program's axes in another order."""
    rank = len(x.axes)
    return Moved(x.node, tuple(x.axes[positive_axis(axis, rank)] for axis in order), x.batch)


def regrouped(g: CanonicalGraph, x: Moved, shape: Sequence[int]) -> Moved:
    """Of another shape, the elements in the same order.

    Raises:
        Refusal: an axis of it would hold a part of the batch, or parts of two axes.
    """
    refusal = Refusal(
        "a reshape splits the batch, or joins a part of one axis with another",
        "Reshape with x.shape[0] or -1 for the batch, and keep it whole",
        f"reshape of {x.shape} to {list(shape)}",
    )
    queue = [axis for group in x.axes for axis in group if axis == 0 or x.sizes[axis] != 1]
    left = {axis: x.sizes[axis] for axis in queue}
    pieces: dict[int, list[int]] = {axis: [] for axis in queue}  # sizes that an axis is cut into
    groups: list[list[tuple[int, int]]] = []  # (axis, which piece of it)

    def take(group: list[tuple[int, int]], size: int) -> None:
        axis = queue[0]
        group.append((axis, len(pieces[axis])))
        pieces[axis].append(size)
        left[axis] //= size
        if left[axis] == 1:
            queue.pop(0)

    for place, size in enumerate(shape):
        group: list[tuple[int, int]] = []
        groups.append(group)
        if size == 1 and queue[:1] == [0] and left[0] == 1:
            take(group, 1)
        while size != 1:
            if not queue:
                raise refusal
            if queue[0] == 0 and left[0] == 1:  # a batch of 1 stays off the channels, if it can
                take(groups[-2] if place == len(shape) - 1 and place else group, 1)
                continue
            common = math.gcd(left[queue[0]], size)
            whole = common == left[queue[0]]
            if common == 1 or (not whole and (queue[0] == 0 or common != size)):
                raise refusal
            take(group, common)
            size //= common
    if queue == [0] and left[0] == 1 and groups:
        take(groups[-1], 1)
    if queue:
        raise refusal
    return _renumbered(g, x, pieces, groups)


def _renumbered(
    g: CanonicalGraph,
    x: Moved,
    pieces: dict[int, list[int]],
    groups: list[list[tuple[int, int]]],
) -> Moved:
    """The node with its axes cut in pieces, and those numbered anew."""
    number: dict[tuple[int, int], int] = {}
    sizes: list[int] = []
    for axis in sorted(pieces):
        for i, size in enumerate(pieces[axis]):
            number[axis, i] = len(number)
            sizes.append(size)
    if (0, 0) not in number:
        raise Refusal("a reshape loses the batch", BATCH_STAYS)
    node = reshaped(g, x.node, [-1, *sizes[1:]])
    return Moved(node, tuple(tuple(number[piece] for piece in group) for group in groups), x.batch)


def cut(g: CanonicalGraph, x: Moved, axis: int, start: int, end: int, step: int = 1) -> Moved:
    """A slice along one of the program's axes."""
    (own,) = _own_axis(x, axis)
    node = sliced(g, x.node, own, start, end, step)
    return Moved(node, x.axes, x.batch)


def dropped(g: CanonicalGraph, x: Moved, axis: int) -> Moved:
    """Without an axis of size 1."""
    if x.shape[axis] != 1:
        raise Refusal(
            "drops an axis that is not of size 1", BATCH_STAYS, f"axis {axis} of {x.shape}"
        )
    shape = x.shape
    del shape[axis]
    return regrouped(g, x, shape)


def _own_axis(x: Moved, axis: int) -> tuple[int, ...]:
    group = x.axes[axis]
    if len(group) != 1 or group == (0,):
        raise Refusal("cuts the batch, or an axis that is joined with it", BATCH_STAYS)
    return group


# ---- rules


def _permute(g: CanonicalGraph, _node: Node, x: Moved, a: Arguments) -> Any:
    return _axes_permuted(g, x, a["dims"])


def _transpose(g: CanonicalGraph, _node: Node, x: Moved, a: Arguments) -> Any:
    rank = len(x.axes)
    order = list(range(rank))
    first, second = positive_axis(a["dim0"], rank), positive_axis(a["dim1"], rank)
    order[first], order[second] = second, first
    return _axes_permuted(g, x, order)


def _reshape(g: CanonicalGraph, node: Node, x: Moved, _a: Arguments) -> Any:
    return regrouped(g, x, numeric_shape(node, x.batch))


def _select(g: CanonicalGraph, _node: Node, x: Moved, a: Arguments) -> Any:
    axis = positive_axis(a["dim"], len(x.axes))
    index = positive_axis(a["index"], x.shape[axis])
    return dropped(g, cut(g, x, axis, index, index + 1), axis)


def _unbind(g: CanonicalGraph, _node: Node, x: Moved, a: Arguments) -> Any:
    axis = positive_axis(a["dim"], len(x.axes))
    return [dropped(g, cut(g, x, axis, i, i + 1), axis) for i in range(x.shape[axis])]


def _slice(g: CanonicalGraph, _node: Node, x: Moved, a: Arguments) -> Any:
    axis = positive_axis(a["dim"], len(x.axes))
    start, end, step = slice(a["start"], a["end"], a["step"]).indices(x.shape[axis])
    if (start, end, step) == (0, x.shape[axis], 1):
        return x
    return cut(g, x, axis, start, end, step)


def _split(g: CanonicalGraph, node: Node, x: Moved, a: Arguments) -> Any:
    axis = positive_axis(a["dim"], len(x.axes))
    parts, start = [], 0
    for value in node.meta["val"]:
        size = value.shape[axis]
        parts.append(cut(g, x, axis, start, start + size))
        start += size
    return parts


def _batch_norm(g: CanonicalGraph, node: Node, x: Moved, a: Arguments) -> Any:
    """Of vectors whose batch is joined with another axis."""
    if len(x.axes) != 2:
        raise Refusal("works on a value whose batch is not on axis 0", BATCH_STAYS)
    front, (groups, count) = _in_front(g, x, 1)
    shape = shape_of(front)
    rows = permuted(g, reshaped(g, front, [-1, math.prod(shape[1:-1]), shape[-1]]), [0, 2, 1])
    constants = [a[name] for name in ("weight", "bias", "running_mean", "running_var")]
    made = g.call(aten.batch_norm.default, rows, *constants, False, 0.0, a["eps"], False)
    back = reshaped(g, permuted(g, made, [0, 2, 1]), shape)
    result = Moved(back, (*groups, (1 + count,)), x.batch)
    return [result, None, None] if isinstance(node.meta["val"], tuple | list) else result


def _same(_g: CanonicalGraph, _node: Node, x: Moved, _a: Arguments) -> Any:
    return x


MovedRule = Callable[[CanonicalGraph, Node, Moved, Arguments], Any]

MOVED_RULES: dict[str, MovedRule] = {
    "permute": _permute,
    "transpose": _transpose,
    "select": _select,
    "unbind": _unbind,
    "slice": _slice,
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), _split),
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze",
         "view_copy", "_reshape_alias", "view_as", "reshape_as"),
        _reshape,
    ),
    **dict.fromkeys(
        ("dropout", "detach", "clone", "contiguous", "alias", "lift_fresh_copy", "_to_copy", "to"),
        _same,
    ),
}  # fmt: skip
"""Operators that only move; the value that they move is their first argument."""

ALONG_LAST = {
    **dict.fromkeys(("linear", "layer_norm", "native_layer_norm", "softmax", "_softmax"), 1),
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "neg", "relu", "relu6", "hardtanh"), 1),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "clip"), 1),
    **dict.fromkeys(("matmul", "bmm", "scaled_dot_product_attention"), 2),
}
"""Operators along the last axes, how many: for them the others are only many."""

_OPERANDS = ("self", "input", "other", "mat2", "query", "key", "value")


def batch_aware(name: str, rule: Rule | None) -> Rule:
    """A rule that takes values whose batch has moved, too.

    Args:
        name: of the operator.
        rule: for values that have it on axis 0; None if there is none.
    """
    move, kept = MOVED_RULES.get(name), ALONG_LAST.get(name, 1)

    def apply(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
        moved = [x for x in a.values() if isinstance(x, Moved)]
        if move is not None:
            return _moved(g, node, a, move, rule)
        assert rule is not None
        return _along(g, node, a, rule, kept) if moved else rule(g, node, a)

    return apply


def _moved(g: CanonicalGraph, node: Node, a: Arguments, move: MovedRule, rule: Rule | None) -> Any:
    x = a["self"] if "self" in a else a["input"]
    if isinstance(x, Node):
        if rule is None:
            return _settled(g, move(g, node, as_moved(x, g.program_batch), a))
        try:
            return rule(g, node, a)
        except Refusal as refusal:
            if is_constant(x) or node.target is aten.squeeze.default:  # of a batch of 1, by mistake
                raise
            with contextlib.suppress(Refusal):
                return _settled(g, move(g, node, as_moved(x, g.program_batch), a))
            raise refusal from None
    return _settled(g, move(g, node, x, a))


def _settled(g: CanonicalGraph, made: Any) -> Any:
    if isinstance(made, list):
        return [settled(g, each) if isinstance(each, Moved) else each for each in made]
    return settled(g, made)


def _along(g: CanonicalGraph, node: Node, a: Arguments, rule: Rule, kept: int) -> Any:
    """Apply a rule to values with the batch in front, the other axes in the program's order."""
    names = [name for name in _OPERANDS if isinstance(a.get(name), Moved | Node)]
    names = [name for name in names if not is_constant(a[name])]
    values = [a[name] for name in names]
    values = [as_moved(x, g.program_batch) if isinstance(x, Node) else x for x in values]
    if a.get("dim") is not None and positive_axis(a["dim"], len(values[0].axes)) != (
        len(values[0].axes) - 1
    ):
        raise Refusal(
            "works along an axis other than the last, of a value whose batch is not on axis 0",
            BATCH_STAYS,
        )
    nodes, place = zip(*(_in_front(g, x, kept) for x in values), strict=True)
    if any(other != place[0] for other in place):
        raise Refusal("reads values whose batches lie at different places", BATCH_STAYS)
    a = a | dict(zip(names, nodes, strict=True)) | ({"dim": -1} if "dim" in a else {})
    for name in ("self", "other", "tensor1", "tensor2"):
        if is_constant(a.get(name)):
            a = a | {name: _constant_in_front(g, a[name], values[0], kept)}
    made = rule(g, node, a)
    result = made[0] if isinstance(made, list) else made
    groups, count = place[0]
    if len(shape_of(result)) != 1 + count + kept:
        raise Refusal("changes the axes of a value whose batch is not on axis 0", BATCH_STAYS)
    axes = (*groups, *((1 + count + i,) for i in range(kept)))
    value = settled(g, Moved(result, axes, g.program_batch))
    return [value, *made[1:]] if isinstance(made, list) else value


def _constant_in_front(g: CanonicalGraph, constant: Node, x: Moved, kept: int) -> Node:
    """A constant beside a value, with its axes where ``_in_front`` has the value's."""
    value = g.value(constant)
    leading = x.axes[:-kept]
    if value.ndim <= kept or value.ndim > len(x.axes):
        return constant
    value = value.reshape([1] * (len(x.axes) - value.ndim) + list(value.shape))
    sizes: list[int] = []
    for place, group in enumerate(leading):
        if 0 not in group:
            sizes.append(value.shape[place])
            continue
        if value.shape[place] != 1:
            raise Refusal("a constant differs between the images of a batch", BATCH_STAYS)
        sizes += [1] * sum(
            not is_batch for is_batch, _ in groupby(group, key=lambda axis: axis == 0)
        )
    moved = value.reshape(1, *sizes, *value.shape[-kept:])
    name = "_".join(map(str, moved.shape))  # one name is one constant
    return g.constant(f"{constant.name}_in_order_{name}", moved)


def _in_front(
    g: CanonicalGraph, x: Moved, kept: int
) -> tuple[Node, tuple[tuple[tuple[int, ...], ...], int]]:
    """A value as (N, ..., last axes), and where its leading axes lie: groups of those, how many.

    Axes that the program has joined are one, but for the batch between them.
    """
    leading, last = x.axes[:-kept], x.axes[-kept:]
    behind = [axis for group in leading for axis in group if axis != 0]
    if len(behind) + 1 != sum(map(len, leading)):
        raise Refusal("works along the batch", BATCH_STAYS)
    order = [0, *behind, *(axis for group in last for axis in group)]
    node = x.node
    if order != sorted(order):
        node = permuted(g, node, order)
    sizes: list[int] = []
    groups: list[tuple[int, ...]] = []
    for group in leading:
        places: list[int] = []
        for is_batch, run in groupby(group, key=lambda axis: axis == 0):
            if not is_batch:
                sizes.append(math.prod(x.sizes[axis] for axis in run))
            places.append(0 if is_batch else len(sizes))
        groups.append(tuple(places))
    node = reshaped(g, node, [-1, *sizes, *x.shape[-kept:]])
    return node, (tuple(groups), len(sizes))
