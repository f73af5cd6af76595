"""What a value is a rearrangement of.

A network moves its channels about to multiply matrices: (N, T, C) to (N, T, h, d) to (N, h, T, d).
Here the moves in front of a value are followed back, by moving the numbers of elements, so that a
rule can work on the tensor that was moved, which costs nothing, and move the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.fx import Node

from tvmq.capture.canonical_graph import CanonicalGraph, shape_of

aten = torch.ops.aten

WOVEN = "woven"
"""Where ``meta`` of a node says what it is woven from, see ``interleaving.py``."""

_MOVES = (aten.reshape.default, aten.permute.default, aten.slice.Tensor)
_KEEP_ALL = (aten.reshape.default, aten.permute.default)


def origins_of(value: Node) -> Iterator[tuple[Node, torch.Tensor]]:
    """The value, and what it was rearranged or cut out of, the nearest first.

    Yields:
        a node, and for each element of the value (1, ...) the number of the node's element it is.
    """
    moves: list[Node] = []
    while True:
        shape = (1, *shape_of(value)[1:])
        elements = torch.arange(math.prod(shape)).reshape(shape)
        for move in moves:
            elements = move.target(elements, *move.args[1:])
        yield value, elements
        if value.target not in _MOVES:
            return
        moves.insert(0, value)
        value = value.args[0]


def base_of(value: Node) -> tuple[Node, list[Node]]:
    """What a value was rearranged from without a loss, and the moves from there.

    A woven image is not taken apart.
    """
    moves: list[Node] = []
    while value.target in _KEEP_ALL and WOVEN not in value.meta:
        moves.insert(0, value)
        value = value.args[0]
    return value, moves


def in_order_of_base(x: Node, value: torch.Tensor) -> torch.Tensor:
    """A tensor (1, ...) of the shape of a value, rearranged as what that was rearranged from."""
    base, _ = base_of(x)
    elements = next(elements for node, elements in origins_of(x) if node is base)
    moved = torch.empty(elements.numel(), dtype=value.dtype)
    moved[elements.reshape(-1)] = value.reshape(-1)
    return moved.reshape(1, *shape_of(base)[1:])


def moved_again(g: CanonicalGraph, value: Node, moves: list[Node]) -> Node:
    """The same moves of another value."""
    for move in moves:
        value = g.call(move.target, value, *move.args[1:])
    return value


def simplest(g: CanonicalGraph, value: Node) -> Node:
    """The value, or what it was made of by moves that together moved nothing, or cut one axis."""
    found = value
    for origin, elements in origins_of(value):
        if torch.equal(elements.reshape(-1), torch.arange(math.prod(shape_of(origin)[1:]))):
            found = origin
        elif (cut := _cut_of_one_axis(shape_of(origin)[1:], elements[0])) is not None:
            return g.call(aten.slice.Tensor, origin, *cut)
    if found is value or shape_of(found) == shape_of(value):
        return found
    if value.target is aten.reshape.default and value.args[0] is found:
        return value
    return g.call(aten.reshape.default, found, [-1, *shape_of(value)[1:]])


def _cut_of_one_axis(
    sizes: tuple[int, ...], elements: torch.Tensor
) -> tuple[int, int, int, int] | None:
    """Axis, start, end and step of the slice that some elements of a tensor are, one image's."""
    cut = [a for a, (n, m) in enumerate(zip(sizes, elements.shape, strict=False)) if n != m]
    if len(sizes) != elements.ndim or len(cut) != 1:
        return None
    (axis,) = cut
    stride = math.prod(sizes[axis + 1 :])
    indices = elements.movedim(axis, 0).reshape(len(elements.movedim(axis, 0)), -1)[:, 0]
    indices = indices // stride % sizes[axis]
    step = int(indices[1] - indices[0]) if len(indices) > 1 else 1
    if step < 1:
        return None
    start, end = int(indices[0]), int(indices[-1]) + 1
    numbers = torch.arange(math.prod(sizes)).reshape(sizes)
    taken = aten.slice.Tensor(numbers, axis, start, end, step)
    return (axis + 1, start, end, step) if torch.equal(taken, elements) else None
