"""The graph that canonicalize writes: named nodes, constants by name, shapes known as it grows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from targets.causes import cause_of, first_line
from targets.refusal import Refusal
from tvmq import token_operators  # noqa: F401  registers the operators
from tvmq.float_model import FloatIsland, Origin

aten = torch.ops.aten
LARGEST_VALUE = 2**32
"""Bytes of a value, for the images of the example together: a file can ask for any size."""

BATCH_STAYS = "Keep the batch on axis 0 throughout"


def in_one_line(error: Exception) -> str:
    """An error of torch, for a message."""
    return f"{type(error).__name__}: {first_line(error)[:300]}"


def as_refusal(error: Exception) -> Refusal:
    """Why a rule failed: what it says itself, or what torch does of arguments of a file."""
    if isinstance(error, Refusal):
        return error
    cause = cause_of(error)
    if cause is not None:
        return Refusal(cause.what, cause.advice)
    return Refusal(
        "torch refuses its arguments",
        "Check that the exported program runs with two images, and export it again",
        in_one_line(error),
    )


class CanonicalGraph:
    """A torch.fx graph under construction; ``meta["val"]`` of a node is a tensor without data.

    Attributes:
        graph: the graph so far.
        root: holds the constants, under flat names.
        origins: where each node comes from, by name.
        batch: size of axis 0 in these tensors.
        program_batch: size of the program's batch, or a number that stands for a dynamic one.
    """

    def __init__(self, batch: int, program_batch: int) -> None:
        self.graph = Graph()
        self.root = torch.nn.Module()
        self.origins: dict[str, Origin] = {}
        self.batch, self.program_batch = batch, program_batch
        self.origin = Origin()
        self._first: Node | None = None
        self._constants: dict[str, Node] = {}

    def input(self, name: str, shape: Sequence[int]) -> Node:
        """Add an input, float32 of the given shape."""
        node = self.graph.placeholder(name)
        node.meta["val"] = torch.empty(tuple(shape), device="meta")
        check_size(node.meta["val"])
        self._first = self._first or node
        return node

    def for_each_image(self, constant: Node) -> Node:
        """A tensor of every image that is a constant (1, ...), or one of equal images."""
        value = self.value(constant)
        if not bool((value == value[:1]).all()):
            raise Refusal("a constant differs between the images of a batch", BATCH_STAYS)
        if len(value) > 1:
            constant = self.constant(f"{constant.name}_once", value[:1])
        return self.call(torch.ops.tvmq.constant.default, self._first, constant)

    def constant(self, name: str, value: torch.Tensor) -> Node:
        """Add a constant under a name made from ``name``; one name is one constant."""
        if name in self._constants:
            return self._constants[name]
        wanted = name.replace(".", "_").lstrip("_") or "constant"
        free = wanted
        while hasattr(self.root, free):
            free += "_"
        value = value.detach()
        if value.is_floating_point():
            value = value.float()
        value = value.contiguous()
        self.root.register_buffer(free, value)
        node = self.graph.get_attr(free)
        node.meta["val"] = value.to("meta")
        self._constants[name] = node
        return node

    def value(self, node: Node) -> torch.Tensor:
        """The tensor of a constant."""
        tensor = getattr(self.root, str(node.target))
        assert isinstance(tensor, torch.Tensor)
        return tensor

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Add a call of an ATen operator and work out its shape.

        Raises:
            Refusal: if the operator does not keep the batch on axis 0.
        """
        name = target._schema.name.partition("::")[2]
        value = result_of(target, args, kwargs)
        check_size(value)
        if value.ndim == 0 or value.shape[0] != self.batch:
            raise Refusal("mixes the images of a batch", BATCH_STAYS)
        node = self.graph.create_node("call_function", target, args, kwargs, name=name)
        node.meta["val"] = value
        self.origins[node.name] = self.origin
        return node

    def float_island(
        self, name: str, island: FloatIsland, read: Sequence[Node], shape: Sequence[int]
    ) -> Node:
        """Add a result of an island, float32 of the given shape for each image.

        Args:
            name: of the node.
            island: computes it.
            read: what the island reads.
            shape: without the batch.
        """
        held = f"{island.name}_{island.index}"
        while hasattr(self.root, held):
            held += "_"
        self.root.add_module(held, island)
        node = self.graph.create_node("call_module", held, tuple(read), {}, name=name)
        node.meta["val"] = torch.empty((self.batch, *shape), device="meta")
        check_size(node.meta["val"])
        self.origins[node.name] = self.origin
        return node

    def compute(self, target: Any, args: Any, kwargs: Any) -> Any:
        """What an operator gives for constants.

        Raises:
            Refusal: if that is too large.
        """
        with contextlib.suppress(NotImplementedError):  # the size depends on the numbers
            check_size(result_of(target, args, kwargs))
        return target(*torch.fx.map_arg(args, self.value), **torch.fx.map_arg(kwargs, self.value))

    def module(self) -> GraphModule:
        """The finished module, without unused nodes and constants."""
        module = GraphModule(self.root, self.graph)
        tidy(module)
        return module.eval()


def check_size(value: object) -> None:
    """Raise a Refusal of a tensor that is too large; that of a free batch is not known."""
    if not isinstance(value, torch.Tensor) or not all(isinstance(n, int) for n in value.shape):
        return
    if value.numel() * value.itemsize > LARGEST_VALUE:
        size = f"{value.numel() * value.itemsize / 2**30:,.0f} GB"
        raise Refusal(
            f"gives a value of {size}, more than {LARGEST_VALUE >> 30} GB",
            "Export the network for smaller images or fewer of them",
        )


def tidy(module: GraphModule) -> None:
    """Drop nodes and constants without a use, check the graph and regenerate its code."""
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_buffers() if name not in used]:
        delattr(module, name)
    module.graph.lint()
    module.recompile()


def result_of(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """What a call gives, without data: its shape and type."""
    if target is aten.batch_norm.default:  # torch takes it apart, in Python, to find the same shape
        first: torch.Tensor = args[0].meta["val"]
        return first
    args, kwargs = torch.fx.map_arg((args, kwargs), lambda node: node.meta["val"])
    return target(*args, **kwargs)


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of a node's value, with the example's batch."""
    return tuple(node.meta["val"].shape)


def is_constant(node: object) -> bool:
    """Whether the node is a weight or buffer rather than a value that depends on the input."""
    return isinstance(node, Node) and node.op == "get_attr"
