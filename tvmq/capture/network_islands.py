"""Which operators in the middle of a program stay in float: islands between what is quantized.

An island begins as operators that can't be quantized and are read by each other. It grows by what
lies between two of its own, so that it can run at once; by what reads anything else than floats of
each image, since only these have codes; and over what is no layer between it and another island,
which would only be quantized to be read in float again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from torch.fx import Node

from relay_passes.read_layers import MOST_AXES
from targets.refusal import Refusal
from tvmq.capture.network_ends import NetworkEnds, Program, is_foreign, is_only_for
from tvmq.capture.program_nodes import has_images_of_floats


@dataclass(frozen=True)
class NetworkIsland:
    """Nodes of a program that run in float at once.

    Attributes:
        nodes: what it computes.
        results: those that are read outside, in order.
    """

    nodes: frozenset[Node]
    results: tuple[Node, ...]


def islands_of(
    program: Program, refused: Mapping[Node, Refusal], along: Set[Node], ends: NetworkEnds
) -> tuple[tuple[NetworkIsland, ...], set[Node]]:
    """Group what stays in float in the middle of a network.

    Args:
        program: the network.
        refused: what can't be quantized and is at no end, and why.
        along: what must come along, since an island reads it in another form than it is held in.
        ends: what stays in float there.

    Returns:
        The islands; and what of ``refused`` can't be on one.
    """
    refused = {node: why for node, why in refused.items() if node not in ends}
    if any(node.op != "call_function" or node in ends.head for node in along):  # no floats
        return (), set(refused)
    seeds = {node for node in refused if node in program.live and node.op == "call_function"}
    floats = {*seeds, *ends.head, *ends.tail}
    hopeless = {node for node in seeds if is_foreign(node)} | {
        node for node in refused if node not in seeds and not is_only_for(program, node, floats)
    }
    grown = (seeds | (set(along) - set(ends.tail) - set(ends.head))) - hopeless
    while True:
        more = {*_behind_no_floats(program, grown, ends), *_between(program, grown)} - grown
        if not more:
            break
        grown |= more
    hopeless |= grown & {*ends.head, *ends.tail}
    islands = []
    for nodes in _parts(program, grown):
        results = tuple(n for n in program.nodes if n in nodes and _is_read(program, n, nodes))
        islands.append(NetworkIsland(frozenset(nodes), results))
        if not all(map(may_be_read, results)) or any(map(is_foreign, nodes)):
            hopeless |= nodes & refused.keys() or set(refused)
    return tuple(islands), hopeless


def _is_read(program: Program, node: Node, inside: set[Node]) -> bool:
    """Whether something outside reads more of it than its size."""
    outside = node.users.keys() - inside
    return any(user.op == "output" or user in program.live for user in outside)


def may_be_read(node: Node) -> bool:
    """Whether what is quantized may read the tensor, or make it for an island."""
    return has_images_of_floats(node) and node.meta["val"].ndim <= MOST_AXES


def _behind_no_floats(program: Program, grown: set[Node], ends: NetworkEnds) -> Iterator[Node]:
    """What reads something of an island that can't be quantized."""
    for node in grown:
        if not may_be_read(node):
            for user in node.users:
                if user in program.live and user not in ends and user.op == "call_function":
                    yield user


def _between(program: Program, grown: set[Node]) -> Iterator[Node]:
    """What lies between nodes of an island, and what is no layer between two islands."""
    parts = _parts(program, grown)
    behind = [program.behind(part) for part in parts]
    before = [program.before(part) for part in parts]
    for first, made in enumerate(behind):
        for second, read in enumerate(before):
            found = (made & read) - grown
            if first == second or not any(map(program.is_layer, found)):
                yield from found


def _parts(program: Program, grown: set[Node]) -> list[set[Node]]:
    """Nodes that are read by each other, in the order of the program."""
    parts: list[set[Node]] = []
    for node in program.nodes:
        if node not in grown:
            continue
        met = {node}.union(node.all_input_nodes)
        joined = [part for part in parts if not met.isdisjoint(part)]
        parts = [part for part in parts if part not in joined]
        parts.append({node}.union(*joined))
    return parts


def schedule(program: Program, islands: tuple[NetworkIsland, ...]) -> list[Node | NetworkIsland]:
    """Calls in an order in which everything is made before it is read, each island at once."""
    if not islands:
        return [node for node in program.nodes if node.op == "call_function"]
    owner: dict[Node, Node | NetworkIsland] = {n: i for i in islands for n in i.nodes}
    order: dict[Node | NetworkIsland, None] = {}
    for node in program.nodes:
        todo = [owner.get(node, node)]
        while todo:
            item = todo[-1]
            nodes = item.nodes if isinstance(item, NetworkIsland) else (item,)
            read = [owner.get(a, a) for n in program.sorted(nodes) for a in n.all_input_nodes]
            missing = [a for a in dict.fromkeys(read) if a not in order and a is not item]
            if missing:
                todo += missing
            else:
                order[todo.pop()] = None
    return [i for i in order if isinstance(i, NetworkIsland) or i.op == "call_function"]
