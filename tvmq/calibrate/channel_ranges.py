"""Between which bounds the channels of a tensor lie, each by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from tvmq.float_model import FloatModel
from tvmq.regions import Regions, shape_of


@dataclass(frozen=True, eq=False)
class ChannelRange:
    """Extremes by channel.

    Attributes:
        low: float32 or float64[C].
        high: the same.
    """

    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def of(cls, tensor: torch.Tensor) -> ChannelRange:
        """Of a tensor whose axis 0 counts images, [N, C, ...]; [N, T, C] of tokens."""
        axis = channel_axis(tensor.dim())
        others = [i for i in range(tensor.dim()) if i != axis]
        return cls(tensor.amin(others), tensor.amax(others))

    def merge(self, other: ChannelRange) -> ChannelRange:
        """Of both tensors together."""
        return ChannelRange(
            torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        )

    @property
    def span(self) -> torch.Tensor:
        """[C]: how far apart the extremes are."""
        return self.high - self.low

    @property
    def reach(self) -> torch.Tensor:
        """[C]: the largest magnitude."""
        return torch.maximum(-self.low, self.high)


def channel_axis(rank: int) -> int:
    """Where a tensor of so many axes has its channels."""
    return 2 if rank == 3 else 1


def watched_nodes(model: FloatModel, regions: Regions) -> frozenset[str]:
    """Nodes whose channels are of interest: values, and what layers with weights read."""
    read = {model.nodes[layer.name].args[0] for layer in regions.weighted}
    names = {node.name for node in read if isinstance(node, Node) and len(shape_of(node)) > 1}
    made = {name for name, value in regions.values.items() if not value.joins}
    return frozenset(names | {name for name in made if len(shape_of(model.nodes[name])) > 1})
