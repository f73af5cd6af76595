"""What a value is a rearrangement of, and the tokens that matrices are of.

A network moves its channels about to multiply matrices: (N, T, C) to (N, T, h, d) to (N, h, T, d).
Here the moves in front of a value are followed back, by moving the numbers of elements, so that a
rule can work on the tensor that was moved, which costs nothing, and move the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch.fx import Node

from tvmq.capture.canonical_graph import CanonicalGraph, shape_of
from tvmq.capture.interleaving import WOVEN
from tvmq.capture.layout_rules import sliced

aten = torch.ops.aten

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

    A woven image is not taken apart, see ``interleaving.py``.
    """
    moves: list[Node] = []
    while value.target in _KEEP_ALL and WOVEN not in value.meta:
        moves.insert(0, value)
        value = value.args[0]
    return value, moves


def of_base(g: CanonicalGraph, x: Node, function: Callable[[Node], Node]) -> Node:
    """An elementwise function of a value, computed where the value was not yet rearranged."""
    base, moves = base_of(x)
    cut = len(shape_of(x)) == 4 and base.target is aten.slice.Tensor
    if cut and token_origin(x) is not None:
        return matrices_of(g, function(tokens_of(g, x)), shape_of(x)[1])
    return moved_again(g, function(base), moves)


def moved_again(g: CanonicalGraph, value: Node, moves: list[Node]) -> Node:
    """The same moves of another value."""
    for move in moves:
        value = g.call(move.target, value, *move.args[1:])
    return value


def tokens_of(g: CanonicalGraph, matrices: Node) -> Node:
    """Tokens (N, T, h * d) whose heads matrices (N, h, T, d) are.

    They are what the matrices were made from, if it is that, or channels of it; otherwise the
    matrices are moved.
    """
    _, heads, count, depth = shape_of(matrices)
    found = token_origin(matrices)
    if found is None:
        moved = g.call(aten.permute.default, matrices, [0, 2, 1, 3])
        return g.call(aten.reshape.default, moved, [-1, count, heads * depth])
    tokens, first = found
    if len(shape_of(tokens)) == 4:
        flat = g.call(aten.reshape.default, tokens, [-1, shape_of(tokens)[1], count])
        tokens = g.call(aten.permute.default, flat, [0, 2, 1])
    return channels_of(g, tokens, first, first + heads * depth)


def channels_of(g: CanonicalGraph, tokens: Node, first: int, last: int) -> Node:
    """Some channels of tokens; those of a dense layer are a dense layer, with a step of its own."""
    if tokens.target is not aten.linear.default or (first, last) == (0, shape_of(tokens)[2]):
        return sliced(g, tokens, 2, first, last)
    x, weight, bias = tokens.args
    name = f"{weight.name}_{first}_{last}"
    rows = g.constant(name, g.value(weight)[first:last])
    if bias is not None:
        bias = g.constant(f"{bias.name}_{first}_{last}", g.value(bias)[first:last])
    made = next((n for n in x.users if n.target is tokens.target and n.args[1] is rows), None)
    return made or g.call(aten.linear.default, x, rows, bias)


def token_origin(matrices: Node) -> tuple[Node, int] | None:
    """The tokens or image that matrices (N, h, T, d) are made from, and the first channel of them.

    None where no tensor in front of them holds each of their rows as channels of one token.
    """
    _, heads, count, depth = shape_of(matrices)
    found = None
    for origin, elements in origins_of(matrices):
        shape = shape_of(origin)
        if len(shape) == 4:  # an image, whose pixels are tokens
            channels, pixels = shape[1], shape[2] * shape[3]
            elements = elements % pixels * channels + elements // pixels
        elif len(shape) == 3:
            pixels, channels = shape[1:]
        else:
            continue
        rows = elements[0].transpose(0, 1).reshape(count, heads * depth)
        first = int(rows[0, 0])
        last = first + heads * depth
        wanted = torch.arange(count)[:, None] * channels + torch.arange(first, last)
        if pixels == count and last <= channels and torch.equal(rows, wanted):
            found = origin, first
    return found


def matrices_of(g: CanonicalGraph, tokens: Node, heads: int) -> Node:
    """Tokens (N, T, h * d) as matrices (N, h, T, d)."""
    _, count, channels = shape_of(tokens)
    split = g.call(aten.reshape.default, tokens, [-1, count, heads, channels // heads])
    return g.call(aten.permute.default, split, [0, 2, 1, 3])
