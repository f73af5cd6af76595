"""Bits of each value: those of the precision, and more at the ends of a network and in residuals.

What residual additions add and make is rounded again at every block, so few bits lose there what no
layer brings back: ``settings.residual_bits`` gives these values more, and nothing else.
"""

from __future__ import annotations

from dataclasses import replace

from tvmq.float_model import FloatModel
from tvmq.regions import Regions, Value, is_rounding
from tvmq.settings import Settings


def value_bits(model: FloatModel, regions: Regions, settings: Settings) -> dict[str, int]:
    """Bits of each value; more for inputs and outputs of the network and inputs of last layers."""
    precise = {name for name, value in regions.values.items() if value.is_input}
    precise |= {name for layer in regions.last for name in regions.layers[layer].inputs}
    precise |= regions.returned
    most = max(settings.activation_bits, settings.first_last_bits)
    bits = {name: most if name in precise else settings.activation_bits for name in regions.values}
    if settings.residual_bits:
        for name in residuals(model, regions):
            bits[name] = max(bits[name], settings.residual_bits)
    return bits


def raised(model: FloatModel, regions: Regions, settings: Settings) -> frozenset[str]:
    """Values that ``residual_bits`` gives more bits than they would have."""
    without = value_bits(model, regions, replace(settings, residual_bits=0))
    given = value_bits(model, regions, settings)
    return frozenset(name for name, bits in given.items() if bits > without[name])


def residuals(model: FloatModel, regions: Regions) -> frozenset[str]:
    """Values that residual additions add and make, and what is tied to them.

    A residual addition adds two tensors that depend on the image: a mask or a bias of positions
    that is added to scores is none. What is added to a residual, such as an embedding of positions,
    has its bits; so has an average of it, and all that is joined with it.
    """
    fixed = _without_image(regions)
    layers = regions.layers.values()
    additions = [
        ((*layer.inputs, layer.output) if layer.kind == "add" else (layer.residual, layer.output))
        for layer in layers
        if layer.kind == "add" or layer.residual
    ]
    averages = [
        (layer.inputs[0], layer.output)
        for layer in layers
        if layer.kind == "pool" and layer.output and not is_rounding(model.nodes[layer.name])
    ]
    joins = [(*value.joins, name) for name, value in regions.values.items() if value.joins]
    found = {name for names in additions if not fixed.intersection(names) for name in names}
    while True:
        more = {name for names in joins if found.intersection(names) for name in names}
        more |= {name for names in additions if names[-1] in found for name in names}
        more |= {average for source, average in averages if source in found}
        if more <= found:
            return frozenset(found)
        found |= more


def _without_image(regions: Regions) -> frozenset[str]:
    """Values that are the same for every image."""
    fixed = set[str]()

    def of_image(value: Value) -> bool:
        if value.joins:
            return not fixed.issuperset(value.joins)
        if not value.layer:
            return True
        layer = regions.layers[value.layer]
        return not fixed.issuperset((*layer.inputs, *filter(None, [layer.residual])))

    for name, value in regions.values.items():
        if not of_image(value):
            fixed.add(name)
    return frozenset(fixed)
