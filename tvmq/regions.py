"""Where a network is quantized: its quantized values, its layers, and which steps must be equal.

A *value* is a node of the float graph whose tensor is held in 8-bit codes, a *layer* is what turns
values into one value with a single rounding: a convolution with the residual that is added to its
sums and the ReLU behind it is one layer. Operators that only move or select elements (pooling by
maximum, slices, paddings, reshapes) are neither: their results carry the step of what they read.

A concatenation is a value that no layer makes. What it joins is written in its step from the
start, or requantized where it is joined (``tvmq/plan/joined_values.py`` decides). Behind the last
layer nothing need be joined in codes: concatenations that only outputs of the network are made of
join real numbers, each of them exactly ``step * code``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch.fx import Node

from relay_passes.frontend.pointwise import is_pointwise
from targets.errors import UnsupportedError
from tvmq import token_operators  # noqa: F401  registers the operators
from tvmq.float_model import FloatModel, constant_of, groups_of, island_results

aten = torch.ops.aten
own = torch.ops.tvmq

Kind: TypeAlias = Literal[
    "conv", "linear", "pool", "add", "function", "multiply", "matmul", "softmax", "norm", "constant"
]

PRODUCTS = (aten.conv2d, aten.linear)
BOUNDS = (aten.relu, aten.clamp)
OF_TENSORS: dict[Any, Kind] = {
    aten.add: "add",
    aten.mul: "multiply",
    own.matmul_rows: "matmul",
    own.matmul_columns: "matmul",
    own.softmax: "softmax",
    aten.layer_norm: "norm",
    own.rms_norm: "norm",
    own.constant: "constant",
}
"""Operators that make a layer of the tensors that they read, whatever these are."""

MOVES = (aten.max_pool2d, aten.slice, aten.constant_pad_nd, aten.reshape, aten.permute)

WEIGHTED = ("conv", "linear")
"""Kinds that multiply by weights of their own, which are quantized."""

SUMS_LEAVE = (*WEIGHTED, "pool")
"""Kinds whose int32 sums may be an output of the network, or go to a float island."""

UNSCALED = ("add", "function", "constant")
"""Kinds that end in no sums of products."""

ENDS = (aten.cat, aten.slice, aten.reshape, aten.permute)
"""Works on real numbers where nothing but what leaves the integers is made of the result."""

OUTSIDE = ("output", "call_module")
"""Kinds of nodes that read real numbers: the caller of the network, and float islands."""


@dataclass(frozen=True)
class Value:
    """A tensor held in codes.

    Attributes:
        name: the node behind which it is quantized.
        low: no element is below this (a ReLU: 0); -inf if nothing bounds it. ``high`` likewise.
        layer: the layer that makes it, "" for an input of the network, a concatenation, or the
            result of a float island.
        joins: of a concatenation, the values that it joins.
        island: the float island that makes it, or "".
    """

    name: str
    low: float
    high: float
    layer: str
    joins: tuple[str, ...] = ()
    island: str = ""

    @property
    def is_input(self) -> bool:
        """Whether it is an input of the network."""
        return not (self.layer or self.joins or self.island)


@dataclass(frozen=True)
class Layer:
    """What makes one value.

    Attributes:
        name: the node that computes: the convolution's, not its ReLU's.
        kind: "pool" is an average, "function" an elementwise function (a table of codes);
            "multiply" and "matmul" are products of two tensors.
        inputs: names of the values read, two for "add" and products, none for "constant".
        output: name of the value made; "" where the int32 sums themselves leave the integers.
        residual: name of the value added to the sums before the rounding, or "".
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    output: str
    residual: str = ""


@dataclass(frozen=True)
class Regions:
    """The quantized view of a float graph.

    Attributes:
        values: by name, in the order of the graph.
        layers: by name, in the order of the graph.
        carried: node name -> the value whose codes it holds, for every node that holds codes.
        readers: value -> what reads it: names of nodes that compute or join, "" for the caller of
            the network and for float islands, which read real numbers as well.
        first: layers with weights that read an input of the network.
        last: layers with weights behind which no other layer with weights comes.
    """

    values: dict[str, Value]
    layers: dict[str, Layer]
    carried: dict[str, str]
    readers: dict[str, frozenset[str]]
    first: frozenset[str]
    last: frozenset[str]

    @property
    def returned(self) -> frozenset[str]:
        """Values that outputs of the network, or what islands read, are made of."""
        return frozenset(name for name, readers in self.readers.items() if "" in readers)

    def joined_only(self, name: str) -> str:
        """The concatenation that alone reads a value, or ""."""
        first, *others = self.readers[name] or ("",)
        return first if first in self.values and self.values[first].joins and not others else ""

    @property
    def weighted(self) -> Iterator[Layer]:
        """Layers with weights of the network's own, in order."""
        return (layer for layer in self.layers.values() if layer.kind in WEIGHTED)


def find_regions(model: FloatModel) -> Regions:
    """Split a float graph into values and layers.

    Raises:
        UnsupportedError: an operator that none of the lists above knows.
    """
    return _Finder(model).find()


def op_of(node: Node) -> object:
    """The operator without its overload (``aten.conv2d``), None for anything but an operator."""
    return getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None


def bounds_of(node: Node) -> tuple[float, float]:
    """The range that a ReLU, ReLU6, hardtanh or clamp leaves."""
    if op_of(node) is aten.relu:
        return 0.0, math.inf
    low, high = node.args[1:]
    return float(low), float(high)


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of a node's value, axis 0 being the example's batch."""
    return tuple(node.meta["val"].shape)


def channel_axis(dims: int) -> int:
    """Where a tensor of so many axes has its channels: images on axis 1, all else on the last."""
    return 1 if dims == 4 else dims - 1


@dataclass(frozen=True)
class Window:
    """What an average pooling averages over: ``sum / divisor``, padding counted as zeros."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int]
    divisor: int


def window_of(node: Node) -> Window:
    """The window of an avg_pool2d node; every element of its output has the same divisor."""
    given = [*node.args[1:], *[None] * 6]
    kernel, strides, padding = _pair(given[0]), _pair(given[1] or given[0]), _pair(given[2] or 0)
    divisor = given[5] or kernel[0] * kernel[1]
    return Window(kernel, strides, padding, int(divisor))


def rounding_of(node: Node) -> str:
    """The name of a node that only rounds another one: no export names an operator like this."""
    return f"{node.name}_rounded"


def is_rounding(node: Node) -> bool:
    """Whether a node is an average of single elements that was put there to round."""
    return (
        op_of(node) is aten.avg_pool2d
        and window_of(node) == Window((1, 1), (1, 1), (0, 0), 1)
        and node.name == rounding_of(node.args[0])
    )


def factor_of(node: Node) -> float:
    """What all sums of a product of two tensors are multiplied by."""
    return float(node.args[3]) if op_of(node) in (own.matmul_rows, own.matmul_columns) else 1.0


def products_of(node: Node) -> int:
    """The products that each sum of a product of two tensors is of."""
    return 1 if op_of(node) is aten.mul else shape_of(node.args[0])[-1] // heads_of(node)


def is_depthwise(node: Node) -> bool:
    """Whether each output channel of a convolution reads one input channel."""
    return op_of(node) is aten.conv2d and shape_of(node.args[0])[1] == groups_of(node) > 1


def heads_of(node: Node) -> int:
    """The heads of a softmax, or of a product of two tensors."""
    return int(node.args[1] if op_of(node) is own.softmax else node.args[2])


def is_centred(node: Node) -> bool:
    """Whether a norm subtracts the mean."""
    return op_of(node) is aten.layer_norm


def norm_weights(model: FloatModel, node: Node) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand of a norm, float64[C] each."""
    places = (2, 3) if is_centred(node) else (1,)
    gamma, *beta = (constant_of(model.graph_module, node.args[i]).double() for i in places)
    return gamma, beta[0] if beta else torch.zeros_like(gamma)


def norm_epsilon(node: Node) -> float:
    """What a norm adds to the variance."""
    return float(node.args[4 if is_centred(node) else 2])


def _pair(value: object) -> tuple[int, int]:
    values = [value] * 2 if isinstance(value, int) else list(value)  # type: ignore[call-overload]
    return values[0], values[-1]


class _Finder:
    """One walk over the graph; a class only because the steps share the tables they fill."""

    def __init__(self, model: FloatModel) -> None:
        self.model = model
        self.nodes = list(model.graph_module.graph.nodes)
        self.values: dict[str, Value] = {}
        self.layers: dict[str, Layer] = {}
        self.carried: dict[str, str] = {}
        self.fused: set[Node] = set()  # bounds that belong to the layer before them
        self.islands = {node: island.name for node, island in island_results(model.graph_module)}
        self.ends = self._find_ends()
        self.sums = self._find_residual_sums()

    def find(self) -> Regions:
        for node in self.nodes:
            op = op_of(node)
            if node.op == "placeholder":
                self._add_value(node, None, "")
            elif node in self.islands:
                self._add_value(node, None, "", self.islands[node])
            elif node.op in ("get_attr", "output") or node in self.fused | self.ends:
                continue
            elif op in PRODUCTS:
                if node not in self.sums.values():
                    self._add_layer(node, "linear" if op is aten.linear else "conv", node, [node])
            elif op is aten.add:
                self._add_sum(node)
            elif op is aten.avg_pool2d:
                self._add_layer(node, "pool", node, [node])
            elif op in BOUNDS or is_pointwise(node.target):
                self._add_layer(node, "function", node, [node], fuse=False)
            elif op in OF_TENSORS:
                self._add_of_tensors(node, OF_TENSORS[op])
            elif op in MOVES:
                self.carried[node.name] = self.carried[node.all_input_nodes[0].name]
            elif op is aten.cat:
                self._join(node)
            else:
                raise UnsupportedError(
                    f"operator {node.target} at {self._place(node)} can't be quantized. Replace it "
                    "in the model by convolutions, dense layers, pooling, additions, "
                    "concatenations, slices and functions of one tensor."
                )
        return Regions(
            self.values, self.layers, self.carried, self._readers(), self._first(), self._last()
        )

    def _find_ends(self) -> set[Node]:
        """Nodes of ENDS behind which nothing computes."""
        ends = set[Node]()
        for node in reversed(self.nodes):
            if op_of(node) in ENDS and all(u.op in OUTSIDE or u in ends for u in node.users):
                ends.add(node)
        return ends

    def _readers(self) -> dict[str, frozenset[str]]:
        readers: dict[str, set[str]] = {name: set() for name in self.values}
        for node in self.nodes:
            if node.op in OUTSIDE or node in self.ends:
                reader = ""
            elif self.carried.get(node.name, node.name) != node.name:
                continue  # moves what it reads
            else:
                reader = node.name
            for source in node.all_input_nodes:
                if source.name in self.carried:
                    readers[self.carried[source.name]].add(reader)
        return {name: frozenset(found) for name, found in readers.items()}

    def _find_residual_sums(self) -> dict[Node, Node]:
        """Additions whose operand is a product read by nothing else, and that operand.

        Of two such operands the later one holds the sum: the other is finished by then.
        """
        order = {node: i for i, node in enumerate(self.nodes)}
        sums = {}
        for node in self.nodes:
            if op_of(node) is not aten.add or len(node.all_input_nodes) != 2:
                continue
            free = [a for a in node.all_input_nodes if op_of(a) in PRODUCTS and len(a.users) == 1]
            if free:
                sums[node] = max(free, key=order.__getitem__)
        return sums

    def _add_sum(self, node: Node) -> None:
        product = self.sums.get(node)
        if product is None:
            self._add_of_tensors(node, "add")
            return
        (other,) = (a for a in node.all_input_nodes if a is not product)
        kind: Kind = "linear" if op_of(product) is aten.linear else "conv"
        self._add_layer(product, kind, node, [product], self.carried[other.name])

    def _add_of_tensors(self, node: Node, kind: Kind) -> None:
        read = [a for a in node.args if isinstance(a, Node) and a.name in self.carried]
        fuse = kind in ("add", "multiply", "matmul")
        self._add_layer(node, kind, node, [] if kind == "constant" else read, fuse=fuse)

    def _add_layer(
        self,
        node: Node,
        kind: Kind,
        end: Node,
        readers: list[Node],
        residual: str = "",
        *,
        fuse: bool = True,
    ) -> None:
        """Record the layer that computes at ``node`` and, with its additions, ends at ``end``."""
        direct = kind in OF_TENSORS.values()
        sources = readers if direct else [r.all_input_nodes[0] for r in readers]
        inputs = tuple(self.carried[source.name] for source in sources)
        bound = next(iter(end.users)) if fuse and len(end.users) == 1 else None
        output = ""
        if bound is not None and op_of(bound) in BOUNDS:
            self.fused.add(bound)
            output = self._add_value(bound, bound, node.name)
        elif kind not in SUMS_LEAVE or residual or not self._leaves(end):
            output = self._add_value(end, end if op_of(end) in BOUNDS else None, node.name)
        self.layers[node.name] = Layer(node.name, kind, inputs, output, residual)

    def _leaves(self, node: Node) -> bool:
        """Whether it only leaves the integers; no average is moved in float."""
        if op_of(node) is aten.avg_pool2d:
            return all(user.op in OUTSIDE for user in node.users)
        return all(user.op in OUTSIDE or user in self.ends for user in node.users)

    def _add_value(self, node: Node, bound: Node | None, layer: str, island: str = "") -> str:
        low, high = (-math.inf, math.inf) if bound is None else bounds_of(bound)
        self.values[node.name] = Value(node.name, low, high, layer, island=island)
        self.carried[node.name] = node.name
        return node.name

    def _join(self, node: Node) -> None:
        joins = tuple(dict.fromkeys(self.carried[a.name] for a in node.all_input_nodes))
        low = min(0.0, *(self.values[name].low for name in joins))  # 0.0 is what paddings add
        high = max(0.0, *(self.values[name].high for name in joins))
        self.values[node.name] = Value(node.name, low, high, "", joins)
        self.carried[node.name] = node.name

    def _first(self) -> frozenset[str]:
        inputs = {name for name, value in self.values.items() if value.is_input}
        for name, value in self.values.items():
            if inputs.intersection(value.joins):
                inputs.add(name)
        return frozenset(
            layer.name
            for layer in self.layers.values()
            if layer.kind in WEIGHTED and inputs.intersection(layer.inputs)
        )

    def _last(self) -> frozenset[str]:
        """Walk backwards from the outputs and stop at the first layer with weights."""
        (output,) = (node for node in self.nodes if node.op == "output")
        last, seen, todo = set(), set[Node](), list(output.all_input_nodes)
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.name in self.layers and op_of(node) in PRODUCTS:
                last.add(node.name)
            else:
                sum_ = self.sums.get(node)
                todo.extend(node.all_input_nodes if sum_ is None else [sum_])
        return frozenset(last)

    def _place(self, node: Node) -> str:
        return f"{node.name} ({self.model.origins.get(node.name, 'unknown place')})"
