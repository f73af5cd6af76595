"""Which channels of a float network can change places without changing what it computes.

A channel is made by a row of a layer's weight and read by columns of others, and between them
additions, depthwise convolutions, functions, concatenations, shuffles, layer norms and heads tie
the channels of many tensors together: where one is moved, all are. Channels are therefore labelled,
and labels that meet are joined (union-find). Moves are followed by moving labels as the network
moves its elements, so that any slice, reshape or shuffle is known by what it does.

Labels that occur in the same places form a class: any permutation of a class, applied to all
weights, biases and norms at once, gives the same network. Inputs and outputs of the network stay,
and so does what meets an operator that is not known here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import GraphModule, Node

from relay_passes.frontend.pointwise import is_pointwise
from tvmq.calibrate.channel_ranges import channel_axis
from tvmq.float_model import groups_of
from tvmq.regions import BOUNDS, MOVES, PRODUCTS, is_depthwise, op_of, own, shape_of

aten = torch.ops.aten

Labels: TypeAlias = npt.NDArray[np.int64]
Role: TypeAlias = Literal["rows", "columns", "each", "heads"]


@dataclass(frozen=True, eq=False)
class Use:
    """A place at which channels meet constants, or each other.

    Attributes:
        node: the operator.
        role: "rows" of a weight make the channels, its "columns" read them, "each" has a constant
            of its own; "heads" has none, but channels stay within their head.
        labels: of its channels, in order.
        groups: which of them stay together, [C].
    """

    node: Node
    role: Role
    labels: Labels
    groups: Labels


@dataclass(frozen=True, eq=False)
class ChannelClasses:
    """The channels of a network.

    Attributes:
        uses: in the order of the graph.
        rows: by name of a node, the labels of its channels, where its channels are an axis.
        classes: labels that can change places, at least two each.
    """

    uses: tuple[Use, ...]
    rows: Mapping[str, Labels]
    classes: tuple[Labels, ...]

    @cached_property
    def makers(self) -> dict[str, Use]:
        """By name of layer, what makes channels."""
        return {use.node.name: use for use in self.uses if use.role == "rows"}

    def order_of(self, labels: Labels, moved: Mapping[int, int], groups: Labels) -> Labels:
        """Where each channel comes from, int64[C], once the content of labels is ``moved``.

        A label may occur several times, as where an image is flattened: then in the same order.
        """
        places: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, (label, group) in enumerate(zip(labels.tolist(), groups.tolist(), strict=True)):
            places[label, group].append(place)
        seen: dict[tuple[int, int], int] = defaultdict(int)
        order = np.empty(len(labels), np.int64)
        for place, (label, group) in enumerate(zip(labels.tolist(), groups.tolist(), strict=True)):
            nth = seen[label, group]
            seen[label, group] += 1
            order[place] = places[moved.get(label, label), group][nth]
        return order


def find_classes(graph_module: GraphModule) -> ChannelClasses:
    """Label the channels of a network."""
    tracer = _Tracer(graph_module)
    for node in graph_module.graph.nodes:
        tracer.visit(node)
    return tracer.result()


@dataclass
class _Tracer:
    graph_module: GraphModule
    used: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parents: list[int] = []
        self.pinned: set[int] = set()
        self.labels: dict[Node, torch.Tensor] = {}
        self.uses: list[Use] = []
        for constant in self.graph_module.graph.find_nodes(op="get_attr"):
            name = str(constant.target)
            self.used[name] = self.used.get(name, 0) + len(constant.users)

    def visit(self, node: Node) -> None:
        if node.op == "output":
            self._pin(a for a in node.all_input_nodes if a in self.labels)
        elif node.op == "placeholder":
            self._fresh(node)
            self._pin([node])
        elif node.op == "call_module":
            self._unknown(node)
        elif node.op == "call_function":
            self._operator(node, op_of(node))

    def _operator(self, node: Node, op: object) -> None:
        if op in PRODUCTS and self._owns_constants(node, 1):
            self._product(node)
        elif op in BOUNDS or is_pointwise(node.target):
            self.labels[node] = self.labels[node.args[0]]
        elif op in (aten.add, aten.mul) and all(a in self.labels for a in node.all_input_nodes):
            self._elementwise(node)
        elif op in (aten.max_pool2d, aten.avg_pool2d):
            row = self._row(node.args[0], 1)
            if row is None:
                self._unknown(node)
            else:
                self.labels[node] = _along(row, 1, shape_of(node))
        elif op is aten.constant_pad_nd:
            self._pad(node)
        elif op is aten.cat or op in MOVES:
            self.labels[node] = node.target(*_labelled(node.args, self.labels), **node.kwargs)
        elif op is aten.layer_norm and self._owns_constants(node, 2):
            self._norm(node)
        elif op in (own.matmul_rows, own.matmul_columns):
            self._matmul(node, rows=op is own.matmul_rows)
        elif op is own.softmax:
            self.labels[node] = self.labels[node.args[0]]
        elif op is own.constant and self._owns_constants(node, 1):
            row = self._fresh(node)
            self._use(node, "each", row)
        else:
            self._unknown(node)

    def result(self) -> ChannelClasses:
        roots = np.array([self._find(label) for label in range(len(self.parents))], np.int64)
        pinned = {int(roots[label]) for label in self.pinned}
        uses = tuple(Use(u.node, u.role, roots[u.labels], u.groups) for u in self.uses)
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        made: set[int] = set()
        for number, use in enumerate(uses):
            for label, group in zip(use.labels.tolist(), use.groups.tolist(), strict=True):
                places[label].append((number, group))
                if use.role == "rows":
                    made.add(label)
        classes: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        for label, found in places.items():
            if label not in pinned and label in made:
                classes[tuple(found)].append(label)
        rows = {}
        for node in self.labels:
            axis = channel_axis(len(shape_of(node)))
            row = self._row(node, axis) if len(shape_of(node)) > axis else None
            if row is not None:
                rows[node.name] = roots[row]
        return ChannelClasses(
            uses, rows, tuple(np.array(c, np.int64) for c in classes.values() if len(c) > 1)
        )

    def _product(self, node: Node) -> None:
        source = node.args[0]
        axis = 1 if op_of(node) is aten.conv2d else len(shape_of(source)) - 1
        read = self._row(source, axis)
        if read is None:
            self._unknown(node)
            return
        groups = groups_of(node)
        if op_of(node) is aten.conv2d and is_depthwise(node):
            channels = shape_of(node)[1]
            row = np.repeat(read, channels // len(read))
            self.labels[node] = _along(row, 1, shape_of(node))
            self._use(node, "each", row)
            return
        self._use(node, "columns", read, groups)
        made = self._fresh(node, 1 if op_of(node) is aten.conv2d else len(shape_of(node)) - 1)
        self._use(node, "rows", made, groups)

    def _elementwise(self, node: Node) -> None:
        operands = [self.labels[a] for a in node.args if isinstance(a, Node)]
        shape = shape_of(node)
        wide = [x for x in operands if tuple(x.shape) == shape]
        if not wide:
            self._unknown(node)
            return
        self.labels[node] = wide[0]
        axis = channel_axis(len(shape))
        for other in operands:
            aligned = other.reshape(*[1] * (len(shape) - other.dim()), *other.shape)
            if aligned.shape[axis] == shape[axis]:
                self._join(wide[0], aligned.expand(shape))
            elif int(other.min()) != int(other.max()):
                self._pin(node.all_input_nodes)

    def _pad(self, node: Node) -> None:
        """Zeros around an image are of its channels; further channels of zeros are new ones."""
        source, widths = node.args[:2]
        rank = len(shape_of(source))
        pairs = [widths[i : i + 2] for i in range(0, len(widths), 2)][::-1]
        full = [[0, 0]] * (rank - len(pairs)) + [list(pair) for pair in pairs]
        axis = channel_axis(rank)
        row = self._row(source, axis) if rank > axis else None
        if row is None:
            self._unknown(node)
            return
        before, after = full[axis]
        row = row[max(-before, 0) : len(row) - max(-after, 0)]
        row = np.concatenate([self._new(max(before, 0)), row, self._new(max(after, 0))])
        self.labels[node] = _along(row, axis, shape_of(node))

    def _norm(self, node: Node) -> None:
        source = node.args[0]
        row = self._row(source, len(shape_of(source)) - 1)
        if row is None or len(node.args[1]) != 1:
            self._unknown(node)
            return
        self.labels[node] = self.labels[source]
        self._use(node, "each", row)

    def _matmul(self, node: Node, *, rows: bool) -> None:
        left, right, heads = node.args[:3]
        a, b = (self._row(x, 2) for x in (left, right))
        if b is None or (rows and a is None):
            self._unknown(node)
            return
        if rows and a is not None:
            self._join(torch.from_numpy(a), torch.from_numpy(b))
            self._unknown(node, sources=False)
        else:
            self._pin([left])
            self.labels[node] = _along(b, 2, shape_of(node))
        self.uses.append(Use(node, "heads", b, np.arange(len(b)) // (len(b) // heads)))

    def _unknown(self, node: Node, *, sources: bool = True) -> None:
        """Whatever it reads stays where it is, and what it makes, too."""
        if sources:
            self._pin(a for a in node.all_input_nodes if a in self.labels)
        self._fresh(node)
        self._pin([node])

    def _fresh(self, node: Node, axis: int | None = None) -> Labels:
        shape = shape_of(node)
        axis = min(channel_axis(len(shape)), len(shape) - 1) if axis is None else axis
        row = self._new(shape[axis])
        self.labels[node] = _along(row, axis, shape)
        return row

    def _new(self, count: int) -> Labels:
        first = len(self.parents)
        self.parents += range(first, first + count)
        return np.arange(first, first + count)

    def _use(self, node: Node, role: Role, row: Labels, groups: int = 1) -> None:
        self.uses.append(Use(node, role, row, np.arange(len(row)) // (len(row) // groups)))

    def _row(self, node: Node, axis: int) -> Labels | None:
        """The labels along an axis, if they are the same wherever one is along the others."""
        labels = self.labels[node]
        labels = labels[_repeated(labels)]
        row = labels[tuple(slice(None) if i == axis else 0 for i in range(labels.dim()))]
        same = torch.equal(labels, _along(row.numpy(), axis, tuple(labels.shape)))
        return row.numpy() if same else None

    def _owns_constants(self, node: Node, first: int) -> bool:
        """Whether nothing else uses what would be permuted."""
        constants = [a for a in node.args[first:] if isinstance(a, Node) and a.op == "get_attr"]
        return all(self.used[str(constant.target)] == 1 for constant in constants)

    def _pin(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            labels = self.labels[node]
            self.pinned.update(torch.unique(labels[_repeated(labels)]).tolist())

    def _join(self, a: torch.Tensor, b: torch.Tensor) -> None:
        once = _repeated(a, b)
        a, b = a[once], b[once]
        for one, other in torch.unique(torch.stack([a.flatten(), b.flatten()]), dim=1).T.tolist():
            self.parents[self._find(one)] = self._find(other)

    def _find(self, label: int) -> int:
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label


def _along(row: Labels, axis: int, shape: Sequence[int]) -> torch.Tensor:
    """Labels that differ along one axis only."""
    sizes = [len(row) if i == axis else 1 for i in range(len(shape))]
    return torch.from_numpy(np.ascontiguousarray(row)).reshape(sizes).expand(*shape)


def _repeated(*tensors: torch.Tensor) -> tuple[slice, ...]:
    """What selects one element of each axis along which all tensors just repeat in memory."""
    axes = range(tensors[0].dim())
    return tuple(slice(1 if all(x.stride(i) == 0 for x in tensors) else None) for i in axes)


def _labelled(arguments: Any, labels: Mapping[Node, torch.Tensor]) -> Any:
    """Arguments with the labels of tensors in their places."""
    if isinstance(arguments, Node):
        return labels[arguments]
    if isinstance(arguments, (list, tuple)):
        return type(arguments)(_labelled(a, labels) for a in arguments)
    return arguments
