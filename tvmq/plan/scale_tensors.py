"""Whole tensors made larger or smaller, so that their best step is a power of two.

Where a tensor is made and read by layers with weights only, with nothing but ReLU, pooling, moves
and additions of like tensors between, it can be c times as large: what makes it multiplies weights
and bias by c, what reads it divides its weights by c, and the network computes the same up to the
rounding of float32. Tensors that are added or joined are scaled alike. A clamp takes its bounds
along. Inputs and outputs of the network stay, and so does what meets any other operator.

A step that may only be a power of two is off by up to a factor of 1.4 from the best one. For each
set of tensors that are scaled together c is chosen so that their steps are off by least, a tensor
of few bits counting more: its error grows with the square of its step, 4**-bits of its range.
Weights have to give back what c takes from their own steps; they have one for each channel, and
factors of products (``targets/product_factors.py``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from targets.errors import InputError
from tvmq.float_model import BatchNormStats, FloatModel, TensorScaling, constant_of
from tvmq.plan.plan import ValuePlan
from tvmq.regions import MOVES, PRODUCTS, op_of

aten = torch.ops.aten

HOMOGENEOUS = (aten.relu, aten.leaky_relu, aten.avg_pool2d, *MOVES)
"""Operators with f(c * x) = c * f(x) for c > 0; a padding only with zeros."""

LARGEST = 4.0
"""Of factors, and of what they divide by; whole powers of two are up to the step."""

TRIED = 32
"""Mantissas, evenly in log2."""


@dataclass(frozen=True)
class Family:
    """Tensors that can only be scaled together.

    Attributes:
        makers: layers that make them.
        readers: layers that read them.
        clamps: nodes whose bounds are scaled along.
        tensors: names of all nodes that hold them.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    clamps: tuple[str, ...]
    tensors: frozenset[str]


def find_families(graph_module: GraphModule) -> list[Family]:
    """Families in the order of the graph, without those that meet something that pins them."""
    root: dict[Node, Node] = {}
    pinned: set[Node] = set()
    used: dict[str, int] = {}
    for constant in graph_module.graph.find_nodes(op="get_attr"):
        used[constant.target] = used.get(constant.target, 0) + len(constant.users)

    def find(node: Node) -> Node:
        while root[node] is not node:
            node = root[node]
        return node

    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            continue
        root[node] = node
        op = op_of(node) if node.op == "call_function" else None
        sources = [a for a in node.all_input_nodes if a.op != "get_attr"]
        constants = [a for a in node.all_input_nodes if a.op == "get_attr"]
        if op in PRODUCTS and len(sources) == 1:
            if any(used[a.target] > 1 for a in constants):
                pinned |= {find(node), find(sources[0])}
        elif _passes(node, op) or (op in (aten.add, aten.cat) and not constants):
            whole = len(sources) > 1 or op is not aten.add
            for source in sources:
                root[find(source)] = find(node)
            if not whole:
                pinned.add(find(node))
        else:
            pinned |= {find(node), *(find(source) for source in sources)}
    fixed = {find(node) for node in pinned}
    groups: dict[Node, list[Node]] = {}
    for node in root:
        if find(node) not in fixed:
            groups.setdefault(find(node), []).append(node)
    return [_family(nodes) for nodes in groups.values()]


def _passes(node: Node, op: object) -> bool:
    if op is aten.constant_pad_nd:
        return len(node.args) < 3 or node.args[2] == 0
    return op in HOMOGENEOUS or op is aten.clamp


def _family(nodes: list[Node]) -> Family:
    inside = set(nodes)
    makers = tuple(n.name for n in nodes if op_of(n) in PRODUCTS)
    users = {user: None for n in nodes for user in n.users if user not in inside}
    users |= {n: None for n in nodes if op_of(n) in PRODUCTS and n.args[0] in inside}
    clamps = tuple(n.name for n in nodes if op_of(n) is aten.clamp)
    return Family(makers, tuple(u.name for u in users), clamps, frozenset(n.name for n in nodes))


def scale_tensors(
    model: FloatModel, free: Mapping[str, ValuePlan], left: Collection[Family] = ()
) -> FloatModel:
    """The same function with tensors as large as suits powers of two.

    Args:
        model: left as it is.
        free: the best steps of its values if they may be anything.
        left: families that stay as they are.

    Returns:
        A model with another fingerprint, if anything changed, and ``scaling`` that says what.
    """
    families = [family for family in find_families(model.graph_module) if family not in left]
    factors: dict[str, float] = {}
    for family in families:
        known = [(free[name].step, free[name].bits) for name in family.tensors if name in free]
        if not known or not family.makers:
            continue
        factor = best_factor(known)
        if factor != 1.0:
            factors[family.makers[0]] = factor
    count = len(families)
    sets = "1 set of tensors" if count == 1 else f"{count} sets of tensors"
    reason = f"{len(factors)} of {sets} scaled to steps that are powers of two"
    return scale_as(model, TensorScaling(factors, reason))


def best_factor(steps: list[tuple[float, int]]) -> float:
    """In [2**-0.5, 2**0.5): what brings steps closest to powers of two, in log2; 1 if none does.

    Args:
        steps: and bits of a code.
    """

    def off(shift: float) -> float:
        logs = ((math.log2(step) + shift, bits) for step, bits in steps)
        return sum(4.0**-bits * (x - math.floor(x + 0.5)) ** 2 for x, bits in logs)

    tried = [i / TRIED - 0.5 for i in range(TRIED)]
    best = min(tried, key=lambda shift: (off(shift), abs(shift)))
    return 2.0**best if off(best) < off(0.0) else 1.0


def scale_as(model: FloatModel, scaling: TensorScaling) -> FloatModel:
    """The same function with tensors scaled as it was done before.

    Raises:
        InputError: this network has no such tensors.
    """
    return _scaled(replace(model, scaling=scaling), scaling.factors)


def scale_further(model: FloatModel, factors: Mapping[str, float], words: str) -> FloatModel:
    """The same function with more of its tensors scaled.

    Args:
        model: perhaps with some tensors scaled.
        factors: of others, as in ``TensorScaling``.
        words: what these are, for the reason.
    """
    before = model.scaling or TensorScaling({}, "")
    assert not factors.keys() & before.factors.keys()
    scaling = TensorScaling({**before.factors, **factors}, f"{before.reason}{words}")
    return _scaled(replace(model, scaling=scaling), factors)


def _scaled(model: FloatModel, factors: Mapping[str, float]) -> FloatModel:
    """Scale one after the other: in another order, weights would be rounded otherwise."""
    if not factors:
        return model
    graph_module = copy.deepcopy(model.graph_module)
    nodes = {node.name: node for node in graph_module.graph.nodes}
    families = {f.makers[0]: f for f in find_families(graph_module) if f.makers}
    stats = dict(model.batch_norms)
    for name, factor in factors.items():
        family = families.get(name)
        if family is None or not 1 / LARGEST <= factor <= LARGEST:
            raise InputError(
                f"scaling.factors.{name} does not fit the network: no tensors that this layer is "
                "the first to make can be scaled by that. Remove the entry."
            )
        for maker in family.makers:
            for constant in nodes[maker].args[1:3]:
                if isinstance(constant, Node):
                    constant_of(graph_module, constant).mul_(factor)
            if known := stats.get(maker):
                stats[maker] = BatchNormStats(known.gamma * factor, known.beta * factor)
        for reader in family.readers:
            constant_of(graph_module, nodes[reader].args[1]).div_(factor)
        for clamp in family.clamps:
            node = nodes[clamp]
            bounds = [b if b is None else b * factor for b in node.args[1:]]
            node.args = (node.args[0], *bounds)
    graph_module.recompile()
    return model.changed(graph_module, batch_norms=stats)
