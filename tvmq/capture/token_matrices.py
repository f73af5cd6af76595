"""Matrices of tokens: which tokens they are, and how to write what is computed of them.

Attention multiplies matrices (N, h, T, d), a head each; what they were made of are tokens
(N, T, h * d), and an operator on those needs no transposition.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch.fx import Node

from tvmq.capture.canonical_graph import CanonicalGraph, shape_of
from tvmq.capture.layout_rules import permuted, reshaped, sliced
from tvmq.capture.rearranged import base_of, moved_again, origins_of

aten = torch.ops.aten


def of_base(g: CanonicalGraph, x: Node, function: Callable[[Node], Node]) -> Node:
    """An elementwise function of a value, computed where the value was not yet rearranged."""
    base, moves = base_of(x)
    if base.target is aten.slice.Tensor and len(shape_of(x)) in (4, 5):
        matrices = as_matrices(g, x)
        if token_origin(matrices) is not None:
            made = matrices_of(g, function(tokens_of(g, matrices)), *shape_of(matrices)[1:3])
            return reshaped(g, made, shape_of(x))
    return moved_again(g, function(base), moves)


def as_matrices(g: CanonicalGraph, x: Node) -> Node:
    """Matrices (N, ..., T, d) as (N, W, h, T, d): W windows of an image, h heads of each.

    One axis between batch and rows is either, whichever the tokens in front of it say.
    """
    *leading, count, depth = shape_of(x)[1:]
    windows, heads = math.prod(leading[:-1]), math.prod(leading[-1:])
    by_head = reshaped(g, x, [-1, windows, heads, count, depth])
    if len(leading) == 1 and token_origin(by_head) is None:
        by_window = reshaped(g, x, [-1, heads, 1, count, depth])
        return by_head if token_origin(by_window) is None else by_window
    return by_head


def tokens_of(g: CanonicalGraph, matrices: Node) -> Node:
    """Tokens (N, W * T, h * d) whose heads matrices (N, W, h, T, d) are.

    They are what the matrices were made from, if it is that, or channels of it; otherwise the
    matrices are moved.
    """
    _, windows, heads, count, depth = shape_of(matrices)
    found = token_origin(matrices)
    if found is not None:
        tokens, order = found
        chosen = _chosen(g, tokens, order)
        if chosen is not None and len(shape_of(tokens)) == 4:
            flat = reshaped(g, chosen, [-1, len(order), windows * count])
            return permuted(g, flat, [0, 2, 1])
        if chosen is not None:
            return chosen
    moved = matrices if heads == 1 else permuted(g, matrices, [0, 1, 3, 2, 4])
    return reshaped(g, moved, [-1, windows * count, heads * depth])


def matrices_of(g: CanonicalGraph, tokens: Node, windows: int, heads: int) -> Node:
    """Tokens (N, W * T, h * d) as matrices (N, W, h, T, d)."""
    _, count, channels = shape_of(tokens)
    split = reshaped(g, tokens, [-1, windows, count // windows, heads, channels // heads])
    return permuted(g, split, [0, 1, 3, 2, 4])


def token_origin(matrices: Node) -> tuple[Node, torch.Tensor] | None:
    """The tokens or image that matrices (N, W, h, T, d) are made from, and which channels of them.

    None where no tensor in front of them holds each of their rows as channels of one token.
    """
    _, windows, heads, count, depth = shape_of(matrices)
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
        rows = elements[0].transpose(1, 2).reshape(windows * count, heads * depth)
        order = rows[0]
        wanted = torch.arange(windows * count)[:, None] * channels + order
        inside = pixels == len(rows) and int(order.max()) < channels
        if inside and torch.equal(rows, wanted):
            found = origin, order
    return found


def image_of_channels(g: CanonicalGraph, image: Node) -> Node:
    """An image put together of channels of another, as layers choose them; or itself.

    So a convolution reads the values of attention, of which heads and channels were parted.
    """
    if image.target is not aten.reshape.default:
        return image
    shape = shape_of(image)
    pixels = torch.arange(math.prod(shape[2:]))
    for origin, elements in origins_of(image):
        if origin is image or shape_of(origin)[2:] != shape[2:] or len(shape) != 4:
            continue
        channels = elements[0].flatten(1)
        order, beside = channels[:, 0] // len(pixels), channels[:, 0] % len(pixels)
        if not beside.any() and torch.equal(channels, channels[:, :1] + pixels):
            return _chosen(g, origin, order) or image
    return image


def _chosen(g: CanonicalGraph, x: Node, order: torch.Tensor) -> Node | None:
    """Some channels of tokens or an image, without a move that costs; None if there is no way.

    Those of a dense layer are a dense layer, with a step of its own.
    """
    axis = 1 if len(shape_of(x)) == 4 else 2
    first, count = int(order[0]), len(order)
    if count == shape_of(x)[axis] and torch.equal(order, torch.arange(count)):
        return x
    if (made := _rows_chosen(g, x, order)) is not None:
        return made
    if torch.equal(order, torch.arange(first, first + count)):
        return sliced(g, x, axis, first, first + count)
    return None


def _rows_chosen(g: CanonicalGraph, x: Node, order: torch.Tensor) -> Node | None:
    """A layer with only some of its output channels; of a layer behind which others come, both."""
    args = list(x.args)
    if x.target is aten.batch_norm.default:
        source = _rows_chosen(g, args[0], order)
        if source is None:
            return None
        args[0], constants = source, range(1, 5)
    elif x.target is aten.linear.default or (x.target is aten.conv2d.default and args[6] == 1):
        constants = range(1, 3)
    else:
        return None
    # a constant is known by its name alone, so no two orders may share one
    name = f"{x.name}_{hashlib.sha256(order.numpy().tobytes()).hexdigest()}"
    for i in constants:
        if isinstance(args[i], Node):
            args[i] = g.constant(f"{args[i].name}_of_{name}", g.value(args[i])[order])
    twin = next((n for n in args[0].users if n.target is x.target and n.args == tuple(args)), None)
    return twin or g.call(x.target, *args)
