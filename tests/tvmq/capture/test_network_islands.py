"""What can't be quantized in the middle of a network is grouped into islands, if that is asked."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from targets.errors import UnsupportedError
from tvmq.capture import canonicalize
from tvmq.capture.capture import capture_program
from tvmq.float_model import island_results

FREE = ({0: torch.export.Dim("n")},)
BATCHES = {"dynamic": (2, FREE), "of two": (2, None), "of one": (1, None)}


class Between(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, function, channels=8):
        super().__init__()
        self.first, self.function = nn.Conv2d(3, 8, 3, padding=1), function
        self.last = nn.Conv2d(channels, 12, 3, padding=1)

    def forward(self, x):
        return self.last(self.function(F.relu(self.first(x))))


def captured(module, x, shapes=FREE, **options):
    torch.manual_seed(0)
    program = torch.export.export(module.eval(), (x,), dynamic_shapes=shapes, strict=False)
    return capture_program(program, float_islands=True, **options)


def kinds(model):
    return [[op.kind for op in end.operators] for end in model.islands.values()]


def quantized(model):
    return [
        str(n.target).split(".")[1]
        for n in model.graph_module.graph.nodes
        if n.op == "call_function"
    ]


def chosen(x):
    """The four channels with the largest means, by sums of positions that are integers."""
    order = x.amax((2, 3)).sort(1, descending=True)[1][:, :4]
    return torch.cat([x[:, :4], x.gather(1, order[:, :, None, None].expand(-1, -1, 8, 8))], 1)


def sampled(x):
    flow = x[:, :2].permute(0, 2, 3, 1).tanh()
    return F.grid_sample(x, flow, align_corners=False)


BETWEEN = {
    "cumsum": lambda x: x.cumsum(2),
    "divided by its norm": lambda x: x / (x.norm(dim=(2, 3), keepdim=True) + 1),
    "gathered": chosen,
    "whole numbers": lambda x: (x + x).to(torch.int32).remainder(3).float() + x,
    "distances": lambda x: torch.cdist(x, x.flip(1)),
    "sampled": sampled,
    "masked": lambda x: torch.where(x > x.mean(1, keepdim=True), x, torch.zeros_like(x)),
    "sorted rows": lambda x: x.sort(3)[0],
    "many axes": lambda x: x.reshape(-1, 2, 4, 2, 4, 8).cumsum(2).reshape(-1, 8, 8, 8),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", BETWEEN)
def test_an_island_runs_in_float_for_any_batch(name, batch):
    count, shapes = BATCHES[batch]
    module = Between(BETWEEN[name])
    model = captured(module, torch.randn(count, 3, 8, 8), shapes)
    assert model.ends is None
    assert len(model.islands) == 1
    assert quantized(model).count("conv2d") == 2
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(model.graph_module(x)[0], module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BETWEEN)
def test_by_default_it_is_refused_with_the_way_out(name):
    program = torch.export.export(
        Between(BETWEEN[name]).eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=FREE
    )
    with pytest.raises(UnsupportedError, match=r"are behind that.* --float-islands\.$"):
        capture_program(program)


def test_islands_are_advised_only_where_trying_them_works(monkeypatch):
    def refuse(*_):
        raise UnsupportedError("it can't be written")

    program = torch.export.export(
        Between(BETWEEN["cumsum"]).eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=FREE
    )
    monkeypatch.setattr(canonicalize._Writer, "_write_island", refuse)
    with pytest.raises(UnsupportedError, match=r"may stay in float\.$"):
        capture_program(program)


def test_what_no_layer_separates_is_one_island_and_what_one_does_are_two():
    model = captured(Between(lambda x: x.cumsum(2).sigmoid().cumsum(3)), torch.randn(2, 3, 8, 8))
    assert kinds(model) == [["cumsum", "sigmoid", "cumsum"]]
    between = nn.Conv2d(8, 8, 1)
    module = Between(lambda x: F.relu(between(x.cumsum(2))).cumsum(3))
    model = captured(module, torch.randn(2, 3, 8, 8))
    assert kinds(model) == [["cumsum"], ["cumsum"]]
    assert quantized(model).count("conv2d") == 3


def test_an_island_is_convex():
    """What it reads again of its own result comes along, a layer too."""
    between = nn.Conv2d(8, 8, 1)

    def function(x):
        y = x.cumsum(2)
        return y.maximum(between(y))

    model = captured(Between(function), torch.randn(2, 3, 8, 8))
    (operators,) = kinds(model)
    assert operators == ["cumsum", "conv2d", "maximum"]
    assert quantized(model).count("conv2d") == 2
    (island,) = model.islands.values()
    assert island.macs == 8 * 8 * 8 * 8


def test_a_quantized_layer_beside_is_made_before_the_island_that_reads_it():
    beside = nn.Conv2d(8, 8, 1)

    def function(x):
        low, _ = x.cumsum(2).chunk(2, 1)
        again = torch.cat([low, low], 1)
        return again + (x.cumsum(3) / (1 + beside(x).abs()))

    model = captured(Between(function), torch.randn(2, 3, 8, 8))
    x = torch.randn(3, 3, 8, 8)
    torch.manual_seed(0)
    assert model.graph_module(x)[0].shape == (3, 12, 8, 8)


def test_two_results_are_of_one_island():
    class Two(Between):
        def forward(self, x):
            y = F.relu(self.first(x))
            values, order = y.sort(1)
            return self.last(values) + self.last(order.float() / 8)

    model = captured(Two(None), torch.randn(2, 3, 8, 8))
    results = list(island_results(model.graph_module))
    assert len(model.islands) == 1
    assert [island.index for _, island in results] == [0, 1]


def test_head_and_tail_stay_ends_beside_an_island():
    class All(Between):
        def forward(self, x):
            x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
            return super().forward(x).mean((2, 3)).softmax(1).topk(3)

    module = All(lambda x: x.cumsum(2))
    model = captured(module, torch.randn(2, 3, 8, 8))
    assert kinds(model) == [["cumsum"]]
    assert "std" in [op.kind for op in model.ends.head.operators]
    assert "topk" in [op.kind for op in model.ends.tail.operators]


def test_work_at_the_end_that_can_only_be_done_in_float_is_the_tail():
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv3d(2, 4, 3)

        def forward(self, x):
            return self.last(self.first(x).reshape(-1, 2, 4, 6, 6))

    model = captured(Ends(), torch.randn(2, 3, 8, 8))
    assert model.islands == {}
    assert model.ends.tail.macs == 4 * 2 * 4 * 4 * 2 * 27


class RandomNoise(nn.Module):
    """What draws numbers gives other ones on every device."""

    def forward(self, x):
        return x + torch.rand_like(x)


REFUSED = {
    "random": RandomNoise(),
    "of unknown size": lambda x: x * x.flatten().nonzero().shape[0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_host_cant_have_is_refused_with_islands_too(name):
    with pytest.raises(UnsupportedError) as caught:
        captured(Between(REFUSED[name]), torch.randn(2, 3, 8, 8))
    assert "--float-islands" not in str(caught.value)


def test_what_mixes_images_is_refused():
    module = Between(lambda x: x.cumsum(2) - x.cumsum(0))
    with pytest.raises(UnsupportedError, match="depends on the other images"):
        captured(module, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("numbers", [torch.bool, torch.int64])
def test_an_input_of_integers_in_the_middle_is_refused(numbers):
    class Masked(Between):
        def forward(self, x, mask):
            return self.last(torch.where(mask > 0, F.relu(self.first(x)), 0.0))

    n = torch.export.Dim("n")
    example = torch.randn(2, 3, 8, 8), torch.ones(2, 1, 8, 8, dtype=numbers)
    program = torch.export.export(
        Masked(None).eval(), example, dynamic_shapes=({0: n}, {0: n}), strict=False
    )
    with pytest.raises(UnsupportedError, match=r"Give the network floats|beside"):
        capture_program(program, float_islands=True)


def test_the_fingerprint_knows_what_an_island_computes():
    prints = set()
    for axis in (2, 3, 3):
        torch.manual_seed(0)  # of the weights around it
        module = Between(lambda x, axis=axis: x.cumsum(axis))
        prints.add(captured(module, torch.randn(2, 3, 8, 8)).fingerprint)
    assert len(prints) == 2
