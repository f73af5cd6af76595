"""Nodes of an exported program: what they compute, of which sizes, and where in the model."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from tvmq.float_model import Origin

PRIME = 1_000_003
"""Stands for a dynamic batch where sizes are compared; no other axis is a multiple of it."""

_TORCH_FRAME = re.compile(r"[/\\]torch[/\\]")
_SEPARATOR = re.compile(r"[/\\]")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def operator_name(target: Any) -> str:
    """``conv2d`` for any overload of ``aten.conv2d``; with its namespace for other libraries."""
    if not hasattr(target, "_schema"):
        return getattr(target, "__name__", str(target))
    name = str(target._schema.name)
    return name.removeprefix("aten::")


def is_tensor_valued(node: Node) -> bool:
    """Whether the node computes tensors; the rest are sizes and assertions about them."""
    value = node.meta.get("val")
    items = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(item, torch.Tensor) for item in items)


_LIKE = frozenset({"full_like", "zeros_like", "ones_like", "empty_like"})
_NEW = frozenset({"new_full", "new_zeros", "new_ones", "new_empty"})
_AS = frozenset({"type_as", "expand_as", "view_as", "reshape_as"})


def values_read_by(node: Node) -> list[Node]:
    """The nodes whose values matter to a node.

    Of some tensors an operator reads size and type alone; where these are known, grids and the like
    that are made so depend on no input.
    """
    name, sources = operator_name(node.target), node.all_input_nodes
    if name not in _LIKE | _NEW | _AS or not is_tensor_valued(node):
        return sources
    if not all(isinstance(size, int) for size in node.meta["val"].shape):
        return sources
    return sources[:1] if name in _AS else sources[1:]


def stand_in(node: Node) -> torch.Tensor:
    """A tensor of the size and type of a node, for an operator that reads no more of it."""
    value = node.meta["val"]
    sizes = [size if isinstance(size, int) else 1 for size in value.shape]
    floats = value.is_floating_point()
    return torch.empty(1, dtype=torch.float32 if floats else value.dtype).expand(sizes)


def has_images_of_floats(node: Node) -> bool:
    """Whether it is one tensor (N, ...) of floats with sizes known but for the batch."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.ndim < 2 or not value.is_floating_point():
        return False
    return all(isinstance(size, int) for size in value.shape[1:])


def named_arguments(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, defaults included."""
    named = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    named.update(zip((a.name for a in target._schema.arguments), args, strict=False))
    named.update(kwargs)
    return named


def batch_size(size: Any) -> int:
    """Of axis 0 of a program's input, or what stands for it."""
    return size if isinstance(size, int) else PRIME


def size_of_one(size: Any) -> Any:
    """A size that the program computes, for a batch of one image."""
    return _number(size, 1) if isinstance(size, torch.SymInt) else size


def numeric_shape(node: Node, batch: int) -> list[int]:
    """Shape of a program's value, in numbers: a dynamic batch is ``batch``."""
    return [_number(size, batch) for size in node.meta["val"].shape]


def _number(size: Any, batch: int) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))


def origin_of(node: Node) -> Origin:
    """Module and last line of the user's own code that an exported node comes from.

    Of a node without either, which transformations of a graph leave, the nearest before it.
    """
    found = _recorded_origin(node)
    if found != Origin():
        return found
    for source in _before(node):
        if (near := _recorded_origin(source)) != Origin():
            return Origin(source=f"behind {near}")
    return Origin(source=f"node {node.name} of the program")


def _before(node: Node) -> Iterator[Node]:
    """What a node is computed from, the nearest first."""
    seen, todo = {node}, deque(node.all_input_nodes)
    while todo:
        source = todo.popleft()
        if source not in seen and is_tensor_valued(source):
            seen.add(source)
            todo.extend(source.all_input_nodes)
            yield source


def _recorded_origin(node: Node) -> Origin:
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    module = str(entries[-1][0]) if entries else ""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not _TORCH_FRAME.search(frame[0])]
    if not own:
        return Origin(module)
    file, line = own[-1]
    return Origin(module, f"{re.split(_SEPARATOR, file)[-1]}:{line}")
