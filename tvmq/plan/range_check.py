"""Which tensors, or channels of them, span so few steps that a layer loses what it needs of them.

One step holds a whole activation, and often all weights of a layer. What is much smaller than the
largest part of it then spans a few steps only, or less than one. That does no harm where the small
part matters little, as it mostly does; so it is weighed: a finding is where rounding the channels
that span few steps takes a tenth of all that a layer adds up, or makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch.fx import Node

from targets.arithmetic import MAX_SHIFT_SPREAD
from tvmq.calibrate.calibrate import Calibration
from tvmq.float_model import FloatModel, by_input_channel
from tvmq.plan.plan import Plan
from tvmq.plan.weight_steps import weight_codes
from tvmq.regions import Layer, Regions, aten, find_regions, op_of, shape_of

FEW = 4.0
"""Steps from the smallest to the largest element."""

STD = 1 / 6
"""Of that distance: the standard deviation that is assumed of a channel."""

OF_THE_CODES = 8
"""Codes of few bits have few steps for everybody: few is at most so small a part of them."""

SHARE = 0.1
"""Of the variance of what a layer adds up: these channels alone make an error 10 dB below it."""

Kind: TypeAlias = Literal["features", "channels", "joined", "weights"]

REMEDIES: dict[Kind, str] = {
    "features": "Give the features of the input like sizes: divide each by its own in front of the "
    "network, and multiply what the first layer has for it.",
    "channels": "Try --method equalize, or more bits.",
    "joined": "Scale the narrow branch up in front of the concatenation and what reads it down, or "
    "leave them apart.",
    "weights": "Try --granularity channel, --method wess or --method equalize.",
}


@dataclass(frozen=True)
class Finding:
    """Something that is too narrow for the step that it has.

    Attributes:
        kind: features of the network's input, channels of a tensor inside, a tensor that is joined
            with wider ones, or the weights of output channels.
        name: of the value or input, or of the layer whose weights they are.
        source: module and line of the user's model.
        channels: the narrow ones, in order; all of a joined tensor.
        count: channels in all.
        steps: that the narrowest and the widest of ``channels`` span.
        layer: what reads them, or has the weights; the concatenation where others read that.
        lost: of the variance of what ``layer`` adds up, or makes, in [0, 1].
        remedy: what to do.
    """

    kind: Kind
    name: str
    source: str
    channels: tuple[int, ...]
    count: int
    steps: tuple[float, float]
    layer: str
    lost: float
    remedy: str

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def check_ranges(model: FloatModel, plan: Plan, calibration: Calibration) -> tuple[Finding, ...]:
    """Findings in the order of the graph; none without ranges by channel.

    Args:
        model: the float network.
        plan: of this network.
        calibration: of the images that the plan was made from.
    """
    return tuple(_Check(model, plan, calibration).findings())


class _Check:
    """One pass over the layers."""

    def __init__(self, model: FloatModel, plan: Plan, calibration: Calibration) -> None:
        self.model, self.plan, self.calibration = model, plan, calibration
        self.regions: Regions = find_regions(model)
        nodes = model.graph_module.graph.find_nodes(op="placeholder")
        self.inputs = {n.name: spec.name for n, spec in zip(nodes, model.inputs, strict=True)}

    def findings(self) -> list[Finding]:
        weighted = list(self.regions.weighted)
        found = [self._read(layer) for layer in weighted]
        found += [self._weights(layer) for layer in weighted]
        found += self._joined_for_others({layer.name for layer in weighted})
        order = {name: i for i, name in enumerate(self.model.nodes)}
        return sorted((f for f in found if f is not None), key=lambda f: order[f.layer])

    def _read(self, layer: Layer) -> Finding | None:
        """Channels that a layer reads."""
        node = self.model.nodes[layer.name]
        source, name = node.args[0], layer.inputs[0]
        ranges = self.calibration.channels.get(source.name)
        squares = _squares(self.model.weight_of(node), node)
        if ranges is None or len(ranges.low) != squares.shape[0] * squares.shape[2]:
            return None
        value = self.plan.values[name]
        steps = ranges.span.double() / value.step
        narrow = (steps > 0) & (steps < few_steps(value.bits))
        noise = ((1 / 12) / (STD * steps[narrow]).square()).clamp(max=1)
        energy = squares * ranges.span.double().square().view(len(squares), 1, -1)
        lost = _share(energy.sum(1).flatten(), narrow, noise)
        if not layer.output:  # every output of the network matters to somebody
            lost = max(lost, _largest_share(energy, narrow, noise))
        if lost < SHARE:
            return None
        kind: Kind = "features" if self.regions.values[name].is_input else "channels"
        chosen = _indices(narrow)
        if branch := self._branch(source, chosen):
            kind, name, chosen = "joined", *branch
        return self._finding(kind, name, chosen, steps, layer.name, lost)

    def _branch(self, node: Node, narrow: Sequence[int]) -> tuple[str, tuple[int, ...]] | None:
        """The tensor and its channels of a concatenation, if the narrow ones are its."""
        if op_of(node) is not aten.cat or len(shape_of(node)) == 3 or int(node.args[1]) != 1:
            return None
        ends = [0]
        for part in node.args[0]:
            ends.append(ends[-1] + shape_of(part)[1])
        for part, (first, last) in zip(node.args[0], pairwise(ends), strict=True):
            if first <= narrow[0] and narrow[-1] < last and 2 * len(narrow) > last - first:
                return self.regions.carried[part.name], tuple(narrow)
        return None

    def _weights(self, layer: Layer) -> Finding | None:
        """Rows of weights that the step of the layer hardly tells from 0."""
        plan = self.plan.weights[layer.name]
        weight = self.model.weight_of(self.model.nodes[layer.name])
        rows, each = weight.double().flatten(1), torch.tensor(plan.steps, dtype=torch.float64)
        reach = rows.abs().amax(1)
        steps = 2 * reach / each
        alive = reach > reach.max() * 2.0**-MAX_SHIFT_SPREAD
        narrow = alive & (steps < few_steps(plan.bits))
        made = self.calibration.channels.get(layer.output)
        if not narrow.any() or not self.calibration.channels:
            return None
        if made is not None and len(made.low) == len(rows):
            energy = made.span.double().square()
        elif layer.output:
            return None
        else:  # every output of the network matters to somebody
            energy = alive.double()
        rounded = weight_codes(weight, plan).double().flatten(1) * each[:, None]
        noise = (rounded - rows)[narrow].square().sum(1) / rows[narrow].square().sum(1)
        lost = _share(energy, narrow, noise.clamp(max=1))
        if lost < SHARE:
            return None
        return self._finding("weights", layer.name, _indices(narrow), steps, layer.name, lost)

    def _joined_for_others(self, weighted: set[str]) -> list[Finding]:
        """Narrow tensors in concatenations that something else reads than layers with weights."""
        found = []
        for join in self.regions.values.values():
            if not join.joins or self.regions.readers[join.name] <= weighted:
                continue
            node = self.model.nodes[join.name]
            if len(shape_of(node)) == 3 or int(node.args[1]) != 1:
                continue  # tokens, of which one may be small: a class token
            plan = self.plan.values[join.name]
            for name in join.joins:
                histogram = self.calibration.histograms.get(name)
                if histogram is None or not histogram.limit:
                    continue
                steps = (histogram.high - histogram.low) / plan.step
                if 0 < steps < few_steps(plan.bits):
                    count = shape_of(self.model.nodes[name])[1]
                    spans = torch.full((count,), steps)
                    every = tuple(range(count))
                    found.append(self._finding("joined", name, every, spans, join.name, 1.0))
        return found

    def _finding(
        self,
        kind: Kind,
        name: str,
        channels: tuple[int, ...],
        steps: torch.Tensor,
        layer: str,
        lost: float,
    ) -> Finding:
        spans = steps[list(channels)]
        source = self.model.origins.get(name, "")
        return Finding(
            kind,
            self.inputs.get(name, name),
            str(source),
            channels,
            len(steps),
            (float(spans.min()), float(spans.max())),
            layer,
            lost,
            REMEDIES[kind],
        )


def few_steps(bits: int) -> float:
    """How many steps are few among codes of so many bits."""
    return min(FEW, 2**bits / OF_THE_CODES)


def _share(energy: torch.Tensor, narrow: torch.Tensor, noise: torch.Tensor) -> float:
    """Of the energy of all channels, [C], what noise takes, relative to that of the narrow ones."""
    total = float(energy.sum())
    return float(energy[narrow] @ noise) / total if total else 0.0


def _indices(mask: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.nonzero(mask).flatten())


def _largest_share(energy: torch.Tensor, narrow: torch.Tensor, noise: torch.Tensor) -> float:
    """The largest share of a sum, of all of a layer: energy is [groups, K / groups, C / groups]."""
    lost = torch.zeros(len(narrow), dtype=torch.float64)
    lost[narrow] = noise
    total = energy.sum(2)
    taken = (energy * lost.view(len(energy), 1, -1)).sum(2)
    return float((taken / total)[total > 0].max()) if bool((total > 0).any()) else 0.0


def _squares(weight: torch.Tensor, node: Node) -> torch.Tensor:
    """float64[groups, K / groups, C / groups]: the squares of what each sum has for an input."""
    return by_input_channel(weight, node).double().square().sum(3)
