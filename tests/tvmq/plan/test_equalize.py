"""Equalization: the same bits in float, channels balanced, no step coarser, and it settles."""

import copy
from dataclasses import replace

import pytest
import torch
from quantization_cases import calibration, float_model, images
from torch import nn

from targets.errors import InputError
from tvmq.calibrate.batch_norm_ranges import ranges_from_batch_norm
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.float_model import Equalization, by_input_channel, constant_of
from tvmq.plan.equalize import equalize, equalize_as, find_links
from tvmq.regions import PRODUCTS, op_of

NETWORKS = ["mobilenet_rescaled", "vgg_small", "resnet_small", "mlp", "grouped", "densenet_small"]


def _rescaled(model, seed):
    """With weights of channels made up to 2**5 times larger or smaller: another function."""
    changed = replace(model, graph_module=copy.deepcopy(model.graph_module))
    generator = torch.Generator().manual_seed(seed)
    for node in changed.graph_module.graph.nodes:
        if op_of(node) in PRODUCTS:
            weight = constant_of(changed.graph_module, node.args[1])
            sizes = torch.exp2(10 * torch.rand(len(weight), generator=generator) - 5)
            weight.mul_(sizes.reshape(-1, *[1] * (weight.ndim - 1)))
    return changed


def _outputs(model, x):
    with torch.no_grad():
        return model.graph_module(x)


def _ranges(model, x):
    return calibrate(model, [x]).channels


def _captured(net, *shape):
    batch = {0: torch.export.Dim("batch")}
    x = torch.randn(32, *shape, generator=torch.Generator().manual_seed(3))
    return capture_program(torch.export.export(net.eval(), (x,), dynamic_shapes=(batch,))), x


def _sizes(model, x):
    """Of each link: weights that make a channel, what it reaches, weights that read it, float[C].

    All are relative to the largest of their tensor.
    """
    links, ranges = find_links(model.graph_module)[0], _ranges(model, x)
    for link in links:
        made = model.weight_of(link.maker).flatten(1).abs().amax(1)
        (reader,) = link.readers
        read = by_input_channel(model.weight_of(reader.node), reader.node)
        read = read.abs().amax((1, 3)).flatten()
        held = ranges[link.tensors[-1][0]].reach
        yield link, *(size / size.max() for size in (made, held, read))


@pytest.mark.parametrize("name", [*NETWORKS, "detector_small", "silu_net", "shufflenet_small"])
def test_outputs_are_equal_to_the_bit(name):
    model, x = _rescaled(float_model(name), 2), images(name)
    changed = equalize(model, _ranges(model, x))
    assert changed.fingerprint != model.fingerprint
    assert changed.equalization.exponents
    for one, other in zip(_outputs(changed, x), _outputs(model, x), strict=True):
        assert torch.equal(one, other)


def test_the_model_that_is_given_stays_as_it_is():
    model = float_model("mobilenet_rescaled")
    before = {name: value.clone() for name, value in model.graph_module.state_dict().items()}
    equalize(model, calibration("mobilenet_rescaled").channels)
    after = model.graph_module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_channels_are_balanced():
    """What is large in front and small behind comes together, as far as the activation lets it."""
    model, x = float_model("mobilenet_rescaled"), images("mobilenet_rescaled")
    spreads = []
    for one in (model, equalize(model, _ranges(model, x))):
        worst = 0.0
        for _, made, held, read in _sizes(one, x):
            wanted = ((made**-2 + held**-2) ** -0.5 / read).log2() / 2
            worst = max(worst, float(wanted.abs().max()))
        spreads.append(worst)
    assert spreads[1] < 1.25 < 2.9 < spreads[0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["vgg_small", "mobilenet_rescaled", "densenet_small"])
def test_it_settles(name, seed):
    """A second run finds nothing to do, wherever it starts."""
    x, model = images(name), _rescaled(float_model(name), seed)
    settled = equalize(model, _ranges(model, x))
    again = equalize(settled, _ranges(settled, x))
    assert settled.equalization.exponents
    assert again.equalization.exponents == {}
    assert again.fingerprint == settled.fingerprint


@pytest.mark.parametrize("name", NETWORKS)
def test_no_tensor_gets_larger(name):
    """Neither weights nor activations reach further, so none needs a coarser step."""
    x, model = images(name), _rescaled(float_model(name), 5)
    changed = equalize(model, _ranges(model, x))
    before, after = _ranges(model, x), _ranges(changed, x)
    for link in find_links(model.graph_module)[0]:
        for key, _ in link.tensors:
            if key in before:
                assert after[key].reach.max() <= before[key].reach.max()
        for node in (link.maker, *(reader.node for reader in link.readers)):
            weights = [one.weight_of(one.nodes[node.name]).abs().max() for one in (model, changed)]
            assert weights[1] <= weights[0]


class _WithSmallRows(nn.Module):
    """Three channels whose weights are none or next to none, and whose bias is as large as any."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.a.bias.abs_()
            for i, size in enumerate((0.0, 1e-8, 1e-3)):
                self.a.weight[i] *= size
                self.a.bias[i] = 2.0
            self.a.weight[3] *= 0.01
            self.a.bias[3] *= 0.01
            self.a.bias[4] = -100.0  # never active
            self.b.weight[:, 5] = 0.0
            self.b.weight[:, 3] *= 100

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def test_dead_channels_stay_and_small_ones_with_a_large_bias_do_not_grow():
    torch.manual_seed(0)
    model, x = _captured(_WithSmallRows(), 3, 8, 8)
    changed = equalize(model, _ranges(model, x))
    exponents = changed.equalization.exponents["conv2d"]
    assert [exponents[i] for i in (0, 1, 2, 4, 5)] == [0, 0, 0, 0, 0]
    assert exponents[3] <= -2
    reach = [_ranges(one, x)["relu"].reach.max() for one in (model, changed)]
    assert reach[1] <= reach[0]


def test_weights_per_channel_may_be_small_in_front():
    """One step for all rows keeps a small row from being halved, a step of its own does not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        net[0].weight[0] *= 0.01
        net[0].bias[0] = 1.5  # so that the activation is as large as the others
        net[2].weight[:, 0] *= 0.01
    model, x = _captured(net, 3, 8, 8)
    ranges = _ranges(model, x)
    shared, own = (
        equalize(model, ranges, per_channel=each).equalization.exponents.get("conv2d", (0,))
        for each in (False, True)
    )
    assert shared[0] == 0
    assert own[0] >= 2


def test_a_clamp_forbids_it():
    model, x = float_model("mobilenet_small"), images("mobilenet_small")
    model = _rescaled(model, 1)
    changed = equalize(model, _ranges(model, x))
    links, clamped = find_links(model.graph_module)
    assert (len(links), clamped) == (1, 5)
    assert "5 more have a clamp such as ReLU6 behind them" in changed.equalization.reason
    touched = {links[0].maker.name} | {reader.node.name for reader in links[0].readers}
    for node in model.graph_module.graph.nodes:
        if op_of(node) in PRODUCTS and node.name not in touched:
            assert torch.equal(model.weight_of(node), changed.weight_of(changed.nodes[node.name]))


def test_what_is_added_or_returned_is_left_alone():
    links, _ = find_links(float_model("resnet_small").graph_module)
    assert [(link.maker.name, [r.node.name for r in link.readers]) for link in links] == [
        ("conv2d_1", ["conv2d_2"]),
        ("conv2d_3", ["conv2d_4"]),
    ]
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = net, nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = self.first(x)
            return self.last(y), y

    assert find_links(_captured(Net(), 3, 4, 4)[0].graph_module) == ([], 0)


def test_it_sees_through_concatenations():
    """Each part has its place in the weights that read them, those of several readers too."""
    links = {
        link.maker.name: {(reader.node.name, reader.offset) for reader in link.readers}
        for link in find_links(float_model("densenet_small").graph_module)[0]
    }
    assert links == {
        "conv2d": {("conv2d_1", 0), ("conv2d_2", 0), ("conv2d_3", 0)},
        "conv2d_1": {("conv2d_2", 8), ("conv2d_3", 8)},
        "conv2d_2": {("conv2d_3", 16)},
        "conv2d_3": {("linear", 0)},
    }


class _Branches(nn.Module):
    """A narrow and a wide branch; what reads both makes up for their sizes."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            for constant in (self.b.weight, self.b.bias):
                constant *= 1000
            self.c.weight[:, 4:] /= 1000

    def forward(self, x):
        narrow = nn.functional.pad(torch.relu(self.a(x)), (0, 1, 1, 0))
        wide = nn.functional.pad(torch.max_pool2d(torch.relu(self.b(x)), 3, 1, 1), (0, 1, 1, 0))
        return self.c(torch.cat([narrow, wide], 1))


def test_a_narrow_branch_comes_as_far_as_the_wide_one():
    torch.manual_seed(0)
    model, x = _captured(_Branches(), 3, 6, 6)
    changed = equalize(model, _ranges(model, x))
    assert torch.equal(_outputs(changed, x)[0], _outputs(model, x)[0])
    for one, least, most in ((model, 0, 0.01), (changed, 0.1, 1)):
        reach = _ranges(one, x)["cat"].reach
        assert least <= reach[:4].max() / reach[4:].max() <= most


class _Tokens(nn.Module):
    """Layer norms read by linear layers: as they are, in windows, and of a class token."""

    def __init__(self, read=None):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.read = read
        with torch.no_grad():
            for norm in self.norms:
                norm.weight.copy_(torch.tensor([1, 40, 0.02, 1, 0, 1, 3, -0.1]))
                norm.bias.normal_().mul_(norm.weight)

    def forward(self, x):
        y = self.norms[0](x)
        x = x + self.a(y) + self.b(y)
        if self.read:
            return self.read(x, self.norms[1](x), self.c)
        windows = self.norms[1](x).reshape(-1, 3, 2, 2, 8).permute(0, 1, 3, 2, 4)
        x = x + self.c(windows.reshape(-1, 6, 2, 8)).reshape(-1, 12, 8)
        return self.d(self.norms[2](x)[:, 0])


def test_channels_behind_layer_norms_are_made_equal():
    torch.manual_seed(0)
    model, x = _captured(_Tokens(), 12, 8)
    links, _ = find_links(model.graph_module)
    assert [(link.maker.name, len(link.readers)) for link in links] == [
        ("layer_norm", 2), ("layer_norm_1", 1), ("layer_norm_2", 1)
    ]  # fmt: skip
    changed = equalize(model, _ranges(model, x))
    assert torch.equal(_outputs(changed, x)[0], _outputs(model, x)[0])
    for link in links:
        exponents = changed.equalization.exponents[link.maker.name]
        assert exponents[1] == exponents[4] == 0 > exponents[0] > exponents[2]
        reach = [_ranges(one, x)[link.maker.name].reach for one in (model, changed)]
        alive = reach[0] > 0
        spread = [float(size[alive].max() / size[alive].min()) for size in reach]
        assert spread[1] < spread[0] / 16
        assert reach[1].max() <= reach[0].max()
    again = equalize(changed, _ranges(changed, x))
    assert again.equalization.exponents == {}


@pytest.mark.parametrize(
    "read",
    [
        lambda x, y, layer: y + layer(y),
        lambda x, y, layer: layer(torch.cat([x, y], 1)),
        lambda x, y, layer: layer(y) @ y.transpose(1, 2),
        lambda x, y, layer: layer(y[..., [1, 0, 2, 3, 4, 5, 6, 7]].reshape(-1, 6, 16)[..., 8:]),
        lambda x, y, layer: layer(y.reshape(-1, 8, 12).transpose(1, 2)),
        lambda x, y, layer: layer(torch.sigmoid(y)),
    ],
    ids=["added", "joined with other tokens", "multiplied", "cut", "mixed", "by a function"],
)
def test_a_layer_norm_that_others_read_is_left_alone(read):
    links, _ = find_links(_captured(_Tokens(read), 12, 8)[0].graph_module)
    assert [link.maker.name for link in links] == ["layer_norm"]


def test_batch_norm_statistics_move_along():
    """Data-free ranges of a channel shrink by what the channel was divided by."""
    model = float_model("mobilenet_rescaled")
    changed = equalize(model, ranges_from_batch_norm(model).channels)
    assert changed.equalization.exponents
    for name, stats in model.batch_norms.items():
        exponents = changed.equalization.exponents.get(name, (0,) * len(stats.gamma))
        scale = torch.exp2(-torch.tensor(exponents).float())
        torch.testing.assert_close(changed.batch_norms[name].gamma, stats.gamma * scale)
        torch.testing.assert_close(changed.batch_norms[name].beta, stats.beta * scale)
    assert ranges_from_batch_norm(changed).histograms.keys() == (
        ranges_from_batch_norm(model).histograms.keys()
    )


def test_it_can_be_done_again_without_ranges():
    model, x = float_model("mobilenet_rescaled"), images("mobilenet_rescaled")
    changed = equalize(model, _ranges(model, x))
    again = equalize_as(model, changed.equalization)
    assert again.fingerprint == changed.fingerprint
    assert again.batch_norms.keys() == changed.batch_norms.keys()


@pytest.mark.parametrize(
    ("exponents", "words"),
    [
        ({"conv2d_99": (1,)}, "conv2d_99 does not fit the network"),
        ({"conv2d_1": (1, 2)}, "conv2d_1 does not fit the network: .* whose 2 channels"),
        ({"conv2d_1": (16, *[0] * 31)}, "more than 15 either way"),
    ],
)
def test_what_does_not_fit_is_refused(exponents, words):
    with pytest.raises(InputError, match=words):
        equalize_as(float_model("mobilenet_rescaled"), Equalization(exponents, ""))
