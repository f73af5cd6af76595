"""In which order statements are visited, and with which indices of the loops around them.

    for i in range(2):          a: i = [0, 1]           turns [0, 4]
        a                       b: i = [0, 0, 1, 1]     turns [1, 2, 5, 6]
        for j in range(i + 1):     j = [0, 1, 0, 1] ...
            b

All visits of a statement are made at once: its loops' indices are arrays. Turns say in which order
visits follow each other, whatever statements they are of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from targets.npu.emit.loop_tree import Branch, Env, Leaf, Node, Sequence
from targets.npu.emit.numbers import Table


@dataclass(frozen=True)
class Visits:
    """Those of a statement.

    Attributes:
        leaf: the statement.
        env: of each loop around it, its indices.
        turns: increasing.
    """

    leaf: Leaf
    env: Env
    turns: Table

    def __len__(self) -> int:
        return len(self.turns)

    def part(self, which: Table) -> Visits:
        """Some of them."""
        env = {name: indices[which] for name, indices in self.env.items()}
        return Visits(self.leaf, env, self.turns[which])


def visits(tree: Node) -> list[Visits]:
    """Of all statements of a tree."""
    found, _ = _visits(tree, {}, 1)
    return [visits for visits, _ in found]


def _visits(node: Node, env: Env, count: int) -> tuple[list[tuple[Visits, Table]], int]:
    """What is visited where a node is entered so often, each with the number of the entrance.

    Turns are counted from each entrance; also gives how many there are at most.
    """
    if isinstance(node, Leaf):
        return [(Visits(node, env, np.zeros(count, np.int64)), np.arange(count))], 1
    if isinstance(node, Sequence):
        found, turns = [], 0
        for child in node.nodes:
            inside, more = _visits(child, env, count)
            found += [_moved(visits, turns, entered) for visits, entered in inside]
            turns += more
        return found, turns
    if isinstance(node, Branch):
        outside = np.flatnonzero(np.broadcast_to(node.condition.at(env), count))
        inner = {name: indices[outside] for name, indices in env.items()}
        inside, turns = _visits(node.body, inner, len(outside))
        return [(visits, outside[entered]) for visits, entered in inside], turns
    extents = np.broadcast_to(np.maximum(node.extent.at(env), 0), count)
    outside = np.repeat(np.arange(count), extents)
    index = np.arange(len(outside)) - np.repeat(np.cumsum(extents) - extents, extents)
    inner = {name: indices[outside] for name, indices in env.items()}
    inside, turns = _visits(node.body, {**inner, node.var: index}, len(outside))
    found = [_moved(visits, turns * index[entered], outside[entered]) for visits, entered in inside]
    return found, turns * int(extents.max(initial=0))


def _moved(visits: Visits, later: Table | int, entered: Table) -> tuple[Visits, Table]:
    return Visits(visits.leaf, visits.env, visits.turns + later), entered
