"""How many input channels of each layer have a factor of products in common.

A group costs one shift and addition per output and pixel, beside ``channels * taps`` multiply-adds:
relative ``1 / (channels * taps)``. Groups are as small as a share of all multiply-adds of the
network allows, which may be spent where it buys most groups: in layers with large kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import Node

from tvmq.float_model import FloatModel
from tvmq.plan.plan import WeightPlan
from tvmq.regions import aten, find_regions, is_depthwise, op_of, shape_of
from tvmq.settings import Settings

PRECISE_BITS = 8
"""Weights of so many bits leave nothing to factors of products."""


@dataclass(frozen=True)
class _Layer:
    """What the count of a layer depends on: multiply-adds of an output, and outputs of an image."""

    inputs: int
    taps: int
    outputs: int

    def operations(self, channels: int) -> int:
        """Shifts with an addition, for groups of so many channels."""
        return self.outputs * math.ceil(self.inputs / channels)

    def share(self, channels: int) -> float:
        """The same relative to its multiply-adds."""
        return math.ceil(self.inputs / channels) / (self.inputs * self.taps)


def product_groups(
    model: FloatModel, weights: Mapping[str, WeightPlan], settings: Settings
) -> dict[str, int]:
    """Input channels of a group, by name of layer; a layer without factors is not in it.

    Args:
        model: the float network.
        weights: of a plan of it; layers of 8 bits keep factors of 1.
        settings: the budget, in percent, or how many channels a group has whatever it costs; and
            the number that groups are multiples of.
    """
    layers, total = {}, 0
    for layer in find_regions(model).weighted:
        node = model.nodes[layer.name]
        inputs, *taps = model.weight_of(node).shape[1:]
        outputs = math.prod(shape_of(node)[1:])
        found = _Layer(inputs, math.prod(taps), outputs)
        total += outputs * inputs * found.taps
        if weights[layer.name].bits < PRECISE_BITS and can_be_scaled(node):
            layers[layer.name] = found
    if settings.product_channels:
        return {
            name: min(settings.product_channels, layer.inputs) for name, layer in layers.items()
        }
    allowed = settings.product_budget / 100 * total
    sizes = {name: _sizes(layer.inputs, settings.product_unit) for name, layer in layers.items()}
    shares = {layers[name].share(size) for name, known in sizes.items() for size in known}
    for share in sorted(shares, reverse=True):
        chosen = {
            name: next(size for size in known if layers[name].share(size) <= share)
            for name, known in sizes.items()
            if layers[name].share(known[-1]) <= share
        }
        if sum(layers[name].operations(size) for name, size in chosen.items()) <= allowed:
            return chosen
    return {}


def can_be_scaled(node: Node) -> bool:
    """Whether the channels that a layer reads make groups.

    Each output of a depthwise layer reads one channel, and behind a flattened image the pixels of
    a channel are channels.
    """
    if is_depthwise(node):
        return False
    source = node.args[0]
    if op_of(node) is aten.conv2d or op_of(source) is not aten.reshape:
        return True
    return shape_of(source)[1] == shape_of(source.args[0])[1] or len(shape_of(source)) > 2


def _sizes(inputs: int, unit: int) -> list[int]:
    """Groups of ``unit`` channels, twice as many, and so on, then of all together."""
    sizes = (unit * 2**n for n in range(inputs.bit_length()))
    return [*(size for size in sizes if size < inputs), inputs]
