"""How operators that pick, repeat or turn around elements of an axis are written: by cutting it.

Neighbouring elements are cut out together and the cuttings joined, which is one move of codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from targets.refusal import Refusal
from tvmq.capture.canonical_graph import BATCH_STAYS, CanonicalGraph, is_constant, shape_of
from tvmq.capture.layout_rules import Cut, assembled
from tvmq.capture.operator_rules import computed
from tvmq.capture.rule_table import Arguments, RuleTable, positive_axis

rules = RuleTable()
rule = rules.rule
SELECTION_RULES = rules.by_name


def gathered(g: CanonicalGraph, x: Node, axis: int, places: Sequence[int]) -> Node:
    """Elements of an axis, by their numbers."""
    return assembled(g, x, {axis: runs(places)})


def runs(places: Sequence[int]) -> list[Cut]:
    """Numbers as slices, of those that rise by the same step."""
    found: list[Cut] = []
    first = 0
    while first < len(places):
        last, step = first + 1, 1
        if last < len(places) and places[last] > places[first]:
            step = places[last] - places[first]
        while last < len(places) and places[last] - places[last - 1] == step:
            last += 1
        found.append((places[first], places[last - 1] + 1, step))
        first = last
    return found


def _axes_of(x: Node, axes: Sequence[int]) -> list[int]:
    found = [positive_axis(axis, len(shape_of(x))) for axis in axes]
    if 0 in found:
        raise Refusal("moves images of the batch", BATCH_STAYS)
    return found


@rule("roll")
def _roll(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    x = a["self"]
    if not a["dims"]:
        raise Refusal("rolls the batch along", "Name the axes behind it")
    cuts = {}
    for axis, shift in zip(_axes_of(x, a["dims"]), a["shifts"], strict=True):
        size = shape_of(x)[axis]
        if shift % size:
            first = size - shift % size
            cuts[axis] = [(first, size, 1), (0, first, 1)]
    return assembled(g, x, cuts) if cuts else x


@rule("flip")
def _flip(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    x = a["self"]
    for axis in _axes_of(x, a["dims"]):
        x = gathered(g, x, axis, range(shape_of(x)[axis])[::-1])
    return x


@rule("repeat", "tile")
def _repeat(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    x, counts = a["self"], list(a["repeats"] if "repeats" in a else a["dims"])
    rank = len(shape_of(x))
    counts = [1] * (rank - len(counts)) + counts
    if len(counts) > rank or counts[0] != 1:
        raise Refusal("repeats images of the batch", BATCH_STAYS)
    for axis, count in enumerate(counts):
        if count > 1:
            x = assembled(g, x, {axis: [(0, shape_of(x)[axis], 1)] * count})
    return x


@rule("repeat_interleave")
def _repeat_interleave(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    x, count = a["self"], a["repeats"]
    if a["dim"] is None or not isinstance(count, int):
        raise Refusal("repeats by a tensor, or along no axis", "Give a number and an axis")
    (axis,) = _axes_of(x, [a["dim"]])
    return gathered(g, x, axis, [n for n in range(shape_of(x)[axis]) for _ in range(count)])


@rule("index_select")
def _index_select(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    return _picked(g, a["self"], a["dim"], a["index"])


@rule("index")
def _index(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    given = {axis: index for axis, index in enumerate(a["indices"]) if index is not None}
    if len(given) != 1:
        raise Refusal("picks elements by several axes at once", "Pick along one after the other")
    ((axis, index),) = given.items()
    return _picked(g, a["self"], axis, index)


def _picked(g: CanonicalGraph, x: Node, axis: int, index: Any) -> Node:
    (axis,) = _axes_of(x, [axis])
    if not is_constant(index):
        raise computed("the numbers of the elements that it picks")
    numbers = g.value(index)
    if numbers.ndim != 1 or numbers.is_floating_point() or str(numbers.dtype) == "torch.bool":
        raise Refusal(
            "elements are picked otherwise than by a list of whole numbers",
            "Give the numbers of the elements, as a list or a buffer of integers of one axis",
            f"by {str(numbers.dtype)[6:]} of shape {list(numbers.shape)}",
        )
    size = shape_of(x)[axis]
    return gathered(g, x, axis, [positive_axis(int(n), size) for n in numbers])
