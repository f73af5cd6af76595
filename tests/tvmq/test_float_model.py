"""A float island computes the same whatever the network around it is held in."""

from __future__ import annotations

import copy

import torch
from torch.fx import GraphModule, symbolic_trace

from tvmq.float_model import FloatEnd, FloatIsland, FloatOperator, island_results


class Rows(torch.nn.Module):
    """Reads rows by their place in memory; adds a constant of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.tensor([0.1, 0.2]))

    def forward(self, x, y):
        return x.view(-1, 2) + self.offset, x - y


def operator(kind, macs):
    return FloatOperator(kind, kind, "net.py:1", "no integers", macs)


END = FloatEnd(symbolic_trace(Rows()), (operator("view", 3), operator("sub", 4)))


def test_it_takes_any_type_and_order_in_memory_and_gives_its_own():
    x = torch.randn(2, 2, 3, 2)
    y = torch.randn(2, 2, 3, 2)
    want = Rows()(x, y)
    for index in range(2):
        island = FloatIsland("island_0", END, index).double()
        held = x.to(memory_format=torch.channels_last).double()
        made = island(held, y.double())
        assert made.dtype == torch.float64
        torch.testing.assert_close(made.float(), want[index], rtol=0, atol=0)


def test_a_copy_of_a_network_shares_its_islands():
    root, graph = torch.nn.Module(), torch.fx.Graph()
    root.add_module("island_0_0", FloatIsland("island_0", END, 0))
    x = graph.placeholder("x")
    graph.output(graph.call_module("island_0_0", (x, x)))
    module = GraphModule(root, graph)
    copied = copy.deepcopy(module).double()
    ((node, island),) = island_results(copied)
    assert node.name == "island_0_0"
    assert island.computes is END
    assert not list(copied.buffers())


def test_what_it_is_of_is_counted():
    assert (END.kinds, END.macs) == ("view, sub", 7)
