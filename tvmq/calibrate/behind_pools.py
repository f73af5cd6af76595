"""What is read of a value where max pools read it: the largest element of each window.

A range is chosen for the elements that occur, and may cut off the largest of them, since they are
few. Behind a global max pool they are all that is left. So a value that nothing reads but max
pools, behind moves and functions that keep the order of numbers, has the distribution of what is
left of it.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch.fx import Node

from relay_passes.frontend.pointwise import is_pointwise
from tvmq.float_model import FloatModel, constant_of
from tvmq.regions import MOVES, Regions, op_of, shape_of

aten = torch.ops.aten

Selection: TypeAlias = tuple[Node, ...]
"""Moves and max pools in the order in which they are applied to a value, the last one a pool. Any
other node stands for a change of sign."""

_SIZES = torch.logspace(-20, 6.5, 1_000, base=2, dtype=torch.float64)
_GRID = torch.cat([-_SIZES.flip(0), torch.zeros(1, dtype=torch.float64), _SIZES])
"""What functions are tried on."""


def find_selections(model: FloatModel, regions: Regions) -> dict[str, tuple[Selection, ...]]:
    """How each value is selected from that only max pools read, by its name."""
    finder = _Finder(model, regions)
    found = {}
    for name, value in regions.values.items():
        selections = None if value.joins else finder.follow(model.nodes[name], (), joined=False)
        if selections:
            found[name] = tuple(dict.fromkeys(selections))
    return found


def selected(tensor: torch.Tensor, selection: Selection) -> torch.Tensor:
    """The elements of a value that are left; float, any batch."""
    sign = 1
    for node in selection:
        if op_of(node) in MOVES:
            tensor = node.target(tensor, *node.args[1:], **node.kwargs)
        else:
            tensor, sign = -tensor, -sign
    return tensor * sign


class _Finder:
    """A walk from a value to what reads it."""

    def __init__(self, model: FloatModel, regions: Regions) -> None:
        self.model, self.regions = model, regions

    def follow(self, node: Node, behind: Selection, *, joined: bool) -> list[Selection] | None:
        """Selections of a value; None where something reads it in front of any pool.

        Args:
            node: holds elements of the value.
            behind: what selected them.
            joined: whether it holds other channels too.
        """
        steps = [(user, self._step(node, user, joined=joined)) for user in node.users]
        if not steps or any(step is None for _, step in steps):
            pools = [i for i, passed in enumerate(behind) if op_of(passed) is aten.max_pool2d]
            return [behind[: pools[-1] + 1]] if pools else None
        selections = []
        for user, step in steps:
            further = joined or op_of(user) is aten.cat
            found = self.follow(user, (*behind, *(step or ())), joined=further)
            if found is None:
                return None
            selections += found
        return selections

    def _step(self, node: Node, user: Node, *, joined: bool) -> Selection | None:
        """What a reader adds to a selection; None if it needs the elements themselves."""
        op = op_of(user)
        if op in MOVES and user.name in self.regions.carried:
            return (user,) if not joined or _keeps_channels(user) else None
        if op is aten.cat and user.name in self.regions.values:
            images = len(shape_of(user)) == 4 and int(user.args[1]) == 1
            return () if images else None
        direction = self._direction(user, joined=joined)
        return None if direction == 0 else () if direction > 0 else (user,)

    def _direction(self, node: Node, *, joined: bool) -> int:
        """1 if it nowhere falls, element by element, -1 if it nowhere rises, otherwise 0."""
        if is_pointwise(node.target):
            made = node.target(_GRID, *node.args[1:], **node.kwargs)
            steps = made[1:], made[:-1]
            return int((steps[0] >= steps[1]).all()) - int((steps[0] <= steps[1]).all())
        if op_of(node) is not aten.conv2d:
            return 0
        weight = constant_of(self.model.graph_module, node.args[1])
        alone = weight.shape[1:] == (1, 1, 1) and node.args[6] == len(weight)
        alone &= tuple(node.args[3]) == (1, 1) and not any(node.args[4])
        alone &= len(weight) == shape_of(node.args[0])[1] and not joined
        return alone * (int((weight > 0).all()) - int((weight < 0).all()))


def _keeps_channels(node: Node) -> bool:
    """Whether it does the same to each channel, however many there are."""
    return op_of(node) is aten.max_pool2d or (
        op_of(node) is aten.constant_pad_nd and len(node.args[1]) <= 4
    )
