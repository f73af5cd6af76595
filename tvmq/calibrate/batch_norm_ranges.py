"""Ranges without data: what a network's own batch norms say about its activations.

Behind a batch norm, channel c is distributed around beta[c] with spread |gamma[c]|; taking it as
normal, each operator that follows changes mean, spread and bounds in a known way. The result is a
Calibration like the one from images, so everything behind it is the same.

Every element of a value is described by four numbers. The elements of a channel mostly share
theirs, which are then held once, whatever the size of the image; padding and what follows it make
the edges of an image differ from its middle, and then each element has its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from relay_passes.frontend.pointwise import is_pointwise
from targets.errors import InputError
from tvmq.calibrate.behind_pools import Selection, find_selections
from tvmq.calibrate.calibrate import BEHIND_POOLS, Calibration, with_joined
from tvmq.calibrate.channel_ranges import ChannelRange, channel_axis, watched_nodes
from tvmq.calibrate.observers import SIDE_BINS, Floats, Histogram
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import FloatModel, constant_of
from tvmq.regions import BOUNDS, MOVES, bounds_of, find_regions, op_of, shape_of

aten = torch.ops.aten
own = torch.ops.tvmq

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INPUT_KNOWN = "the bounds that mean and std give"
INPUT_ASSUMED = "assumed images normalised as for ImageNet (give --mean and --std if they are not)"

SPREADS = 6.0
"""Standard deviations beyond which a normal value is taken not to occur."""

UNBOUNDED = 1e30
"""In place of infinity where it is multiplied by 0."""

NAMED = 3
"""Values that a message names."""

POINTS = torch.linspace(-SPREADS, SPREADS, 241, dtype=torch.float64)
WEIGHTS = torch.softmax(-(POINTS**2) / 2, 0)
"""Quadrature of the standard normal distribution."""


@dataclass(frozen=True)
class Spread:
    """Normal elements, cut at bounds: ``clamp(normal(mean, std), low, high)``.

    The four are float64 and broadcast to the shape of the value with a batch of 1: [1, C, 1, 1]
    where the elements of a channel are alike, else [1, C, H, W].

    Attributes:
        mean: of the normal variable, before the cut.
        std: of the normal variable.
        low: -inf where unbounded.
        high: inf where unbounded.
    """

    mean: torch.Tensor
    std: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...]) -> Spread:
        """The same after an operator that moves, selects or pads with zeros.

        Args:
            move: the operator.
            shape: of the value that it reads.
        """
        parts = (self.mean, self.std, self.low, self.high)
        return Spread(*(_held(move(part.expand(1, *shape[1:]))) for part in parts))

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Spread:
        """Mean and spread after an elementwise function, by quadrature, with its bounds."""
        points = (self.mean[..., None] + self.std[..., None] * POINTS).clamp(
            self.low[..., None], self.high[..., None]
        )
        y = function(points)
        mean = y @ WEIGHTS
        variance = ((y - mean[..., None]) ** 2) @ WEIGHTS
        return Spread(mean, variance.sqrt(), y.amin(-1), y.amax(-1))


def ranges_from_batch_norm(
    model: FloatModel, preprocessing: Preprocessing | None = None
) -> Calibration:
    """Histograms of every value from batch-norm statistics alone.

    Args:
        model: the float network, with the statistics of its folded batch norms.
        preprocessing: mean and std of the images, where the user gave them; otherwise the usual
            normalisation of ImageNet is assumed, and the reason of the input says so.

    Raises:
        InputError: the network has no batch norm, or values that none describes; they are named. Or
            its input comes from a float end, or values from a float island, so that nothing is
            known of them.
    """
    if model.ends is not None and model.ends.head.operators:
        first = model.ends.head.operators[0]
        raise InputError(
            f"{first.kind} ({first.source}) and what else is in front of the first layer runs in "
            "float, and only images tell how large its values get; give some with --calib-data."
        )
    for island in model.islands.values():
        first = island.operators[0]
        raise InputError(
            f"{first.kind} ({first.source}) runs in float in the middle of the network, and only "
            "images tell how large its values get; give some with --calib-data."
        )
    if not model.batch_norms:
        raise InputError(
            "the network has no batch norms, which would say how large its values get; "
            "give images with --calib-data."
        )
    regions = find_regions(model)
    input_note = INPUT_KNOWN if _is_known(preprocessing) else INPUT_ASSUMED
    spreads: dict[Node, Spread] = {}
    histograms, channels = {}, {}
    watched, selections = watched_nodes(model, regions), find_selections(model, regions)
    for node in model.graph_module.graph.nodes:
        if node.op in ("get_attr", "output"):
            continue
        is_input = node.op == "placeholder"
        if is_input:
            spreads[node] = _input_spread(shape_of(node), preprocessing)
        elif (spread := _propagate(model, node, spreads)) is not None:
            spreads[node] = spread
        if node.name in watched and node in spreads:
            rank = len(shape_of(node))
            channels[node.name] = _channel_range(spreads[node], rank, uniform=is_input)
        value = regions.values.get(node.name)
        if value is not None and not value.joins and node in spreads:
            note = input_note if is_input else "batch-norm statistics"
            parts = [(spreads[node], math.prod(shape_of(node)[1:]))]
            if node.name in selections and not is_input:
                note = f"{note} {BEHIND_POOLS}"
                parts = [
                    _selected(spreads[node], each, shape_of(node)) for each in selections[node.name]
                ]
            histograms[node.name] = reduce(
                Histogram.merge, (_histogram(*part, note, uniform=is_input) for part in parts)
            )
    made = [name for name, value in regions.values.items() if not value.joins]
    _refuse_unknown(model, [name for name in made if name not in histograms])
    source = f"batch norms of the network (data-free); range of the input: {input_note}"
    return Calibration(with_joined(regions, histograms), source, channels=channels)


def _refuse_unknown(model: FloatModel, names: list[str]) -> None:
    if names:
        listed = ", ".join(f"{name} ({model.origins[name]})" for name in names[:NAMED])
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise InputError(
            f"nothing says how large {listed}{more} get: no batch norm stands in front; "
            "give images with --calib-data."
        )


def _is_known(preprocessing: Preprocessing | None) -> bool:
    return preprocessing is not None and preprocessing.mean is not None


def _input_spread(shape: tuple[int, ...], preprocessing: Preprocessing | None) -> Spread:
    """Exact bounds of normalised images with values in [0, 1]."""
    channels = shape[1]
    if preprocessing is not None and preprocessing.mean is not None and preprocessing.std:
        mean, std = _doubles(preprocessing.mean), _doubles(preprocessing.std)
        low, high = -mean / std, (1 - mean) / std
    else:
        mean, std = _doubles(IMAGENET_MEAN), _doubles(IMAGENET_STD)
        low, high = (-mean / std).amin(), ((1 - mean) / std).amax()
    per_channel = [x.expand(channels).reshape(1, -1, *[1] * (len(shape) - 2)) for x in (low, high)]
    low, high = per_channel
    return Spread(torch.zeros_like(low), torch.ones_like(low), low, high)


def _doubles(numbers: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _propagate(model: FloatModel, node: Node, spreads: dict[Node, Spread]) -> Spread | None:
    """The spread behind an operator; None where nothing is known."""
    shape = shape_of(node)
    statistics = model.batch_norms.get(node.name)
    if statistics is not None:
        behind = op_of(node) is aten.linear or len(shape) == 3  # tokens have their channels last
        across = [1] * (len(shape) - 2)
        sizes = [*across, -1] if behind else [-1, *across]
        mean, std = (
            x.double().reshape(1, *sizes) for x in (statistics.beta, statistics.gamma.abs())
        )
        return Spread(mean, std, torch.full_like(mean, -math.inf), torch.full_like(mean, math.inf))
    op = op_of(node)
    if op is aten.conv2d or op is aten.linear:
        source = spreads.get(node.all_input_nodes[0])
        if op is aten.linear or source is None or not _interpolates(model, node):
            return None
        return _between(source, constant_of(model.graph_module, node.args[1]).double(), node)
    if op is own.constant:
        value = constant_of(model.graph_module, node.args[1]).double()
        return Spread(value, torch.zeros_like(value), value, value)
    sources = [spreads.get(source) for source in node.all_input_nodes]
    known = [source for source in sources if source is not None]
    if len(known) < len(sources):
        return None
    if op is aten.cat:
        parts = node.args[0]  # of which one may be there several times
        shapes = [shape_of(part) for part in parts]
        return _joined([spreads[part] for part in parts], shapes, int(node.args[1]))
    if op is aten.mul:
        return _product(*(known * 2)[:2])
    if op is aten.add:
        terms = [k.mapped(lambda x: x) for k in (known * 2)[:2]]
        return Spread(
            terms[0].mean + terms[1].mean,
            (terms[0].std ** 2 + terms[1].std ** 2).sqrt(),
            (known * 2)[0].low + (known * 2)[1].low,
            (known * 2)[0].high + (known * 2)[1].high,
        )
    if op in (own.matmul_rows, own.matmul_columns, own.softmax):
        return None
    (x,) = known
    if op in BOUNDS:
        low, high = bounds_of(node)
        return Spread(x.mean, x.std, x.low.clamp(low, high), x.high.clamp(low, high))
    call, read = _call(node), shape_of(node.all_input_nodes[0])
    if is_pointwise(node.target):
        return x.mapped(call)
    if op is aten.avg_pool2d:
        return _averaged(x, call, read, shape)
    return _passed(x, node, read)


def _passed(x: Spread, node: Node, shape: tuple[int, ...]) -> Spread:
    """The spread of a value of this shape behind a move or a max pool."""
    assert op_of(node) in MOVES, node
    moved = x.moved(_call(node), shape)
    if op_of(node) is not aten.max_pool2d:
        return moved
    mean, std = _largest(math.prod(node.args[1]))
    return replace(moved, mean=moved.mean + mean * moved.std, std=std * moved.std)


def _largest(elements: int) -> tuple[float, float]:
    """Mean and standard deviation of the largest of so many standard normal elements.

    Neighbours resemble each other: they count as the square root of their number, as in averages.
    """
    below = torch.cumsum(WEIGHTS, 0) - WEIGHTS / 2
    density = torch.softmax(WEIGHTS.log() + (math.sqrt(elements) - 1) * below.log(), 0)
    mean = density @ POINTS
    return float(mean), float((density @ (POINTS - mean) ** 2).sqrt())


def _selected(x: Spread, selection: Selection, shape: tuple[int, ...]) -> tuple[Spread, int]:
    """The spread of what is left of a value of this shape, and the elements of an image."""
    sign = 1
    for node in selection:
        if op_of(node) in MOVES:
            x = _passed(x, node, shape)
            shape = tuple(_call(node)(torch.empty(1, *shape[1:], device="meta")).shape)
        else:
            x, sign = _negative(x), -sign
    return (x if sign > 0 else _negative(x)), math.prod(shape[1:])


def _negative(x: Spread) -> Spread:
    return Spread(-x.mean, x.std, -x.high, -x.low)


def _product(a: Spread, b: Spread) -> Spread:
    """The spread of a product of two independent values."""
    a, b = (
        Spread(
            cut.mean, cut.std, *(bound.clamp(-UNBOUNDED, UNBOUNDED) for bound in (x.low, x.high))
        )
        for x, cut in ((x, x.mapped(lambda y: y)) for x in (a, b))
    )
    corners = torch.stack(
        torch.broadcast_tensors(a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high)
    )
    variance = (a.mean * b.std) ** 2 + (b.mean * a.std) ** 2 + (a.std * b.std) ** 2
    return Spread(a.mean * b.mean, variance.sqrt(), corners.amin(0), corners.amax(0))


def _interpolates(model: FloatModel, node: Node) -> bool:
    """Whether a convolution gives something between neighbours of the same channel."""
    weight = constant_of(model.graph_module, node.args[1])
    inside = node.args[2] is None and not any(node.args[4])
    depthwise = node.args[6] == len(weight) == shape_of(node.args[0])[1]
    sums = weight.double().flatten(1).sum(1)
    return inside and depthwise and bool((weight >= 0).all() and ((sums - 1).abs() < 1e-5).all())


def _between(x: Spread, weight: torch.Tensor, node: Node) -> Spread:
    """The spread of an interpolation: neighbours resemble each other, so it is theirs."""
    read = shape_of(node.args[0])

    def mean(part: torch.Tensor) -> torch.Tensor:
        if part.shape[2:] == (1, 1):
            return part
        finite = part.expand(1, *read[1:]).clamp(-UNBOUNDED, UNBOUNDED)
        return _held(aten.conv2d(finite, weight, None, *node.args[3:]))

    return Spread(*(mean(part) for part in (x.mean, x.std, x.low, x.high)))


def _held(x: torch.Tensor) -> torch.Tensor:
    """One element per channel where all elements of each channel are equal."""
    first = x[(slice(None), slice(None), *[slice(1)] * (x.ndim - 2))]
    return first.clone() if bool((x == first).all()) else x


def _joined(spreads: list[Spread], shapes: list[tuple[int, ...]], axis: int) -> Spread:
    """The spread behind a concatenation of values of these shapes."""

    def join(parts: list[torch.Tensor]) -> torch.Tensor:
        if axis != 1 or len({part.shape[2:] for part in parts}) > 1:
            pairs = zip(parts, shapes, strict=True)
            parts = [part.expand(1, *shape[1:]) for part, shape in pairs]
        return torch.cat(parts, axis)

    names = ("mean", "std", "low", "high")
    return Spread(*(join([getattr(spread, name) for spread in spreads]) for name in names))


def _averaged(
    x: Spread,
    call: Callable[[torch.Tensor], torch.Tensor],
    read: tuple[int, ...],
    made: tuple[int, ...],
) -> Spread:
    """An average of A elements spreads less: by A^(1/4), since neighbours resemble each other."""
    cut = x.mapped(lambda y: y)
    mean, mean_of_squares = (_held(call(y.expand(1, *read[1:]))) for y in (cut.mean, cut.std**2))
    elements = math.prod(read[2:]) / math.prod(made[2:])
    return Spread(
        mean,
        mean_of_squares.sqrt() / max(elements, 1.0) ** 0.25,
        x.low.amin().expand_as(mean),
        x.high.amax().expand_as(mean),
    )


def _call(node: Node) -> Callable[[torch.Tensor], torch.Tensor]:
    target: Any = node.target
    return lambda x: target(x, *node.args[1:], **node.kwargs)


def _histogram(spread: Spread, elements: int, note: str, *, uniform: bool) -> Histogram:
    """Sum over the distinct elements; an input of the network counts as uniform in its bounds.

    Args:
        spread: of a value.
        elements: how many the value has in one image.
        note: for the histogram.
        uniform: in place of normal.
    """
    held = torch.broadcast_tensors(spread.mean, spread.std, spread.low, spread.high)
    parts = torch.stack([x.reshape(-1) for x in held])
    rows, counts = np.unique(parts.numpy().T, axis=0, return_counts=True)
    counts *= elements // parts.shape[1]
    mean, std, low, high = rows.T[:, :, None]
    least, most = (low, high) if uniform else _extremes(mean, std, low, high)
    histogram = Histogram(note=note)
    histogram.extend(float(least.min()), float(most.max()))
    if histogram.limit == 0.0:
        return histogram
    edges = histogram.edges
    for i, count in enumerate(counts):
        histogram.counts += count * _masses(edges, mean[i], std[i], least[i], most[i], uniform)
    return histogram


def _extremes(mean: Floats, std: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """The smallest and the largest element that occurs."""
    return np.clip(mean - SPREADS * std, low, high), np.clip(mean + SPREADS * std, low, high)


def _channel_range(spread: Spread, rank: int, *, uniform: bool) -> ChannelRange:
    """The extremes of each channel."""
    parts = torch.broadcast_tensors(spread.mean, spread.std, spread.low, spread.high)
    found = parts[2:]
    if not uniform:
        found = [torch.from_numpy(x) for x in _extremes(*(part.numpy() for part in parts))]
    low, high = found
    axis = channel_axis(rank)
    others = [i for i in range(rank) if i != axis]
    return ChannelRange(low.amin(others), high.amax(others))


def _masses(
    edges: Floats, mean: Floats, std: Floats, low: Floats, high: Floats, uniform: bool
) -> Floats:
    """Probability of each bin; what a bound cuts off lies in the bound's bin."""
    if uniform:
        below = (edges - low) / np.maximum(high - low, 1e-30)
    else:
        z = (edges - mean) / np.maximum(std, 1e-30) / math.sqrt(2)
        below = 0.5 * (1 + torch.erf(torch.from_numpy(z)).numpy())
    below = np.where(edges <= low, 0.0, np.where(edges > high, 1.0, np.clip(below, 0, 1)))
    masses = np.diff(below)
    assert masses.shape == (2 * SIDE_BINS,)
    return masses
