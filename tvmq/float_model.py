"""What capture leaves: a float graph of few ATen operators, its interface, and node origins."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch.fx import GraphModule, Node


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and type of an input or output; ``shape[0]`` is the batch the example had."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Origin:
    """Where a node comes from: module such as ``layer1.0.conv1``, source such as ``resnet.py:110``.

    Either is empty where the exporter did not record it.
    """

    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        places = [f"module {self.module}" if self.module else "", self.source]
        return ", ".join(place for place in places if place) or "unknown place"


@dataclass(frozen=True)
class BatchNormStats:
    """How the output of a folded batch norm is distributed per channel, by its own parameters.

    Attributes:
        gamma: float32[K], the standard deviation up to sign.
        beta: float32[K], the mean.
    """

    gamma: torch.Tensor
    beta: torch.Tensor


@dataclass(frozen=True)
class Equalization:
    """Channels that were made smaller or larger, which leaves the outputs the same to the bit.

    Attributes:
        exponents: by name of a layer, how often each of its output channels was halved; what reads
            them was doubled as often. None where it was left out.
        reason: what spoke for it or against it, in one line.
    """

    exponents: Mapping[str, tuple[int, ...]]
    reason: str


@dataclass(frozen=True)
class Mixing:
    """Channels in another order, which leaves what the network computes the same.

    Attributes:
        orders: by name of a layer, which of its channels takes each place. None where the order
            stayed.
        reason: by what they were ordered, in one line.
    """

    orders: Mapping[str, tuple[int, ...]]
    reason: str


@dataclass(frozen=True)
class TensorScaling:
    """Tensors that were made larger or smaller, which leaves what the network computes the same.

    Attributes:
        factors: by name of the first layer that makes a set of tensors, what they were multiplied
            by, in the order in which it was done. None where they stayed.
        reason: what was done, in one line.
        left_out: tensors stay as they are, whatever is learned.
    """

    factors: Mapping[str, float]
    reason: str
    left_out: bool = False


@dataclass(frozen=True)
class FloatOperator:
    """An operator that stays in float.

    Attributes:
        name: of its node.
        kind: the ATen operator, such as "softmax".
        source: module and source line.
        reason: why, in words.
        macs: multiply-accumulates of one image.
    """

    name: str
    kind: str
    source: str
    reason: str
    macs: int = 0


@dataclass(frozen=True)
class FloatEnd:
    """What runs in float: before the first quantized layer, behind the last, or on an island.

    Attributes:
        graph_module: ATen operators for any batch, from a number of tensors to a tuple of such; a
            tensor that only passes by is returned as it is.
        operators: what it computes, in order.
    """

    graph_module: GraphModule
    operators: tuple[FloatOperator, ...]

    @property
    def kinds(self) -> str:
        """What operators there are, each once."""
        return ", ".join(dict.fromkeys(operator.kind for operator in self.operators))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(operator.macs for operator in self.operators)


@dataclass(frozen=True)
class FloatEnds:
    """Both ends of a network around the part that is quantized.

    Attributes:
        head: from the network's inputs to those of the quantized part, followed by what passes by
            it.
        tail: from the outputs of the quantized part, followed by what passed by it, to the
            network's outputs.
        inputs: the network's interface; axis 0 of every input is the batch.
        outputs: likewise.
    """

    head: FloatEnd
    tail: FloatEnd
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def operators(self) -> tuple[FloatOperator, ...]:
        """Of both."""
        return self.head.operators + self.tail.operators


class FloatIsland(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """One result of what runs in float in the middle of a network.

    Computes in float32 on the CPU, whatever the network around it is held in. An island with
    several results is as many modules of one ``name``, which read the same tensors.

    Attributes:
        name: of the island, and of the library's function that computes it.
        computes: from its inputs, float32 (N, ...), to the tuple of its results.
        index: which of its results this is.
    """

    def __init__(self, name: str, end: FloatEnd, index: int) -> None:
        super().__init__()
        # A FloatEnd is no module: its constants stay float32 where those around it are converted.
        self.name, self.computes, self.index = name, end, index

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The result, of the type of the inputs."""
        # Views in the user's program count on the order of a tensor's axes in memory.
        read = (x.float().cpu().contiguous() for x in inputs)
        made: torch.Tensor = self.computes.graph_module(*read)[self.index].to(inputs[0])
        return made

    def __deepcopy__(self, _memo: object) -> FloatIsland:
        return self


@dataclass(frozen=True)
class FloatModel:
    """A float32 network in evaluation mode, for any batch, in the operators of ``canonicalize``.

    It is what is quantized: the whole network, or the part of it between its float ends.

    Attributes:
        graph_module: takes the inputs in the order of ``inputs`` and returns the tuple of
            ``outputs``; weights are get_attr nodes, every node has a fake tensor ``meta["val"]``.
        inputs: the interface; axis 0 of every input is the batch.
        outputs: the interface; named after dict keys where the network returns a dict.
        origins: module and source line by node name.
        batch_norms: by name of the node that carries the output of a folded batch norm.
        fingerprint: sha256 of graph and weights.
        kind: what the file was, in words.
        notes: what capture changed that a user should know (precision, prefixes).
        equalization: what ``tvmq/plan/equalize.py`` changed; None if it wasn't asked.
        mixing: what ``tvmq/plan/mix_channels.py`` changed last; likewise.
        scaling: what ``tvmq/plan/scale_tensors.py`` changed between these; likewise.
        ends: what is around it in float; None if it is the whole network.
    """

    graph_module: GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    origins: Mapping[str, Origin]
    batch_norms: Mapping[str, BatchNormStats]
    fingerprint: str
    kind: str
    notes: tuple[str, ...] = field(default=())
    equalization: Equalization | None = None
    mixing: Mixing | None = None
    scaling: TensorScaling | None = None
    ends: FloatEnds | None = None

    @property
    def network_inputs(self) -> tuple[TensorSpec, ...]:
        """The interface of the network, float ends included."""
        return self.inputs if self.ends is None else self.ends.inputs

    @property
    def network_outputs(self) -> tuple[TensorSpec, ...]:
        """Likewise."""
        return self.outputs if self.ends is None else self.ends.outputs

    def quantized_inputs(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What the quantized part reads of the network's inputs."""
        if self.ends is None:
            return tuple(inputs)
        with torch.no_grad():
            made: tuple[torch.Tensor, ...] = self.ends.head.graph_module(*inputs)
        return made[: len(self.inputs)]

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """The nodes of the graph, which stays as it is, by name."""
        return {node.name: node for node in self.graph_module.graph.nodes}

    @cached_property
    def islands(self) -> dict[str, FloatEnd]:
        """What runs in float in the middle of the graph, by name, in order."""
        return {island.name: island.computes for _, island in island_results(self.graph_module)}

    def changed(self, graph_module: GraphModule, **others: Any) -> FloatModel:
        """The network with another graph, and whatever else of these attributes is another."""
        fingerprint = fingerprint_of(graph_module)
        return replace(self, graph_module=graph_module, fingerprint=fingerprint, **others)

    def weight_of(self, node: Node) -> torch.Tensor:
        """Weight of a conv2d (K, C/groups, R, S) or linear (K, C) node."""
        return constant_of(self.graph_module, node.args[1])

    def bias_of(self, node: Node) -> torch.Tensor | None:
        """Bias of a conv2d or linear node, float32[K], or None."""
        bias = node.args[2] if len(node.args) > 2 else None
        return None if bias is None else constant_of(self.graph_module, bias)


def island_results(graph_module: GraphModule) -> Iterator[tuple[Node, FloatIsland]]:
    """The results of float islands in a graph, in order."""
    for node in graph_module.graph.find_nodes(op="call_module"):
        island = getattr(graph_module, str(node.target))
        assert isinstance(island, FloatIsland)
        yield node, island


def fingerprint_of(graph_module: GraphModule) -> str:
    """Sha256 of what the graph computes: its nodes in order and the bytes of its constants."""
    digest = hashlib.sha256()
    for node in graph_module.graph.nodes:
        digest.update(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs}\n".encode())
        if node.op == "get_attr":
            digest.update(getattr(graph_module, str(node.target)).cpu().numpy().tobytes())
    for _, island in island_results(graph_module):
        digest.update(fingerprint_of(island.computes.graph_module).encode())
    return digest.hexdigest()


def groups_of(node: Node) -> int:
    """The groups of a convolution's channels; 1 of a linear layer."""
    return int(node.args[6]) if len(node.args) > 6 else 1


def by_input_channel(weight: torch.Tensor, node: Node) -> torch.Tensor:
    """A view of the weight of a conv2d or linear node, [groups, K / groups, C / groups, taps]."""
    groups = groups_of(node)
    return weight.view(groups, len(weight) // groups, weight.shape[1], -1)


def copy_of(graph_module: GraphModule) -> GraphModule:
    """A copy whose graph may be changed; it shares the constants, so those are only replaced."""
    shared = {id(tensor): tensor for tensor in graph_module.buffers()}
    return copy.deepcopy(graph_module, shared)


def constant_of(graph_module: torch.nn.Module, node: object) -> torch.Tensor:
    """Value of a get_attr node."""
    assert isinstance(node, Node), node
    assert node.op == "get_attr", node
    value = getattr(graph_module, str(node.target))
    assert isinstance(value, torch.Tensor)
    return value.detach()
