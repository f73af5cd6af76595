"""Reconstruction units: stretches of a network that are trained together, found from its graph.

Between two nodes at which a single tensor of codes is alive, nothing runs beside anything else:
such a stretch is a unit. A residual block, a bottleneck, an inverted residual or the half of a
transformer block has its input alive until the addition, so it comes out whole; a plain chain falls
apart into single layers. Where a network has too few such nodes (dense connections), its layers
become units of their own, with as many inputs as they read.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch.fx import Node

from tvmq.float_model import FloatModel
from tvmq.regions import Regions, find_regions

MOST_LAYERS = 12
"""A stretch with more layers with weights than this is cut into its layers."""


@dataclass(frozen=True)
class Unit:
    """Nodes that are trained together.

    Attributes:
        nodes: their names, in the order of the graph.
        layers: those with weights.
        values: those whose tensors are held in codes.
        inputs: nodes outside that are read; all carry codes.
        outputs: nodes inside that are read outside.
    """

    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    values: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """After its layers with weights."""
        return self.layers[0] if len(self.layers) == 1 else f"{self.layers[0]}..{self.layers[-1]}"


def find_units(model: FloatModel, *, whole_blocks: bool = True) -> tuple[Unit, ...]:
    """Cut a network into units, each with at least one layer with weights.

    Args:
        model: the float network.
        whole_blocks: keep what runs in parallel together; otherwise one unit per layer.
    """
    regions = find_regions(model)
    nodes = [n for n in model.graph_module.graph.nodes if n.op in ("call_function", "call_module")]
    if not nodes:
        return ()
    weighted = {layer.name for layer in regions.weighted}
    stretches: list[list[Node]] = []
    for stretch in _cut(nodes, _single_file(nodes, regions)):
        count = sum(node.name in weighted for node in stretch)
        if count > 1 and (count > MOST_LAYERS or not whole_blocks):
            stretches += _cut(stretch, _layer_ends(stretch, regions))
        else:
            stretches.append(stretch)
    units: list[list[Node]] = []
    pending: list[Node] = []
    for stretch in stretches:
        pending += stretch
        if any(node.name in weighted for node in pending):
            units.append(pending)
            pending = []
    if pending and units:
        units[-1] += pending
    return tuple(_unit(unit, weighted, regions) for unit in units)


def _cut(nodes: list[Node], ends: set[Node]) -> list[list[Node]]:
    """Nodes in pieces, each ending with a node of ``ends`` or the last."""
    places = [0, *(i + 1 for i, node in enumerate(nodes) if node in ends)]
    if places[-1] != len(nodes):
        places.append(len(nodes))
    return [nodes[first:last] for first, last in pairwise(places)]


def _single_file(nodes: list[Node], regions: Regions) -> set[Node]:
    """Nodes behind which nothing but their own codes is alive."""
    order = {node: i for i, node in enumerate(nodes)}
    last_use = {
        node: max((order.get(user, len(nodes)) for user in node.users), default=-1)
        for node in nodes
    }
    inputs = {a for node in nodes for a in node.all_input_nodes if a.op == "placeholder"}
    for node in inputs:
        last_use[node] = max(order.get(user, len(nodes)) for user in node.users)
    ends = set()
    alive = set(inputs)
    for i, node in enumerate(nodes):
        alive = {other for other in alive if last_use[other] > i}
        if last_use[node] > i:
            alive.add(node)
        if alive == {node} and node.name in regions.carried:
            ends.add(node)
    return ends


def _layer_ends(nodes: list[Node], regions: Regions) -> set[Node]:
    """The nodes at which a layer's value is complete and no half-done layer is alive."""
    order = {node: i for i, node in enumerate(nodes)}
    ends, open_until = set(), -1
    for i, node in enumerate(nodes):
        if node.name not in regions.carried:
            inside = [order[user] for user in node.users if user in order]
            open_until = max([open_until, *inside])
        elif i >= open_until and node.name in regions.values:
            ends.add(node)
    return ends


def _unit(nodes: list[Node], weighted: set[str], regions: Regions) -> Unit:
    inside = set(nodes)
    read = [a for node in nodes for a in node.all_input_nodes if a.op != "get_attr"]
    return Unit(
        tuple(node.name for node in nodes),
        tuple(node.name for node in nodes if node.name in weighted),
        tuple(node.name for node in nodes if node.name in regions.values),
        tuple(dict.fromkeys(a.name for a in read if a not in inside)),
        tuple(node.name for node in nodes if any(user not in inside for user in node.users)),
    )
