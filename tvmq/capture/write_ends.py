"""Write what stays in float as graphs of their own, for any batch: the ends of a network.

The operators are the program's. Whatever depends on no input (grids, anchors) is computed ahead;
a batch that the exporter fixed is made free in the sizes that name it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from targets.errors import UnsupportedError
from targets.refusal import Refusal
from tvmq.capture.canonical_graph import check_size, is_constant, tidy
from tvmq.capture.network_ends import NetworkEnds, Program, pulled
from tvmq.capture.program_nodes import (
    PRIME,
    is_tensor_valued,
    numeric_shape,
    operator_name,
    origin_of,
    stand_in,
    values_read_by,
)
from tvmq.capture.program_outputs import refuse_constant, refuse_moved, unique
from tvmq.float_model import FloatEnd, FloatOperator

aten = torch.ops.aten

ALONG = "what can't be quantized reads it or is read by it"
"""Why operators stay in float that could be quantized."""

_SIZED = {"view": 1, "reshape": 1, "_unsafe_view": 1, "expand": 1}
"""Operators with sizes of their result, and which argument these are."""


@dataclass(frozen=True)
class WrittenEnds:
    """Both ends of a program.

    Attributes:
        head: as ``FloatEnds`` has it.
        tail: likewise.
        quantized: nodes of the canonical graph that the tail reads.
        inputs: nodes of the program that are the inputs of the network.
        read: nodes of the program that are the inputs of the canonical graph.
        sources: nodes of the program that ``quantized`` stand for.
        passing: nodes of the program that pass by the canonical graph.
        results: nodes of the program that are its outputs.
        output_names: of these.
    """

    head: FloatEnd
    tail: FloatEnd
    quantized: tuple[Node, ...]
    inputs: tuple[Node, ...]
    read: tuple[Node, ...]
    sources: tuple[Node, ...]
    passing: tuple[Node, ...]
    results: tuple[Node, ...]
    output_names: tuple[str, ...]


def write_ends(
    facts: Program,
    ends: NetworkEnds,
    read: Sequence[Node],
    values: Mapping[Node, Any],
    names: Sequence[str],
) -> WrittenEnds:
    """Write both ends.

    Args:
        facts: of the program.
        ends: which of its nodes.
        read: nodes that are the inputs of the canonical graph.
        values: what stands in the canonical graph for a node of the program.
        names: of the network's outputs; "" takes that of the node.

    Raises:
        UnsupportedError: a value that the tail reads has no batch on axis 0, or an output does not
            depend on the inputs.
    """
    results = list(facts.nodes[-1].args[0])
    for index, result in enumerate(results):
        if not isinstance(result, Node) or result not in facts.live:
            refuse_constant(names[index] or index)
        if not _has_batch_first(result, facts.batch):
            refuse_moved(names[index] or index)
    tail = set(ends.tail)
    while True:
        wanted = read_by(facts, results, tail)
        ahead = [node for node in wanted if node in ends.head or node.op == "placeholder"]
        behind = [node for node in wanted if node not in ahead]
        moved = [node for node in behind if not is_batch_first(values.get(node), node)]
        if not moved:
            break
        for node in moved:  # the tail moves it as the program does
            if facts.is_layer(node):
                raise UnsupportedError(
                    f"{node.target} ({origin_of(node)}) has its batch elsewhere than on axis 0 "
                    "alone, and what reads it can't be quantized. Keep the batch there throughout."
                )
        tail.update(moved)
        tail |= pulled(facts, tail, set(ends.head))
    quantized = dict.fromkeys(values[node] for node in behind)
    place = {value: index for index, value in enumerate(quantized)}
    sources: dict[int, Node] = {}
    for node in behind:
        sources.setdefault(place[values[node]], node)
    inputs = facts.inputs
    head_results = [*read, *ahead]
    head_writer = FloatWriter(facts, [[node] for node in inputs], ends.head, ends.why or {})
    alike = [[n for n in behind if values[n] is value] for value in quantized]
    tail_writer = FloatWriter(facts, [*alike, *([node] for node in ahead)], tail, ends.why or {})
    return WrittenEnds(
        head=head_writer.write(head_results),
        tail=tail_writer.write(results),
        quantized=tuple(quantized),
        inputs=tuple(inputs),
        read=tuple(read),
        sources=tuple(sources[index] for index in range(len(quantized))),
        passing=tuple(ahead),
        results=tuple(results),
        output_names=unique(name or node.name for name, node in zip(names, results, strict=True)),
    )


def _has_batch_first(result: Node, batch: int | None) -> bool:
    """Whether an output is a row of images; ``batch`` is None where it is free."""
    size = PRIME if batch is None else batch
    return result.meta["val"].ndim > 0 and numeric_shape(result, PRIME)[0] == size


def is_batch_first(value: Any, node: Node) -> bool:
    """Whether the canonical graph has the value as the program has it."""
    if not isinstance(value, Node) or is_constant(value):
        return False
    return tuple(value.meta["val"].shape[1:]) == tuple(node.meta["val"].shape[1:])


def read_by(facts: Program, results: Sequence[Node], inside: Set[Node]) -> list[Node]:
    """What depends on the inputs and is read, but not computed, by nodes ``inside``."""
    wanted, seen, todo = set[Node](), set[Node](), list(results)
    while todo:
        node = todo.pop()
        if node in seen or node not in facts.live:
            continue
        seen.add(node)
        if node in inside:
            todo += node.all_input_nodes
        else:
            wanted.add(node)
    return [node for node in facts.nodes if node in wanted]


class FloatWriter:
    """Writes one graph of what stays in float.

    Args:
        facts: of the program.
        inputs: for each input of the graph, the nodes of the program that it is.
        inside: nodes that the graph computes.
        why: some of them can't be quantized.
    """

    def __init__(
        self,
        facts: Program,
        inputs: Sequence[Sequence[Node]],
        inside: Set[Node],
        why: Mapping[Node, Refusal],
    ) -> None:
        self.facts, self.inside, self.why = facts, inside, why
        self.graph, self.root = Graph(), torch.nn.Module()
        self.env: dict[Node, Any] = {}
        self.constants: dict[Node, Any] = {}
        self.operators: list[FloatOperator] = []
        self.batch: Node | None = None
        for alike in inputs:
            placeholder = self.graph.placeholder(alike[0].name)
            self.first = getattr(self, "first", placeholder)
            self.env.update(dict.fromkeys(alike, placeholder))

    def write(self, results: Sequence[Node]) -> FloatEnd:
        """The graph that returns these."""
        needed = self._needed(results)
        for node in self.facts.nodes:
            if node in needed and node not in self.env:
                self._write(node)
        self.graph.output(tuple(self.env[node] for node in results))
        module = GraphModule(self.root, self.graph)
        tidy(module)
        return FloatEnd(module.eval(), tuple(self.operators))

    def _needed(self, results: Sequence[Node]) -> set[Node]:
        found, todo = set[Node](), list(results)
        while todo:
            node = todo.pop()
            if node not in found and node not in self.env:
                found.add(node)
                todo += values_read_by(node)
        return found

    def _write(self, node: Node) -> None:
        if node in self.facts.stored:
            self.constants[node] = self.facts.stored[node]
        elif node.op != "call_function":
            return
        elif node not in self.facts.live and all(n in self.constants for n in values_read_by(node)):
            self._check_size(node)
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self._known)
            args, kwargs = _in_float32((args, kwargs))
            self.constants[node] = node.target(*args, **kwargs)
        elif not is_tensor_valued(node):
            self.env[node] = self._size(node)
        elif node in self.inside or node not in self.facts.live:
            self._check_size(node)
            self.env[node] = self._call(node)
            if node in self.facts.live and node.target is not operator.getitem:
                self.operators.append(self._described(node))
        # else it is read for its sizes alone

    def _known(self, node: Node) -> Any:
        value = self.constants.get(node)
        return stand_in(node) if value is None else value

    def _check_size(self, node: Node) -> None:
        try:
            for value in pytree.tree_leaves(node.meta.get("val")):
                check_size(value)
        except Refusal as refusal:
            raise UnsupportedError(f"{node.target} ({origin_of(node)}): {refusal}") from refusal

    def _size(self, node: Node) -> Any:
        """A size: a number, the batch, or what is computed of it."""
        value = node.meta.get("val")
        if isinstance(value, int | float | bool):
            return value
        if operator_name(node.target) == "sym_size":
            return self._batch()
        if value is None:  # an assertion about sizes
            return None
        args = torch.fx.map_arg(node.args, self._operand)
        return self.graph.call_function(node.target, args)

    def _batch(self) -> Node:
        if self.batch is None:
            with self.graph.inserting_after(self.first):
                self.batch = self.graph.call_function(aten.sym_size.int, (self.first, 0))
        return self.batch

    def _call(self, node: Node) -> Node:
        args = list(torch.fx.map_arg(node.args, self._operand))
        if self.facts.batch is not None and node in self.facts.live:
            self._free_the_batch(node, args)
        kwargs = torch.fx.map_arg(node.kwargs, self._operand)
        args, kwargs = _in_float32((tuple(args), kwargs))
        if _makes_floats_of_integers(node):
            args = torch.fx.map_arg(args, self._as_floats)
        return self.graph.create_node("call_function", node.target, args, kwargs, name=node.name)

    def _as_floats(self, operand: Node) -> Node:
        return self.graph.call_function(aten._to_copy.default, (operand,), {"dtype": torch.float32})

    def _operand(self, node: Node) -> Any:
        """What stands for a node; a constant is stored when it is first read."""
        if node not in self.env:
            value = self.constants[node]
            tensor = isinstance(value, torch.Tensor)
            self.env[node] = self._held(node.name, value) if tensor else value
        return self.env[node]

    def _held(self, name: str, value: torch.Tensor) -> Node:
        free = name.replace(".", "_").lstrip("_") or "constant"
        while hasattr(self.root, free):
            free += "_"
        self.root.register_buffer(free, value.detach().clone().contiguous())
        return self.graph.get_attr(free)

    def _free_the_batch(self, node: Node, args: list[Any]) -> None:
        """Let a fixed batch in the arguments of a call be any."""
        name, batch = operator_name(node.target), self.facts.batch
        shape = tuple(getattr(node.meta["val"], "shape", ()))
        if shape[:1] != (batch,):
            return
        if name in _SIZED and len(args) > 1:
            sizes = list(args[_SIZED[name]])
            if len(sizes) == len(shape) and sizes[0] == batch:
                args[_SIZED[name]] = [self._batch(), *sizes[1:]]
        elif name in ("cat", "concat", "concatenate", "stack"):
            args[0] = [
                self._repeated(part, given)
                for part, given in zip(args[0], node.args[0], strict=True)
            ]

        else:
            args[:] = [
                self._once(arg, given, len(shape)) if isinstance(given, Node) else arg
                for arg, given in zip(args, node.args, strict=True)
            ]

    def _once(self, arg: Any, given: Node, axes: int) -> Any:
        """A constant that is the same for each image of a batch, for one of any."""
        value = self.constants.get(given)
        if not isinstance(value, torch.Tensor) or value.ndim != axes:
            return arg
        if len(value) == self.facts.batch and bool((value == value[:1]).all()):
            return self._held(f"{given.name}_once", value[:1])
        return arg

    def _repeated(self, part: Any, given: Node) -> Any:
        """A constant of each image beside tensors of images."""
        value = self.constants.get(given)
        if not isinstance(value, torch.Tensor) or value.ndim == 0 or len(value) != self.facts.batch:
            return part
        once = self._held(f"{given.name}_once", value[:1])
        return self.graph.call_function(
            aten.expand.default, (once, [self._batch(), *value.shape[1:]])
        )

    def _described(self, node: Node) -> FloatOperator:
        why = self.why.get(node)
        reason = ALONG if why is None else why.what
        place, macs = str(origin_of(node)), self.facts.macs_of_one(node)
        return FloatOperator(node.name, operator_name(node.target), place, reason, macs)


def _makes_floats_of_integers(node: Node) -> bool:
    """Whether torch turns its operands into floats first, as where bytes are divided."""
    made = node.meta.get("val")
    read = [n.meta["val"] for n in node.all_input_nodes if is_tensor_valued(n)]
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    if not pointwise or not isinstance(made, torch.Tensor):
        return False
    return made.is_floating_point() and not any(
        x.is_floating_point() for x in read if isinstance(x, torch.Tensor)
    )


def _in_float32(arguments: Any) -> Any:
    """Types of floats among the arguments of a call become float32, as the weights do."""
    return pytree.tree_map(
        lambda value: (
            torch.float32 if isinstance(value, torch.dtype) and value.is_floating_point else value
        ),
        arguments,
    )
