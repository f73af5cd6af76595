"""How what is put around an image is written: zeros as a pad, repeated pixels as cuttings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.fx import Node

from targets.refusal import Refusal
from tvmq.capture.canonical_graph import BATCH_STAYS, CanonicalGraph, shape_of
from tvmq.capture.layout_rules import as_row, row_image, sliced
from tvmq.capture.rule_table import Arguments, RuleTable
from tvmq.capture.selection_rules import gathered

aten = torch.ops.aten
rules = RuleTable()
rule = rules.rule
PADDING_RULES = rules.by_name

_SOURCE: Mapping[str, Callable[[int, int], int]] = {
    "reflect": lambda place, size: (size - 1) - abs((size - 1) - abs(place)),
    "replicate": lambda place, size: min(max(place, 0), size - 1),
    "circular": lambda place, size: place % size,
}
"""Which element of an axis of some size stands at a place before, in or behind it."""


@rule("pad", "constant_pad_nd")
def _pad(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    mode, value = a.get("mode", "constant"), a["value"]
    x, widths = a["self"], _by_axis(a["self"], a["pad"])
    if mode in _SOURCE:
        return _repeated(g, x, widths, _SOURCE[mode])
    if mode != "constant" or value not in (None, 0):
        raise Refusal(
            "only zeros can be padded",
            'Use mode="constant" and value 0, or pad the input outside of the network',
            f"mode {mode!r}" if mode != "constant" else f"value {value}",
        )
    return _zeros(g, x, widths)


@rule("reflection_pad1d", "reflection_pad2d")
def _reflection(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    x = a["self"]
    return _repeated(g, x, _by_axis(x, a["padding"]), _SOURCE["reflect"])


@rule("replication_pad1d", "replication_pad2d")
def _replication(g: CanonicalGraph, _node: Node, a: Arguments) -> Node:
    x = a["self"]
    return _repeated(g, x, _by_axis(x, a["padding"]), _SOURCE["replicate"])


def _by_axis(x: Node, widths: Sequence[int]) -> dict[int, tuple[int, int]]:
    """What torch gives from the last axis on, two numbers each: before and behind, unless 0."""
    last = len(shape_of(x)) - 1
    pairs = zip(widths[::2], widths[1::2], strict=True)
    found = {last - n: pair for n, pair in enumerate(pairs) if any(pair)}
    if 0 in found:
        raise Refusal("pads the batch", BATCH_STAYS)
    return found


def _zeros(g: CanonicalGraph, x: Node, widths: Mapping[int, tuple[int, int]]) -> Node:
    """Zeros around a value; widths below zero cut off."""
    for axis, (before, behind) in widths.items():
        x = sliced(g, x, axis, max(-before, 0), shape_of(x)[axis] - max(-behind, 0))
    grown = {axis: (max(pair[0], 0), max(pair[1], 0)) for axis, pair in widths.items()}
    if not any(map(any, grown.values())):
        return x
    image = row_image(x)
    if image is not None:
        grown = {2 * axis - 1: pair for axis, pair in grown.items()}
    inner = x if image is None else image
    rank = len(shape_of(inner))
    listed = [n for axis in reversed(range(min(grown), rank)) for n in grown.get(axis, (0, 0))]
    padded = g.call(aten.constant_pad_nd.default, inner, listed, 0.0)
    return padded if image is None else as_row(g, padded)


def _repeated(
    g: CanonicalGraph,
    x: Node,
    widths: Mapping[int, tuple[int, int]],
    source: Callable[[int, int], int],
) -> Node:
    """Elements of a value around it, along one axis after the other."""
    for axis, (before, behind) in widths.items():
        size = shape_of(x)[axis]
        x = gathered(g, x, axis, [source(n, size) for n in range(-before, size + behind)])
    return x
