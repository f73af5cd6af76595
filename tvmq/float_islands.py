"""The float islands of a network, from torch to functions of the library.

As the float ends, they are exported, imported by TVM and compared with torch on what they read when
the network sees noise, before anything is built on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node
from tvm import IRModule

from relay_passes.float_islands import Island
from tvmq.float_ends import IMAGES, imported
from tvmq.float_model import FloatModel, island_results
from tvmq.noise import noise_like


def compilable_islands(model: FloatModel) -> dict[str, IRModule]:
    """What the islands compute in Relax, by name, each a module with a ``main``.

    Raises:
        UnsupportedError: TVM has no operators for one, or others than torch.
    """
    if not model.islands:
        return {}
    reading = _Reading(model.graph_module)
    with torch.no_grad():
        reading.run(*model.quantized_inputs(noise_like(model.network_inputs, IMAGES)))
    return {
        name: imported(end, reading.read[name], "in the middle of the network")
        for name, end in model.islands.items()
    }


def islands_in(graph_module: GraphModule, mods: Mapping[str, IRModule]) -> list[Island]:
    """The islands of a graph with what is needed to call them.

    Args:
        graph_module: float or annotated.
        mods: from ``compilable_islands``.
    """
    results: dict[str, list[str]] = {}
    ends = {}
    for node, island in island_results(graph_module):
        results.setdefault(island.name, []).append(node.name)
        ends[island.name] = island.computes
    return [
        Island(
            name,
            mods[name],
            tuple(names),
            ends[name].operators[0].source,
            ends[name].kinds,
            ends[name].macs,
        )
        for name, names in results.items()
    ]


class _Reading(Interpreter):  # type: ignore[misc]  # torch has no types for mypy
    """Runs a graph and keeps what islands read."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.names = {node: island.name for node, island in island_results(graph_module)}
        self.read: dict[str, list[torch.Tensor]] = {}

    def run_node(self, n: Node) -> Any:
        if n in self.names:
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            self.read[self.names[n]] = list(arguments)
        return super().run_node(n)
