"""How images get other heights and widths: transposed convolution, upsampling, pixel shuffle.

Whatever makes an image from smaller ones is written as its phases, see ``interleaving.py``: a
transposed convolution as convolutions by those of its weights that meet an element, without a zero
multiplied, nearest upsampling as copies, and linear interpolation as depthwise convolutions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from relay_passes.frontend.pointwise import is_pointwise
from tvmq.capture.canonical_graph import CanonicalGraph, Refusal, is_constant, shape_of
from tvmq.capture.interleaving import Pair, Phase, Woven, unwoven, woven
from tvmq.capture.layout_rules import assembled, sliced
from tvmq.capture.rule_table import Arguments, RuleTable, pair
from tvmq.capture.selection_rules import gathered

aten = torch.ops.aten
rules = RuleTable()
rule = rules.rule
RESAMPLING_RULES = rules.by_name

LONGEST_PERIOD = 8
"""Phases per axis; an interpolation that repeats later is two products with constants."""

MOST_AT_ONCE = 16
"""Phases of both axes that are made at once; where there are more, one axis after the other."""


# ---- transposed convolution


@dataclass(frozen=True)
class _Taps:
    """What one phase of a transposed convolution reads along an axis.

    Attributes:
        first: the pixel that the first weight meets, for pixel 0 of the phase.
        apart: pixels from one weight to the next.
        weights: which of the kernel they are, by the pixels that they meet; none if none does.
    """

    first: int
    apart: int
    weights: tuple[int, ...]

    @property
    def reach(self) -> int:
        return self.first + self.apart * max(len(self.weights) - 1, 0)


def _taps(phase: int, kernel: int, stride: int, padding: int, dilation: int) -> _Taps:
    """Pixel s * k + phase is the sum of weight t times pixel k + (phase + padding - t * d) / s."""
    place = phase + padding
    meet = [t for t in range(kernel) if (place - t * dilation) % stride == 0]
    if not meet:
        return _Taps(0, 1, ())
    pixels = [(place - t * dilation) // stride for t in meet][::-1]
    return _Taps(pixels[0], pixels[1] - pixels[0] if len(meet) > 1 else 1, tuple(meet[::-1]))


@rule("conv_transpose2d")
def _conv_transpose2d(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, weight = a["input"], a["weight"]
    if len(shape_of(x)) != 4 or len(shape_of(weight)) != 4:
        raise Refusal(f"only images of a batch, got {len(shape_of(x))} axes")
    return transposed_convolution(g, node, a, x, weight)


def transposed_convolution(
    g: CanonicalGraph, node: Node, a: Arguments, x: Node, weight: Node
) -> Node:
    """The phases that a transposed convolution makes of its stride.

    Args:
        g: to write to.
        node: the exported one, of images or of rows.
        a: stride, padding, dilation, output_padding and groups, and the bias.
        x: (N, C, H, W).
        weight: (C, K / groups, kh, kw).
    """
    bias, groups = a["bias"], int(a["groups"])
    if not is_constant(weight) or (bias is not None and not is_constant(bias)):
        raise Refusal("weights that depend on the input")
    kernel = g.value(weight)
    inputs, outputs, *sides = kernel.shape
    kernel = kernel.reshape(groups, inputs // groups, outputs, *sides).transpose(1, 2)
    kernel = kernel.reshape(groups * outputs, inputs // groups, *sides)
    stride, padding, dilation, extra = (
        pair(a[name]) for name in ("stride", "padding", "dilation", "output_padding")
    )
    cut = [
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(
            shape_of(x)[2:], stride, padding, dilation, sides, extra, strict=True
        )
    ]
    size = -(-cut[0] // stride[0]), -(-cut[1] // stride[1])
    axes = [
        [_taps(phase, sides[n], stride[n], padding[n], dilation[n]) for phase in range(stride[n])]
        for n in (0, 1)
    ]
    # One convolution makes all phases that read the same pixels.
    alike: dict[Any, list[Pair]] = {}
    for i, j in itertools.product(range(stride[0]), range(stride[1])):
        reads = tuple((t.first, t.apart, len(t.weights)) for t in (axes[0][i], axes[1][j]))
        alike.setdefault(reads if groups == 1 else (i, j), []).append((i, j))
    phases: dict[Pair, Phase] = {}
    for members in alike.values():
        taps = [(axes[0][i], axes[1][j]) for i, j in members]
        name = f"{node.name}_phase_{members[0][0]}_{members[0][1]}"
        kernels = torch.cat([_sub_kernel(kernel, *both) for both in taps])
        weights_and_bias = [g.constant(f"{name}_weight", kernels)]
        if bias is not None:
            weights_and_bias.append(g.constant(f"{name}_bias", g.value(bias).repeat(len(members))))
        image = _windows(g, x, taps[0], size, weights_and_bias, groups)
        start = max(taps[0][0].first, 0), max(taps[0][1].first, 0)
        for n, place in enumerate(members):
            phases[place] = Phase(image, n * len(kernel), start)
    rows = tuple(tuple(phases[i, j] for j in range(stride[1])) for i in range(stride[0]))
    return woven(g, Woven(rows, len(kernel), size, (cut[0], cut[1])))


def _sub_kernel(kernel: torch.Tensor, rows: _Taps, columns: _Taps) -> torch.Tensor:
    """The weights of one phase; a zero where none meets it."""
    if not rows.weights or not columns.weights:
        return kernel.new_zeros(
            *kernel.shape[:2], len(rows.weights) or 1, len(columns.weights) or 1
        )
    return kernel[:, :, list(rows.weights)][:, :, :, list(columns.weights)]


def _windows(
    g: CanonicalGraph,
    x: Node,
    taps: tuple[_Taps, _Taps],
    size: Pair,
    weights_and_bias: Sequence[Node],
    groups: int,
) -> Node:
    """A convolution whose pixel ``max(first, 0)`` is the first of a phase of this size."""
    weight, bias = (*weights_and_bias, None)[:2]
    before = [max(0, -t.first) for t in taps]
    after = [
        max(0, t.reach + count - n) for t, count, n in zip(taps, size, shape_of(x)[2:], strict=True)
    ]
    if before != after:
        widths = [before[1], after[1], before[0], after[0]]
        x, before = g.call(aten.constant_pad_nd.default, x, widths, 0.0), [0, 0]
    apart = [t.apart for t in taps]
    return g.call(aten.conv2d.default, x, weight, bias, [1, 1], before, apart, groups)


# ---- upsampling, and downsampling without an average


@rule("upsample_nearest2d", "_upsample_nearest_exact2d")
def _nearest(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    return nearest(g, *_image_and_coordinates(node, a, torch.float32))


@rule("upsample_bilinear2d")
def _bilinear(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    return linear(g, node, *_image_and_coordinates(node, a, torch.float64))


Coordinates = list[float]
"""Of each row or column that is made, where it is read: between two, it is something of both."""


def _image_and_coordinates(
    node: Node, a: Arguments, dtype: torch.dtype
) -> tuple[Node, Coordinates, Coordinates]:
    """What is resized, and where its rows and columns are read, as torch itself says."""
    first, *others = (argument.name for argument in node.target._schema.arguments)
    x, rest = a[first], {name: a[name] for name in others}
    _, _, height, width = shape_of(x)
    rows = torch.arange(height, dtype=dtype)[:, None].expand(1, 1, height, width)
    columns = torch.arange(width, dtype=dtype).expand(1, 1, height, width)
    down = node.target(rows, **rest)[0, 0, :, 0].tolist()
    across = node.target(columns, **rest)[0, 0, 0].tolist()
    return x, [round(place, 9) for place in down], [round(place, 9) for place in across]


def nearest(g: CanonicalGraph, x: Node, rows: Coordinates, columns: Coordinates) -> Node:
    """Rows and columns of an image, repeated or left out.

    Args:
        g: to write to.
        x: (N, C, H, W).
        rows: whole numbers, rising.
        columns: likewise.
    """
    periods = [_inside(places, shape_of(x)[2 + axis]) for axis, places in ((0, rows), (1, columns))]
    down, across = periods
    if down and across and len(down.bases) * len(across.bases) <= MOST_AT_ONCE:
        return _copies(g, x, down, across)
    for axis, (places, found) in enumerate(zip((rows, columns), periods, strict=True)):
        still = _Period(1, shape_of(x)[3 - axis], (0.0,))
        if found is None:
            x = gathered(g, x, 2 + axis, [int(place) for place in places])
        else:
            x = _copies(g, x, found, still) if axis == 0 else _copies(g, x, still, found)
    return x


@dataclass(frozen=True)
class _Period:
    """Coordinates that repeat: the one of ``count * k + p`` is ``bases[p] + step * k``.

    Attributes:
        step: of the image that is read.
        size: of each phase.
        bases: where the first of each phase is read, at the edges perhaps outside of the image.
    """

    step: int
    size: int
    bases: tuple[float, ...]


def _period(places: Coordinates, size: int, longest: int = 64) -> _Period | None:
    """How coordinates repeat, beyond the edges of an image cut off; None if not that soon."""
    made = len(places)
    for count in range(1, min(longest, made) + 1):
        if made % count:
            continue
        for step in {round(size * count / made), round(places[-1] * count / max(made - 1, 1))}:
            bases = tuple(_base(places[phase::count], step, size) for phase in range(count))
            read = [bases[n % count] + n // count * step for n in range(made)]
            cut = [min(max(place, 0), size - 1) for place in read]
            near = all(abs(a - b) < 1e-6 for a, b in zip(cut, places, strict=True))
            if step > 0 and near:
                return _Period(step, made // count, bases)
    return None


def _inside(places: Coordinates, size: int) -> _Period | None:
    """How coordinates repeat that need no edge beyond which to read; None if they don't soon."""
    found = _period(places, size)
    if found is None or min(found.bases) < 0:
        return None
    last = max(found.bases) + found.step * (found.size - 1)
    return found if last < size else None


def _base(places: Coordinates, step: int, size: int) -> float:
    """The first coordinate of a phase, by one that no edge cuts off."""
    free = [n for n, place in enumerate(places) if 0 < place < size - 1] or [0]
    return round(places[free[0]] - free[0] * step, 9)


def _copies(g: CanonicalGraph, x: Node, down: _Period, across: _Period) -> Node:
    phases = tuple(
        tuple(
            Phase(x, 0, (int(row), int(column)), (down.step, across.step))
            for column in across.bases
        )
        for row in down.bases
    )
    return _woven(g, phases, shape_of(x)[1], down, across)


def _woven(
    g: CanonicalGraph,
    phases: tuple[tuple[Phase, ...], ...],
    channels: int,
    down: _Period,
    across: _Period,
) -> Node:
    whole = down.size * len(down.bases), across.size * len(across.bases)
    return woven(g, Woven(phases, channels, (down.size, across.size), whole))


def linear(g: CanonicalGraph, node: Node, x: Node, rows: Coordinates, columns: Coordinates) -> Node:
    """Linear interpolation of rows and columns.

    Where the coordinates of both axes repeat soon, each phase is one depthwise convolution of both;
    where there are many phases, of each axis; else rows or columns are multiplied by constants.

    Args:
        g: to write to.
        node: the exported one.
        x: (N, C, H, W).
        rows: rising.
        columns: likewise.
    """
    places = [rows, columns]
    for axis in (0, 1):
        if all(place == int(place) for place in places[axis]):
            still = [float(n) for n in range(shape_of(x)[3 - axis])]
            x = nearest(g, x, rows, still) if axis == 0 else nearest(g, x, still, columns)
            places[axis] = [float(n) for n in range(len(places[axis]))]
    down, across = (_period(places[axis], shape_of(x)[2 + axis], LONGEST_PERIOD) for axis in (0, 1))
    if down and across and len(down.bases) * len(across.bases) <= MOST_AT_ONCE:
        return _interpolated(g, node, x, down, across)
    for axis, found in ((0, down), (1, across)):
        still_period = _Period(1, shape_of(x)[3 - axis], (0.0,))
        if found is None:
            x = _by_products(g, node, x, places[axis], axis)
        elif found != _Period(1, shape_of(x)[2 + axis], (0.0,)):
            both = (found, still_period) if axis == 0 else (still_period, found)
            x = _interpolated(g, node, x, *both)
    return x


def _interpolated(g: CanonicalGraph, node: Node, x: Node, down: _Period, across: _Period) -> Node:
    """Each phase is a depthwise convolution by its parts of two rows and two columns."""
    channels = shape_of(x)[1]
    before, after = [], []
    for axis, period in ((0, down), (1, across)):
        before.append(max(0, -min(math.floor(base) for base in period.bases)))
        last = max(math.ceil(base) for base in period.bases) + period.step * (period.size - 1)
        after.append(max(0, last - shape_of(x)[2 + axis] + 1))
    x = _edges_repeated(g, x, before, after)
    phases = []
    for row, column in itertools.product(down.bases, across.bases):
        start = math.floor(row) + before[0], math.floor(column) + before[1]
        parts = torch.outer(_parts_of_two(row), _parts_of_two(column))
        step = down.step, across.step
        if parts.numel() == 1:
            phases.append(Phase(x, 0, start, step))
            continue
        weight = g.constant(
            f"{node.name}_{'_'.join(map(str, parts.shape))}_at_{row:g}_{column:g}".replace(
                "-", "m"
            ).replace(".", "_"),
            parts.float().expand(channels, 1, *parts.shape),
        )
        read = x
        if step != (1, 1):  # what is read by steps is cut out before, not thrown away after
            read, start = sliced(g, sliced(g, x, 2, start[0]), 3, start[1]), (0, 0)
        image = g.call(
            aten.conv2d.default, read, weight, None, list(step), [0, 0], [1, 1], channels
        )
        phases.append(Phase(image, 0, start))
    across_count = len(across.bases)
    rows = (phases[n : n + across_count] for n in range(0, len(phases), across_count))
    return _woven(g, tuple(tuple(row) for row in rows), channels, down, across)


def _parts_of_two(place: float) -> torch.Tensor:
    """What the pixels in front of a place and behind it count; one, where it lies on it."""
    part = place - math.floor(place)
    return torch.tensor([1 - part, part] if part else [1.0], dtype=torch.float64)


def _edges_repeated(
    g: CanonicalGraph, x: Node, before: Sequence[int], after: Sequence[int]
) -> Node:
    """An image with its first and last rows and columns that often more."""
    cuts = {}
    for axis in (0, 1):
        size = shape_of(x)[2 + axis]
        first, last = [(0, 1, 1)] * before[axis], [(size - 1, size, 1)] * after[axis]
        if first or last:
            cuts[2 + axis] = [*first, (0, size, 1), *last]
    return assembled(g, x, cuts) if cuts else x


def _by_products(g: CanonicalGraph, node: Node, x: Node, places: Coordinates, axis: int) -> Node:
    """Interpolation along an axis where each row or column that is made has weights of its own.

    Each is the sum of two of the image, multiplied by a constant tensor.
    """
    lows = [math.floor(place) for place in places]
    highs = [min(low + 1, shape_of(x)[2 + axis] - 1) for low in lows]
    behind = torch.tensor(places, dtype=torch.float64) - torch.tensor(lows)
    terms = []
    for name, read, part in (("front", lows, 1 - behind), ("behind", highs, behind)):
        shape = [1, 1, -1, 1] if axis == 0 else [1, 1, 1, -1]
        held = g.constant(f"{node.name}_{'rows' if axis == 0 else 'columns'}_{name}",
                          part.float().reshape(shape))  # fmt: skip
        parts = gathered(g, x, 2 + axis, read)
        terms.append(g.call(aten.mul.Tensor, parts, g.for_each_image(held)))
    return g.call(aten.add.Tensor, *terms)


# ---- pixels that lie in the channels


@rule("pixel_shuffle")
def _pixel_shuffle(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    x, factor = a["self"], int(a["upscale_factor"])
    if len(shape_of(x)) != 4:
        raise Refusal(f"only images of a batch, got {len(shape_of(x))} axes")
    _, channels, height, width = shape_of(x)
    count = channels // factor**2
    order = torch.arange(channels).reshape(count, factor**2).T.reshape(-1)
    x = _made_in_order(g, x, order) or regrouped(g, x, count)
    phases = tuple(
        tuple(Phase(x, (i * factor + j) * count) for j in range(factor)) for i in range(factor)
    )
    size = height, width
    if factor == 1:
        return x
    return woven(g, Woven(phases, count, size, (height * factor, width * factor)))


@rule("pixel_unshuffle")
def _pixel_unshuffle(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    x, factor = a["self"], int(a["downscale_factor"])
    if len(shape_of(x)) != 4:
        raise Refusal(f"only images of a batch, got {len(shape_of(x))} axes")
    if factor == 1:
        return x
    return regrouped(g, unwoven(g, x, factor, factor), factor**2)


def regrouped(g: CanonicalGraph, x: Node, groups: int) -> Node:
    """Channel k of each of G groups, for all k: (G, C / G) as (C / G, G)."""
    _, channels, *rest = shape_of(x)
    split = g.call(aten.reshape.default, x, [-1, groups, channels // groups, *rest])
    swapped = g.call(aten.permute.default, split, [0, 2, 1, *range(3, 3 + len(rest))])
    return g.call(aten.reshape.default, swapped, [-1, channels, *rest])


def _made_in_order(
    g: CanonicalGraph, x: Node, order: torch.Tensor, reader: Node | None = None
) -> Node | None:
    """The same channels in another order, made so by the convolution in front; None without one.

    Args:
        g: to write to.
        x: what nothing but its reader uses.
        order: of the channels.
        reader: of x; None if nothing reads it yet.
    """
    if x.op != "call_function" or set(x.users) - {reader}:
        return None

    def ordered(vector: Node) -> Node:
        return g.constant(f"{x.name}_{vector.name}_in_order", g.value(vector)[order])

    source, *rest = x.args
    if x.target is aten.conv2d.default:
        if x.args[6] != 1:
            return None
        weight, bias, *geometry = rest
        made_bias = None if bias is None else ordered(bias)
        return g.call(x.target, source, ordered(weight), made_bias, *geometry)
    if x.target is aten.batch_norm.default:
        rest[:4] = map(ordered, rest[:4])
    elif not is_pointwise(x.target):
        return None
    made = _made_in_order(g, source, order, x)
    if made is None:
        return None
    result = g.call(x.target, made, *rest, **x.kwargs)
    result.meta.update({"affine": True} if "affine" in x.meta else {})
    return result
