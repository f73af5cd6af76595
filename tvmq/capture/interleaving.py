"""Images woven from smaller ones: what upsampling, transposed convolution and pixel shuffle end in.

Pixel (y, x) of an image of fy * fx phases is pixel (y // fy, x // fx) of phase (y % fy, x % fx).
With the channels last, as codes are held, weaving takes one concatenation and no arithmetic: phases
of one row beside each other in the channels, these beside each other in the columns, and the bytes
lie as those of the large image do.

What is applied to every element of a woven image, or to every element of a channel, is applied to
its phases in its place: there it is part of the layers that made them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from tvmq.capture.canonical_graph import CanonicalGraph, shape_of
from tvmq.capture.layout_rules import joined, sliced
from tvmq.capture.rearranged import WOVEN

aten = torch.ops.aten

Pair = tuple[int, int]


@dataclass(frozen=True)
class Phase:
    """Where an image holds a phase: pixel (y, x) is its pixel ``start + (y, x) * step``.

    Attributes:
        image: (N, n * C, H, W), n phases beside each other in the channels or the only one.
        channel: the first of the C channels.
        start: row and column of its pixel (0, 0).
        step: rows and columns from one of its pixels to the next.
    """

    image: Node
    channel: int = 0
    start: Pair = (0, 0)
    step: Pair = (1, 1)


@dataclass(frozen=True)
class Woven:
    """An image of phases.

    Attributes:
        phases: [fy][fx] of them.
        channels: C.
        size: height and width of a phase.
        cut: height and width that are kept of the image, at most fy and fx times that.
    """

    phases: tuple[tuple[Phase, ...], ...]
    channels: int
    size: Pair
    cut: Pair


def woven(g: CanonicalGraph, image: Woven) -> Node:
    """Write an image of phases: (N, C, *cut)."""
    rows = [joined(g, _parts(g, image, row), 1) for row in image.phases]
    across = len(image.phases[0])
    held = joined(g, rows, 3)
    size = image.size[0] * len(rows), image.size[1] * across
    result = with_channels_last(g, held, (*size, image.channels))
    for axis in (0, 1):
        result = sliced(g, result, 2 + axis, 0, image.cut[axis])
    if len(rows) * across > 1:
        result.meta[WOVEN] = image
    return result


def unwoven(g: CanonicalGraph, x: Node, down: int, across: int) -> Node:
    """The phases of an image in the channels: (N, down * across * C, H / down, W / across)."""
    _, channels, height, width = shape_of(x)
    h, w = height // down, width // across
    held = with_channels_last(g, x, (h, down * w, across * channels))
    return joined(g, [sliced(g, held, 3, n * w, (n + 1) * w) for n in range(down)], 1)


def on_phases(g: CanonicalGraph, x: Node, function: Callable[[Node, int], Node]) -> Node | None:
    """An image woven from what ``function`` makes of the images of phases; None if ``x`` is none.

    Args:
        g: to write to.
        x: a value.
        function: gets an image and how many phases it holds; works on channels alone.
    """
    image = x.meta.get(WOVEN)
    if image is None:
        return None
    made: dict[Node, Node] = {}
    for phase in (phase for row in image.phases for phase in row):
        if phase.image not in made:
            count = shape_of(phase.image)[1] // image.channels
            made[phase.image] = function(phase.image, count)
    phases = tuple(
        tuple(replace(phase, image=made[phase.image]) for phase in row) for row in image.phases
    )
    return woven(g, replace(image, phases=phases))


def with_channels_last(g: CanonicalGraph, x: Node, shape: tuple[int, int, int]) -> Node:
    """The elements of an image, in the order rows, columns, channels, in another (H, W, C)."""
    _, channels, height, width = shape_of(x)
    if (height, width, channels) == shape:
        return x
    last = g.call(aten.permute.default, x, [0, 2, 3, 1])
    return g.call(
        aten.permute.default, g.call(aten.reshape.default, last, [-1, *shape]), [0, 3, 1, 2]
    )


def _parts(g: CanonicalGraph, image: Woven, row: Sequence[Phase]) -> list[Node]:
    """Cuttings of the images that hold a row of phases; neighbours are one."""
    parts: list[Node] = []
    first = 0
    while first < len(row):
        phase, last = row[first], first + 1
        while last < len(row) and row[last] == replace(
            phase, channel=phase.channel + (last - first) * image.channels
        ):
            last += 1
        x = phase.image
        for axis in (0, 1):
            start, step = phase.start[axis], phase.step[axis]
            x = sliced(g, x, 2 + axis, start, start + (image.size[axis] - 1) * step + 1, step)
        channel = phase.channel
        parts.append(sliced(g, x, 1, channel, channel + (last - first) * image.channels))
        first = last
    return parts
