"""Residuals are added with many bits and read with few: the rounding in front of convolutions.

A convolution whose input has 8 bits runs at the array's rate for 8 bits, whatever its weights have.
So where residuals get more bits (``tvmq/plan/value_bits.py``), a convolution that reads one reads a
copy rounded to the bits of all activations: an average pooling of single elements, which is a value
of its own with a step of its own. To every stage it is what any average pooling is; the array makes
it at the rate of depthwise layers, 2-bit codes from 8-bit ones.

What reads all bits of a residual: additions, poolings, norms and functions; depthwise convolutions,
which would not be faster; linear layers; the first and the last layers, whose bits are their own
(``settings.first_last_bits``); and the 1 x 1 convolution of a shortcut, by which a residual is
carried from one addition to the next.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from targets.errors import InputError
from tvmq.float_model import FloatModel, Origin, copy_of
from tvmq.plan.value_bits import raised, residuals
from tvmq.regions import Layer, Regions, find_regions, is_depthwise, is_rounding, rounding_of
from tvmq.settings import Settings

aten = torch.ops.aten


def round_reads(model: FloatModel, settings: Settings) -> FloatModel:
    """The network with residuals of ``settings.residual_bits`` rounded where they are read.

    It computes the same. Calibrate what comes out: the model itself without ``residual_bits``, and
    where ``residual_reads`` is "whole".

    Raises:
        InputError: ``residual_bits`` would change nothing of this network.
    """
    if not settings.residual_bits:
        return model
    regions = find_regions(model)
    rich = raised(model, regions, settings)
    if not rich:
        raise InputError(
            f"residual_bits is {settings.residual_bits}, and this network has no residual "
            "addition, or what they add and make has as many bits already. Leave it out."
        )
    if settings.residual_reads == "whole":
        return model
    readers: dict[str, list[str]] = {}
    for layer in _rounding_readers(model, regions, rich):
        readers.setdefault(model.nodes[layer.name].args[0].name, []).append(layer.name)
    graph_module, origins = copy_of(model.graph_module), dict(model.origins)
    nodes = {node.name: node for node in graph_module.graph.nodes}
    for source, names in readers.items():
        rounded = _insert(nodes[source])
        for name in names:
            nodes[name].replace_input_with(nodes[source], rounded)
        origins[rounded.name] = origins.get(names[0], Origin())
    graph_module.graph.lint()
    graph_module.recompile()
    return model.changed(graph_module, origins=origins)


def whole_reads(model: FloatModel) -> FloatModel:
    """The network without such roundings."""
    graph_module = copy_of(model.graph_module)
    for node in list(graph_module.graph.nodes):
        if is_rounding(node):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    graph_module.recompile()
    return model.changed(graph_module)


def _rounding_readers(model: FloatModel, regions: Regions, rich: frozenset[str]) -> list[Layer]:
    """Convolutions that would run at the rate of residuals, but for those of shortcuts."""
    carriers = residuals(model, regions)

    def of_shortcut(layer: Layer) -> bool:
        kernel = model.weight_of(model.nodes[layer.name]).shape[2:]
        return layer.output in carriers and tuple(kernel) == (1, 1)

    return [
        layer
        for layer in regions.weighted
        if layer.kind == "conv"
        and layer.inputs[0] in rich
        and layer.name not in regions.first | regions.last
        and not is_depthwise(model.nodes[layer.name])
        and not of_shortcut(layer)
    ]


def _insert(source: Node) -> Node:
    graph = source.graph
    with graph.inserting_after(source):
        node = graph.create_node(
            *("call_function", aten.avg_pool2d.default),
            (source, [1, 1], [1, 1], [0, 0], False, True, None),
            name=rounding_of(source),
        )
    node.meta["val"] = source.meta["val"]
    return node
