"""How images get other heights and widths: transposed convolution, upsampling, pixel shuffle.

Whatever makes an image from smaller ones is written as its phases, see ``interleaving.py``: a
transposed convolution as convolutions by those of its weights that meet an element, without a zero
multiplied, nearest upsampling as copies, and linear interpolation as depthwise convolutions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from relay_passes.frontend.pointwise import is_pointwise
from targets.refusal import Refusal
from tvmq.capture.canonical_graph import CanonicalGraph, is_constant, shape_of
from tvmq.capture.interleaving import Pair, Phase, Woven, unwoven, woven
from tvmq.capture.layout_rules import assembled, sliced
from tvmq.capture.operator_rules import computed
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


def _image(x: Node) -> Node:
    if len(shape_of(x)) != 4:
        raise Refusal(
            "only (N, C, H, W) can get another size",
            "Reshape to that before it",
            f"{len(shape_of(x))} axes",
        )
    return x


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
    return transposed_convolution(g, node, a, _image(a["input"]), a["weight"])


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
        raise computed("its weights")
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
    return interpolated(g, node, *_image_and_coordinates(node, a, torch.float64), linear_parts)


@rule("upsample_bicubic2d")
def _bicubic(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    x, rows, columns = _image_and_coordinates(node, a, torch.float64)
    return interpolated(g, node, x, rows, columns, _cubic_parts)


Coordinates = list[float]
"""Of each row or column that is made, where it is read: between two, it is something of both."""


def _image_and_coordinates(
    node: Node, a: Arguments, dtype: torch.dtype
) -> tuple[Node, Coordinates, Coordinates]:
    """What is resized, and where its rows and columns are read, as torch itself says."""
    first, *others = (argument.name for argument in node.target._schema.arguments)
    x, rest = a[first], {name: a[name] for name in others}
    target = node.target
    if "bicubic" in str(target):  # reads at the same places, beyond the edges too
        target = getattr(aten.upsample_bilinear2d, target._overloadname)
    _, _, height, width = shape_of(x)
    rows = torch.arange(height, dtype=dtype)[:, None].expand(1, 1, height, width)
    columns = torch.arange(width, dtype=dtype).expand(1, 1, height, width)
    down = target(rows, **rest)[0, 0, :, 0].tolist()
    across = target(columns, **rest)[0, 0, 0].tolist()
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


Parts = Callable[[float], tuple[int, torch.Tensor]]
"""For a place, the first pixel that an interpolation reads, and what it and those behind count."""


def linear_parts(place: float) -> tuple[int, torch.Tensor]:
    """Of the pixels in front of a place and behind it; of one, where it lies on it."""
    first = math.floor(place)
    part = place - first
    return first, torch.tensor([1 - part, part] if part else [1.0], dtype=torch.float64)


def _cubic_parts(place: float) -> tuple[int, torch.Tensor]:
    """Of two pixels on each side."""
    first = math.floor(place)
    if place == first:
        return linear_parts(place)
    far = (torch.arange(-1, 3, dtype=torch.float64) + (first - place)).abs()
    inner = (_CUBIC + 2) * far**3 - (_CUBIC + 3) * far**2 + 1
    outer = _CUBIC * (far**3 - 5 * far**2 + 8 * far - 4)
    return first - 1, torch.where(far <= 1, inner, outer)


_CUBIC = -0.75
"""The coefficient that torch takes."""


def interpolated(
    g: CanonicalGraph,
    node: Node,
    x: Node,
    rows: Coordinates,
    columns: Coordinates,
    parts: Parts,
) -> Node:
    """Interpolation of rows and columns.

    Where the coordinates of both axes repeat soon, each phase is one depthwise convolution of both;
    where there are many phases, of each axis; else rows or columns are multiplied by constants.

    Args:
        g: to write to.
        node: the exported one.
        x: (N, C, H, W).
        rows: rising.
        columns: likewise.
        parts: the kind of interpolation.
    """
    places = [rows, columns]
    for axis in (0, 1):
        if all(place == int(place) for place in places[axis]):
            still = [float(n) for n in range(shape_of(x)[3 - axis])]
            x = nearest(g, x, rows, still) if axis == 0 else nearest(g, x, still, columns)
            places[axis] = [float(n) for n in range(len(places[axis]))]
    down, across = (_period(places[axis], shape_of(x)[2 + axis], LONGEST_PERIOD) for axis in (0, 1))
    if down and across and len(down.bases) * len(across.bases) <= MOST_AT_ONCE:
        return _in_phases(g, node, x, (down, across), parts)
    for axis, found in ((0, down), (1, across)):
        still_period = _Period(1, shape_of(x)[3 - axis], (0.0,))
        if found is None:
            x = _by_products(g, node, x, axis, [parts(place) for place in places[axis]])
        elif found != _Period(1, shape_of(x)[2 + axis], (0.0,)):
            both = (found, still_period) if axis == 0 else (still_period, found)
            x = _in_phases(g, node, x, both, parts)
    return x


def _in_phases(
    g: CanonicalGraph, node: Node, x: Node, periods: tuple[_Period, _Period], parts: Parts
) -> Node:
    """Each phase is a depthwise convolution by its parts of some rows and columns."""
    channels = shape_of(x)[1]
    step = periods[0].step, periods[1].step
    read = [[parts(base) for base in period.bases] for period in periods]
    before, after = [], []
    for axis, period in enumerate(periods):
        before.append(max(0, -min(first for first, _ in read[axis])))
        last = max(first + len(part) for first, part in read[axis])
        last += period.step * (period.size - 1)
        after.append(max(0, last - shape_of(x)[2 + axis]))
    x = _edges_repeated(g, x, before, after)
    phases = []
    for (row, down), (column, across) in itertools.product(*read):
        start = row + before[0], column + before[1]
        kernel = torch.outer(down, across)
        if kernel.numel() == 1:
            phases.append(Phase(x, 0, start, step))
            continue
        weight = g.constant(
            f"{node.name}_{len(down)}_{len(across)}_phase_{len(phases)}",
            kernel.float().expand(channels, 1, *kernel.shape),
        )
        source = x
        if step != (1, 1):  # what is read by steps is cut out before, not thrown away after
            source, start = sliced(g, sliced(g, x, 2, start[0]), 3, start[1]), (0, 0)
        image = g.call(
            aten.conv2d.default, source, weight, None, list(step), [0, 0], [1, 1], channels
        )
        phases.append(Phase(image, 0, start))
    count = len(read[1])
    rows = tuple(tuple(phases[n : n + count]) for n in range(0, len(phases), count))
    return _woven(g, rows, channels, *periods)


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


def _by_products(
    g: CanonicalGraph, node: Node, x: Node, axis: int, read: Sequence[tuple[int, torch.Tensor]]
) -> Node:
    """Interpolation along an axis where each row or column that is made has weights of its own.

    It is a sum of rows or columns of the image, multiplied by constant tensors.

    Args:
        g: to write to.
        node: the exported one.
        x: (N, C, H, W).
        axis: 0 for rows.
        read: for each, the first that it is made of, and what that and those behind count.
    """
    last = shape_of(x)[2 + axis] - 1
    taps = max(len(parts) for _, parts in read)
    whole = [(first + 1 - taps // 2, parts) if len(parts) == 1 else (first, parts)
             for first, parts in read]  # fmt: skip
    result = None
    for tap in range(taps):
        weights = [
            float(tap == taps // 2 - 1) if len(parts) == 1 else float(parts[tap])
            for _, parts in whole
        ]
        places = [min(max(first + tap, 0), last) for first, _ in whole]
        shape = [1, 1, -1, 1] if axis == 0 else [1, 1, 1, -1]
        held = torch.tensor(weights).reshape(shape)
        name = f"{node.name}_{'rows' if axis == 0 else 'columns'}_{tap}"
        constant = g.for_each_image(g.constant(name, held))
        term = g.call(aten.mul.Tensor, gathered(g, x, 2 + axis, places), constant)
        result = term if result is None else g.call(aten.add.Tensor, result, term)
    return result


# ---- pixels that lie in the channels


@rule("pixel_shuffle")
def _pixel_shuffle(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    x, factor = _image(a["self"]), int(a["upscale_factor"])
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
    x, factor = _image(a["self"]), int(a["downscale_factor"])
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
