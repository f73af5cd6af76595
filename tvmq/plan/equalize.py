"""Cross-layer equalization by powers of two: make the channels between two layers equally large.

Where one layer's channels are read by one other layer only, with nothing but ReLU or pooling
between, channel c can be made 2**-k[c] times as large there and its weights in the next layer
2**k[c] times: the float network gives the same bits. Weights per channel of both layers, and the
activation between, then need fewer different steps (arXiv 1906.04721, with scales that cost
nothing to undo). A clamp such as ReLU6 stands in the way: its bound would have to differ by
channel.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from tvmq.capture.capture import fingerprint_of
from tvmq.float_model import BatchNormStats, FloatModel, constant_of
from tvmq.regions import PRODUCTS, op_of, shape_of

aten = torch.ops.aten

PASSES = (aten.relu, aten.max_pool2d, aten.avg_pool2d)
"""Operators with f(2**k * x) = 2**k * f(x), exactly, that keep channels apart."""

MAX_SHIFT = 15
"""Scales stay within 2**-15 to 2**15, far from where float32 loses bits."""

SWEEPS = 40
"""Scales of neighbouring pairs depend on each other; they settle within a few sweeps."""


@dataclass(frozen=True)
class Pair:
    """Two layers and the channels between them."""

    first: Node
    second: Node


def equalize(model: FloatModel) -> FloatModel:
    """The same function with weights whose channels are as equal as powers of two make them.

    Args:
        model: left as it is.

    Returns:
        A model with another fingerprint and a note that says what was done.
    """
    graph_module = copy.deepcopy(model.graph_module)
    pairs, clamped = _find_pairs(graph_module)
    shifts = _settle(graph_module, pairs)
    stats = dict(model.batch_norms)
    for pair, shift in shifts.items():
        known = stats.get(pair.first.name)
        if known is not None:
            scale = torch.exp2(-shift.float())
            stats[pair.first.name] = BatchNormStats(known.gamma * scale, known.beta * scale)
    changed = [shift for shift in shifts.values() if bool(shift.any())]
    note = f"equalized channels between {len(changed)} of {len(pairs)} pairs of layers"
    if changed:
        largest = max(int(shift.abs().max()) for shift in changed)
        note += f", by up to 2^{largest}"
    if clamped:
        note += f"; {clamped} more have a clamp such as ReLU6 between them, which forbids it"
    return replace(
        model,
        graph_module=graph_module,
        batch_norms=stats,
        fingerprint=fingerprint_of(graph_module),
        notes=(*model.notes, note),
    )


def _find_pairs(graph_module: GraphModule) -> tuple[list[Pair], int]:
    """The pairs, in order, and how many a clamp prevents."""
    pairs, clamped = [], 0
    for node in graph_module.graph.nodes:
        if op_of(node) not in PRODUCTS or not _owns_constants(node):
            continue
        behind, clamps = _next_product(node)
        if behind is not None and _owns_constants(behind) and clamps:
            clamped += 1
        elif behind is not None and _owns_constants(behind):
            pairs.append(Pair(node, behind))
    return pairs, clamped


def _next_product(node: Node) -> tuple[Node | None, bool]:
    """The layer that alone reads this one's channels, and whether a clamp stands between."""
    clamps = False
    while len(node.users) == 1:
        (user,) = node.users
        op = op_of(user)
        if op in PRODUCTS:
            return (user if user.args[0] is node else None), clamps
        if op is aten.clamp:
            clamps = True
        elif op not in PASSES and not _flattens_points(user):
            break
        node = user
    return None, clamps


def _flattens_points(node: Node) -> bool:
    """Whether it is a reshape of N, C, 1, 1 to N, C."""
    if op_of(node) is not aten.reshape:
        return False
    before = shape_of(node.all_input_nodes[0])
    return before[2:] == (1, 1) and shape_of(node)[1:] == before[1:2]


def _owns_constants(node: Node) -> bool:
    """Whether nothing else uses its weight and bias."""
    used = [
        constant.target for constant in node.graph.find_nodes(op="get_attr") for _ in constant.users
    ]
    return all(used.count(arg.target) == 1 for arg in node.args[1:3] if isinstance(arg, Node))


def _settle(graph_module: GraphModule, pairs: list[Pair]) -> dict[Pair, torch.Tensor]:
    """Scale the constants until nothing changes; the sum of all shifts of each pair, int64[C]."""
    channels = {pair: len(_weight(graph_module, pair.first)) for pair in pairs}
    shifts = {pair: torch.zeros(channels[pair], dtype=torch.long) for pair in pairs}
    for _ in range(SWEEPS):
        moved = False
        for pair in pairs:
            more = _balance(graph_module, pair)
            total = (shifts[pair] + more).clamp(-MAX_SHIFT, MAX_SHIFT)
            more = total - shifts[pair]
            if more.any():
                _scale(graph_module, pair, more)
                shifts[pair], moved = total, True
        if not moved:
            break
    return shifts


def _balance(graph_module: GraphModule, pair: Pair) -> torch.Tensor:
    """int64[C]: k with 2**-k * first and 2**k * second nearest to each other; 0 where one is 0.

    Where k is not 0 the largest weight at the channel becomes smaller, and those elsewhere stay.
    So, sorted, the weights of the network decrease, and no sweep can undo what others did.
    """
    first = _weight(graph_module, pair.first).flatten(1).abs().amax(dim=1).double()
    second = torch.stack([w.abs().max() for w in _readers(graph_module, pair.second)]).double()
    both = (first > 0) & (second > 0)
    ratio = torch.where(both, first, 1.0) / torch.where(both, second, 1.0)
    return torch.round(torch.log2(ratio) / 2).long()


def _scale(graph_module: GraphModule, pair: Pair, shift: torch.Tensor) -> None:
    """Divide the channels of the first layer by 2**shift, multiply those that the second reads."""
    weight = _weight(graph_module, pair.first)
    down = torch.exp2(-shift.float())
    weight.mul_(down.reshape(-1, *[1] * (weight.ndim - 1)))
    bias = pair.first.args[2] if len(pair.first.args) > 2 else None
    if bias is not None:
        constant_of(graph_module, bias).mul_(down)
    for part, factor in zip(_readers(graph_module, pair.second), 1 / down, strict=True):
        part.mul_(factor)


def _weight(graph_module: GraphModule, node: Node) -> torch.Tensor:
    """float32[K, ...], shared with the module."""
    return constant_of(graph_module, node.args[1])


def _readers(graph_module: GraphModule, node: Node) -> Iterator[torch.Tensor]:
    """For each input channel, the part of the weight that reads it, shared with the module."""
    weight = _weight(graph_module, node)
    groups = int(node.args[6]) if len(node.args) > 6 else 1
    for rows in weight.chunk(groups):
        for channel in range(weight.shape[1]):
            yield rows[:, channel]
