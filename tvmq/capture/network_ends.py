"""Which operators of a program stay in float: what can't be quantized at its ends, and no more.

The *tail* is what can't be quantized, or is a final softmax, with everything behind it; the *head*
what can't be quantized before the first layer, with everything in front of it. Layers may come
along where they are hardly any work. A refused operator that leaves more than that on either side
is in the middle of the network.

Once there is a tail, whatever is no layer and only outputs are made of goes into it, so that the
integers end right behind layers, as their exact sums.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from relay_passes.frontend.pointwise import is_pointwise
from relay_passes.read_layers import MOST_AXES
from targets.refusal import Refusal
from tvmq.capture.multiply_accumulates import LAYERS, macs_of
from tvmq.capture.program_nodes import (
    has_images_of_floats,
    is_tensor_valued,
    operator_name,
    values_read_by,
)

MOST_MACS = 0.01
"""Share of the network's multiply-accumulates that its float ends may do."""

FINAL = Refusal(
    "it ends the network, where the host computes it exactly",
    "Leave it out of the exported network if the logits are wanted",
)
"""Of a softmax that could be quantized."""

BESIDE = Refusal(
    "it reads integers or truth values beside a value of the network",
    "Let the network take them as floats, one tensor of (N, ...) each",
)
"""Of what can't be quantized for one of its operands."""

MANY_AXES = Refusal(
    f"its tensor has more than {MOST_AXES} axes",
    f"Reshape it to {MOST_AXES} axes at most",
)
"""Of what is computed of more axes than an image has."""

_SOFTMAX = ("softmax", "_softmax", "special_softmax")
_MOVES = frozenset(
    {"view", "reshape", "_unsafe_view", "_reshape_alias", "flatten", "unflatten", "squeeze"}
    | {"unsqueeze", "permute", "transpose", "t", "swapaxes", "movedim", "slice", "select", "narrow"}
    | {"split", "split_with_sizes", "chunk", "unbind", "getitem", "cat", "concat", "concatenate"}
    | {"stack", "contiguous", "clone", "alias", "detach", "expand", "expand_as", "view_as", "flip"}
    | {"roll", "repeat", "lift_fresh_copy", "dropout", "to", "_to_copy", "pixel_shuffle"}
    | {"max_pool1d", "max_pool2d", "amax", "amin", "upsample_nearest2d", "upsample_bilinear2d"}
)
"""What chooses, repeats or moves elements."""

_OF_TWO = frozenset({"add", "sub", "rsub", "mul", "div", "maximum", "minimum", "pow"})


@dataclass(frozen=True)
class NetworkEnds:
    """Nodes of a program that stay in float.

    Attributes:
        head: in front of the first layer.
        tail: behind the last layer.
        why: of some of them, why they can't be quantized.
    """

    head: frozenset[Node] = frozenset()
    tail: frozenset[Node] = frozenset()
    why: Mapping[Node, Refusal] | None = None

    def __contains__(self, node: object) -> bool:
        return node in self.head or node in self.tail

    def __bool__(self) -> bool:
        return bool(self.head or self.tail)


class Program:
    """What is asked of a program's graph again and again."""

    def __init__(self, program: ExportedProgram) -> None:
        self.nodes = list(program.graph.nodes)
        self._place = {node: place for place, node in enumerate(self.nodes)}
        self.placeholders = {n.name: n for n in self.nodes if n.op == "placeholder"}
        user = set(program.graph_signature.user_inputs)
        self.inputs = [node for name, node in self.placeholders.items() if name in user]
        self.stored = dict(self._stored(program))
        self.live: set[Node] = set(self.inputs)
        """Tensors that depend on the network's inputs, by more than the size of the batch."""
        for node in self.nodes:
            reads = any(source in self.live for source in values_read_by(node))
            if reads and node.op == "call_function" and is_tensor_valued(node):
                self.live.add(node)
        self.macs = {node: macs for node in self.nodes if (macs := self._macs_of(node))}
        self.total = sum(self.macs.values())

    def _stored(self, program: ExportedProgram) -> Iterator[tuple[Node, torch.Tensor]]:
        """Weights and other tensors of the program, floats as float32."""
        for spec in program.graph_signature.input_specs:
            held = program.state_dict.get(spec.target)
            value = program.constants.get(spec.target) if held is None else held
            if isinstance(value, torch.Tensor):
                value = value.detach().cpu()
                floats = value.is_floating_point()
                yield self.placeholders[spec.arg.name], value.float() if floats else value

    @property
    def batch(self) -> int | None:
        """Size of axis 0 of the inputs; None where it is free."""
        sizes = [n.meta["val"].shape[0] for n in self.inputs if is_tensor_valued(n)]
        return sizes[0] if sizes and isinstance(sizes[0], int) else None

    def sorted(self, nodes: Iterable[Node]) -> list[Node]:
        """These in the order of the program."""
        return sorted(nodes, key=self._place.__getitem__)

    def _macs_of(self, node: Node) -> int:
        return macs_of(node) if node in self.live and self.is_layer(node) else 0

    def macs_of_one(self, node: Node) -> int:
        """Multiply-accumulates of a node for one image."""
        return self.macs.get(node, 0) // (self.batch or 2)

    def is_layer(self, node: Node) -> bool:
        """Whether it multiplies by weights, or tensor by tensor, or averages."""
        return node.op == "call_function" and operator_name(node.target) in LAYERS

    def behind(self, nodes: Iterable[Node]) -> set[Node]:
        """These and all that is computed from them."""
        found = set(nodes)
        for node in self.nodes:
            if node in self.live and not found.isdisjoint(node.all_input_nodes):
                found.add(node)
        return found

    def before(self, nodes: Iterable[Node]) -> set[Node]:
        """These and all that they are computed from; no inputs of the network."""
        found = set(nodes)
        for node in reversed(self.nodes):
            if node in self.live and not found.isdisjoint(node.users):
                found.add(node)
        return found - set(self.inputs)

    def share_behind(self, nodes: Iterable[Node]) -> float:
        """How much of the network's work is done by these and what is computed from them."""
        work = sum(self.macs.get(node, 0) for node in self.behind(nodes))
        return work / self.total if self.total else 0.0

    def is_little(self, nodes: Iterable[Node]) -> bool:
        """Whether these are hardly any of the network's work."""
        return sum(self.macs.get(node, 0) for node in nodes) < MOST_MACS * self.total


def ends_of(
    program: Program, refused: Mapping[Node, Refusal], *, islands: bool = False
) -> tuple[NetworkEnds, dict[Node, Refusal]]:
    """Split off what stays in float.

    Args:
        program: the network.
        refused: what can't be quantized, and why.
        islands: whether these may be in float wherever they are, however much work they do.

    Returns:
        The ends; and what of ``refused`` is in the middle of the network.
    """
    anyway = set(refused) if islands else set[Node]()

    def is_little(nodes: set[Node]) -> bool:
        return program.is_little(nodes - anyway)

    middle: dict[Node, Refusal] = {}
    tail_seeds, head_seeds = dict(_final_softmaxes(program)), dict[Node, Refusal]()
    tail_seeds |= dict(_final_of_many_axes(program))
    for node, why in refused.items():
        before, behind = program.before([node]), program.behind([node])
        if node in program.inputs or is_foreign(node) or node not in program.live:
            middle[node] = why
        elif _layers(program, before - {node}) or not _layers(program, behind - {node}):
            (tail_seeds if is_little(behind) else middle)[node] = why
        else:
            (head_seeds if is_little(before) else middle)[node] = why
    head = program.before(head_seeds)
    made, beside = _up_to_floats(program, head, program.behind(tail_seeds))
    head |= made
    for node in beside:
        (tail_seeds if is_little(program.behind([node])) else middle)[node] = BESIDE
    tail = program.behind(tail_seeds)
    if not (is_little(head) and is_little(tail)) or head & tail:
        return NetworkEnds(), middle | dict(refused)
    if tail:
        tail |= pulled(program, tail, head)
    ends = NetworkEnds(frozenset(head), frozenset(tail), head_seeds | tail_seeds)
    return ends, {n: why for n, why in middle.items() if not is_only_for(program, n, ends)}


def is_only_for(program: Program, node: Node, floats: Container[Node]) -> bool:
    """Whether it makes a tensor that depends on no input for these alone, as an LSTM's first state.

    Args:
        program: the network.
        node: of it.
        floats: what stays in float.
    """
    makes = node.op == "call_function" and node not in program.live
    return makes and all(user in floats for user in node.users)


def _up_to_floats(
    program: Program, head: set[Node], tail: set[Node]
) -> tuple[set[Node], list[Node]]:
    """What reads something else than floats of each image that is an input, or made by the head.

    Returns:
        What computes of inputs and the head alone; and what reads a value of the network beside.
    """
    found: set[Node] = set()
    beside: list[Node] = []
    for node in program.nodes:
        if node not in program.live or node in head or node in tail or node.op == "placeholder":
            continue
        read = [n for n in node.all_input_nodes if n in program.live and is_tensor_valued(n)]
        made = [n for n in read if n in head or n in found or n in program.inputs]
        if any(not has_images_of_floats(n) for n in made):
            if len(made) == len(read):
                found.add(node)
            elif node.op == "call_function":
                beside.append(node)
    return found, beside


def _layers(program: Program, nodes: set[Node]) -> bool:
    return any(node in program.macs for node in nodes)


def is_foreign(node: Node) -> bool:
    """Whether the host can't have it: no operator of torch's own, random, or of unknown size.

    What is random in training alone, as an LSTM with dropout is, isn't where a program evaluates.
    """
    made = pytree.tree_leaves(node.meta.get("val"))
    sizes = [tensor.shape for tensor in made if isinstance(tensor, torch.Tensor)]
    if any(free_unbacked_symbols(size) for shape in sizes for size in shape):
        return True
    if node.target is operator.getitem:
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None or not str(schema.name).startswith("aten::"):
        return True
    trains = any(argument.name in ("train", "training") for argument in schema.arguments)
    return torch.Tag.nondeterministic_seeded in node.target.tags and not trains


def _final_softmaxes(program: Program) -> Iterator[tuple[Node, Refusal]]:
    """Softmaxes behind which tensors are no longer multiplied, and layers are hardly any work."""
    for node in program.nodes:
        if node not in program.live or operator_name(node.target) not in _SOFTMAX:
            continue
        behind = program.behind([node]) - {node}
        if program.is_little(behind) and not any(_multiplies(program, other) for other in behind):
            yield node, FINAL


def _final_of_many_axes(program: Program) -> Iterator[tuple[Node, Refusal]]:
    """What computes of, or returns, tensors that are no images behind the last layer."""
    results = program.nodes[-1].all_input_nodes
    for node in program.nodes:
        if node not in program.live or not _has_many_axes(node):
            continue
        name, behind = operator_name(node.target), program.behind([node])
        computes = name in _OF_TWO or (is_pointwise(node.target) and name not in _MOVES)
        if (computes or node in results) and not _layers(program, behind):
            yield node, MANY_AXES


def _has_many_axes(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.ndim > MOST_AXES


def _multiplies(program: Program, node: Node) -> bool:
    """Whether it is a product of two tensors that depend on the inputs."""
    name = operator_name(node.target)
    product = name in LAYERS or name in ("mul", "addcmul")
    return product and sum(source in program.live for source in node.all_input_nodes) > 1


def pulled(program: Program, tail: set[Node], head: set[Node]) -> set[Node]:
    """What is no layer, and is read by the tail and the network's caller alone."""
    found: set[Node] = set()
    for node in reversed(program.nodes):
        if node not in program.live or node in tail or node in head or node.op == "placeholder":
            continue
        only = all(user.op == "output" or user in tail or user in found for user in node.users)
        if node.users and only and _is_no_layer(program, node):
            found.add(node)
    return found


def _is_no_layer(program: Program, node: Node) -> bool:
    """Whether it moves elements or computes of each by itself."""
    name = operator_name(node.target)
    if name in LAYERS or is_foreign(node):
        return False
    if name in _MOVES or is_pointwise(node.target):
        return True
    read = [source for source in node.all_input_nodes if source in program.live]
    if name not in _OF_TWO:
        return False
    # A residual is added in the sums of the layer before it.
    return len(read) == 1 or not any(program.is_layer(source) for source in read)
