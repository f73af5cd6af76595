"""Channel mixing: channels in another order, so that neighbours want a like factor of products.

Groups of input channels that are scaled (``targets/product_factors.py``) are neighbours in the
tensor that a layer reads, so which channels share a factor depends on their order. Where channels
can change places (``channel_classes.py``) they are sorted by what would be best for each alone:

    rho[c] = sum(w * q) / sum(q * q)        q: the weights of input channel c, rounded

over all layers that read the channel. Weights, biases, norms and constants are permuted with it:
the network computes the same, and executing it costs nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch.fx import GraphModule, Node

from targets.errors import InputError
from tvmq.calibrate.calibrate import Calibration
from tvmq.calibrate.channel_ranges import ChannelRange
from tvmq.float_model import (
    BatchNormStats,
    FloatModel,
    Mixing,
    by_input_channel,
    constant_of,
    groups_of,
)
from tvmq.plan.channel_classes import ChannelClasses, Labels, Use, find_classes
from tvmq.plan.plan import WeightPlan
from tvmq.plan.weight_steps import weight_codes

Moved = dict[int, int]
"""Label -> the label whose content takes its place."""


def mix_channels(model: FloatModel, weights: Mapping[str, WeightPlan]) -> FloatModel:
    """The same network with channels sorted by the factors that they want.

    Args:
        model: left as it is.
        weights: of a plan of it, which say how weights are rounded.

    Returns:
        A model with another fingerprint, if anything changed, and ``mixing`` that says what.
    """
    classes = find_classes(model.graph_module)
    wanted = _wanted(model, classes, weights)
    moved: Moved = {}
    for labels in classes.classes:
        places = _places(classes, labels)
        best = sorted(places, key=lambda label: (wanted.get(label, 1.0), label))
        moved |= {a: b for a, b in zip(places, best, strict=True) if a != b}
    orders = {}
    for name, use in classes.makers.items():
        order = classes.order_of(use.labels, moved, use.groups)
        if (order != np.arange(len(order))).any():
            orders[name] = tuple(order.tolist())
    count = len(classes.makers)
    layers = "1 layer" if count == 1 else f"{count} layers"
    reason = f"channels of {len(orders)} of {layers} sorted by the factor that they want"
    return _rewritten(model, classes, moved, Mixing(orders, reason))


def mix_as(model: FloatModel, mixing: Mixing) -> FloatModel:
    """The same network with channels in the order in which they were before.

    Raises:
        InputError: this network's channels can't be in that order.
    """
    classes = find_classes(model.graph_module)
    free = {label for labels in classes.classes for label in labels.tolist()}
    moved: Moved = {}
    for name, order in mixing.orders.items():
        use = classes.makers.get(name)
        fits = use is not None and sorted(order) == list(range(len(use.labels)))
        if use is None or not fits:
            count = "no such layer" if use is None else f"{len(use.labels)} channels"
            raise InputError(
                f"mixing.orders.{name} does not fit the network: it has {count}, and an order "
                "names each channel once. Remove the entry."
            )
        pairs = zip(use.labels.tolist(), use.labels[list(order)].tolist(), strict=True)
        for label, other in pairs:
            if label != other and moved.setdefault(label, other) != other:
                raise InputError(_TORN.format(name=name))
    same_class = {label: n for n, labels in enumerate(classes.classes) for label in labels.tolist()}
    for label, other in moved.items():
        if label not in free or same_class.get(other) != same_class[label]:
            raise InputError(_TORN.format(name=next(iter(mixing.orders))))
    if sorted(moved) != sorted(moved.values()):
        raise InputError(_TORN.format(name=next(iter(mixing.orders))))
    return _rewritten(model, classes, moved, mixing)


_TORN = (
    "mixing.orders.{name} moves channels that others are tied to, which would stay or be "
    "elsewhere. Remove all of mixing.orders."
)


def mixed_calibration(model: FloatModel, calibration: Calibration, mixing: Mixing) -> Calibration:
    """How the values of a network are distributed once its channels are mixed.

    Args:
        model: before.
        calibration: of it.
        mixing: what is done to it.
    """
    classes = find_classes(model.graph_module)
    moved = _moved(classes, mixing)
    ranges = {}
    for name, known in calibration.channels.items():
        row = classes.rows.get(name)
        if row is not None and len(row) == len(known.low):
            order = torch.from_numpy(classes.order_of(row, moved, np.zeros_like(row)))
            known = ChannelRange(known.low[order], known.high[order])
        ranges[name] = known
    return replace(calibration, channels=ranges)


def _moved(classes: ChannelClasses, mixing: Mixing) -> Moved:
    moved: Moved = {}
    for name, order in mixing.orders.items():
        labels = classes.makers[name].labels
        moved |= dict(zip(labels.tolist(), labels[list(order)].tolist(), strict=True))
    return moved


def _wanted(
    model: FloatModel, classes: ChannelClasses, weights: Mapping[str, WeightPlan]
) -> dict[int, float]:
    """The best factor of each label over all layers that read it."""
    matched: dict[int, float] = {}
    energy: dict[int, float] = {}
    for use in classes.uses:
        if use.role != "columns":
            continue
        node, plan = use.node, weights[use.node.name]
        weight = model.weight_of(node)
        steps = torch.tensor(plan.steps, dtype=torch.float64)
        rounded = weight_codes(weight, plan) * steps.reshape(-1, *[1] * (weight.dim() - 1))
        exact, held = (by_input_channel(w.double(), node) for w in (weight, rounded))
        products = (exact * held).sum(dim=(1, 3)).flatten()
        squares = (held * held).sum(dim=(1, 3)).flatten()
        triples = zip(use.labels.tolist(), products.tolist(), squares.tolist(), strict=True)
        for label, product, square in triples:
            matched[label] = matched.get(label, 0.0) + product
            energy[label] = energy.get(label, 0.0) + square
    return {label: matched[label] / square for label, square in energy.items() if square}


def _places(classes: ChannelClasses, labels: Labels) -> list[int]:
    """The labels of a class in the order in which its widest reader has them."""
    inside = set(labels.tolist())
    readers = [use for use in classes.uses if use.role == "columns" and inside & {*use.labels}]
    if not readers:
        return sorted(inside)
    widest = max(readers, key=lambda use: np.isin(use.labels, labels).sum() * _rows(use))
    return [label for label in dict.fromkeys(widest.labels.tolist()) if label in inside]


def _rows(use: Use) -> int:
    return int(use.node.meta["val"].shape[1])


def _rewritten(
    model: FloatModel, classes: ChannelClasses, moved: Moved, mixing: Mixing
) -> FloatModel:
    if not moved:
        return replace(model, mixing=mixing)
    graph_module = copy.deepcopy(model.graph_module)
    nodes = {node.name: node for node in graph_module.graph.nodes}
    stats = dict(model.batch_norms)
    for use in classes.uses:
        order = classes.order_of(use.labels, moved, use.groups)
        _permute(graph_module, nodes[use.node.name], use.role, torch.from_numpy(order))
    for name, known in stats.items():
        row = classes.rows.get(name)
        if row is not None:
            order = classes.order_of(row, moved, np.zeros_like(row))
            stats[name] = BatchNormStats(known.gamma[order], known.beta[order])
    return model.changed(graph_module, batch_norms=stats, mixing=mixing)


def _permute(graph_module: GraphModule, node: Node, role: str, order: torch.Tensor) -> None:
    """Permute the constants of a use in place."""
    if role == "heads":
        return
    constants = [a for a in node.args[1:] if isinstance(a, Node) and a.op == "get_attr"]
    if role == "columns":
        weight = constant_of(graph_module, constants[0])
        groups = groups_of(node)
        each = by_input_channel(weight, node)
        for group, within in enumerate(order.reshape(groups, -1)):
            each[group] = each[group][:, within - group * each.shape[2]].clone()
        return
    for constant in constants:
        tensor = constant_of(graph_module, constant)
        axis = 0 if role == "rows" or tensor.dim() in (1, 4) else tensor.dim() - 1
        if node.target is torch.ops.tvmq.constant.default:
            axis = 1 if tensor.dim() != 3 else 2
        tensor.copy_(tensor.index_select(axis, order))
