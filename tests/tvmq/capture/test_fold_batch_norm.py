"""Batch norms are folded where that is right, and their statistics follow the carrier."""

import torch
from torch import nn

from tvmq.capture.canonicalize import canonicalize
from tvmq.capture.fold_batch_norm import fold_batch_norm

aten = torch.ops.aten


def folded(module: nn.Module):
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.3, 3)
            part.weight.data.normal_()
            part.bias.data.normal_()
    program = torch.export.export(module.eval(), (torch.randn(1, 3, 8, 8),))
    canonical = canonicalize(program)
    return canonical, *fold_batch_norm(canonical.graph_module, canonical.origins)


def convolutions(graph_module):
    return [n for n in graph_module.graph.nodes if n.target is aten.conv2d.default]


def test_single_consumer_folds_into_the_convolution():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    _, graph_module, stats, _ = folded(module)
    (conv,) = convolutions(graph_module)
    assert conv.name == "conv2d"
    torch.testing.assert_close(stats["conv2d"].gamma, module[1].weight.detach().abs())
    torch.testing.assert_close(stats["conv2d"].beta, module[1].bias.detach())


def test_input_module_is_left_as_it_was():
    canonical, _, _, _ = folded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    targets = [node.target for node in canonical.graph_module.graph.nodes]
    assert aten.batch_norm.default in targets


class UsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return x, self.norm(x)


@torch.no_grad()
def test_other_consumers_make_it_a_depthwise_convolution():
    module = UsedTwice()
    _, graph_module, stats, origins = folded(module)
    first, second = convolutions(graph_module)
    assert second.args[6] == 4
    assert list(stats) == [second.name]
    assert origins[second.name].module == "norm"
    x = torch.randn(2, 3, 8, 8)
    for got, want in zip(graph_module(x), module(x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(getattr(graph_module, first.args[1].target), module.conv.weight)


class Halved(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) * 0.5 + 3.0


@torch.no_grad()
def test_constants_after_a_norm_move_its_statistics():
    module = Halved()
    _, graph_module, stats, _ = folded(module)
    (conv,) = convolutions(graph_module)
    torch.testing.assert_close(stats[conv.name].gamma, module.norm.weight.detach().abs() / 2)
    torch.testing.assert_close(stats[conv.name].beta, module.norm.bias.detach() / 2 + 3)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(graph_module(x)[0], module(x), rtol=1e-4, atol=1e-5)


def test_constants_alone_give_no_statistics():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x) * 2.0

    _, graph_module, stats, _ = folded(Plain())
    assert stats == {}
    assert len(convolutions(graph_module)) == 1
