"""Run a float graph node by node, with as few large tensors as it can do with.

What nobody reads any more is freed, and an operator whose first argument nobody else reads writes
its result there: a clamp behind a convolution takes no memory of its own, nor the time of asking
the system for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node


class GraphRun(Interpreter):  # type: ignore[misc]  # torch is not followed by mypy
    """An execution of a graph: at once by ``run``, or from ``start`` on node by node."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False  # errors of ours say what they have to say
        self._given: set[int] = set()
        self._in_place = {
            node: operator
            for node in graph_module.graph.nodes
            if (operator := _in_place(node)) is not None
        }

    def run_node(self, n: Node) -> Any:
        """Execute a node; its first argument may be gone afterwards."""
        operator = self._in_place.get(n)
        if operator is not None:
            arguments, named = self.fetch_args_kwargs_from_env(n)
            if self._may_overwrite(arguments):
                return operator(*arguments, **named)
        result = super().run_node(n)
        if n.op in ("placeholder", "get_attr") and isinstance(result, torch.Tensor):
            self._given.add(_memory(result))
        return result

    def _may_overwrite(self, arguments: tuple[Any, ...]) -> bool:
        """Whether the first tensor is as large as the result and really nobody else's.

        Some operators return their argument and don't say so, such as a dropout that is off.
        """
        first, *others = (x for x in arguments if isinstance(x, torch.Tensor))
        if any(dim > own for x in others for dim, own in _aligned(x.shape, first.shape)):
            return False
        memory = _memory(first)
        living = (x for x in self.env.values() if isinstance(x, torch.Tensor))
        return memory not in self._given and sum(_memory(x) == memory for x in living) == 1

    def run(self, *args: Any, **options: Any) -> Any:
        """Execute everything; as ``Interpreter.run``."""
        self._given.clear()
        return super().run(*args, **options)

    def start(self, *inputs: torch.Tensor) -> GraphRun:
        """Take the inputs; nothing is executed yet."""
        self._given.clear()
        self.args_iter = iter(inputs)
        self._left = deque(self.graph.nodes)
        return self

    def result_of(self, name: str) -> torch.Tensor:
        """Execute up to a node and return what it makes.

        Whoever changes it changes what the nodes behind it read; it may be overwritten when the
        execution goes on.
        """
        self.run_before(name)
        node = self._left.popleft()
        self._execute(node)
        return self.env[node]

    def run_before(self, name: str) -> None:
        """Execute all nodes in front of one."""
        while self._left[0].name != name:
            self._execute(self._left.popleft())

    def _execute(self, node: Node) -> None:
        if node.op != "output":
            self.env[node] = self.run_node(node)
            for used in self.user_to_last_uses.get(node, []):
                del self.env[used]


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _aligned(other: torch.Size, own: torch.Size) -> Iterator[tuple[int, int]]:
    """Sizes along the same axis, as broadcasting counts axes: from the last one."""
    return zip(reversed(other), (*reversed(own), *[0] * len(other)), strict=False)


def _in_place(node: Node) -> Any | None:
    """The operator that does the same and overwrites its first argument, where it may."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.args:
        return None
    source = node.args[0]
    if not isinstance(source, Node) or len(source.users) != 1 or not _makes_its_result(source):
        return None
    if not _same_tensors(source, node) or node.args.count(source) > 1:
        return None
    namespace, _, name = node.target._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), f"{name}_", None)
    return getattr(packet, node.target._overloadname, None)


def _makes_its_result(node: Node) -> bool:
    """Whether its result is memory of its own, not a parameter, an input or a view."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return all(result.alias_info is None for result in node.target._schema.returns)


def _same_tensors(a: Node, b: Node) -> bool:
    first, second = a.meta.get("val"), b.meta.get("val")
    if first is None or second is None:
        return False
    return bool(first.shape == second.shape and first.dtype == second.dtype)
