"""The captured graph is the exported network, for any batch, in canonical operators only."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from targets.errors import InputError, UnsupportedError
from tvmq.capture.capture import capture, capture_program

aten = torch.ops.aten
CANONICAL = {
    aten.conv2d.default,
    aten.linear.default,
    aten.relu.default,
    aten.clamp.default,
    aten.add.Tensor,
    aten.cat.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.reshape.default,
    aten.permute.default,
    aten.slice.Tensor,
    aten.constant_pad_nd.default,
    aten.hardswish.default,
    aten.gelu.default,
}


def conv_bn(c: int, k: int, size: int = 3, **options) -> nn.Sequential:
    options.setdefault("padding", size // 2)
    return nn.Sequential(nn.Conv2d(c, k, size, bias=False, **options), nn.BatchNorm2d(k))


class OptionA(nn.Module):
    """A residual block whose shortcut is a strided slice, padded with zero channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 8), conv_bn(8, 16, stride=2), conv_bn(16, 16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.b(F.relu(self.a(x), inplace=True))
        y += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        y = F.relu(y)
        y = F.avg_pool2d(y, y.size()[3])
        return self.fc(y.view(y.size(0), -1))


class Inverted(nn.Module):
    """Inverted residual with ReLU6 and a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(5, 30, 1), nn.ReLU6(inplace=True), conv_bn(30, 30, groups=30), nn.ReLU6(),
            conv_bn(30, 5, 1),
        )  # fmt: skip
        self.stem, self.drop, self.fc = conv_bn(3, 5, stride=2), nn.Dropout(), nn.Linear(5, 3)

    def forward(self, x):
        x = F.hardtanh(self.stem(x), 0.0, 6.0)
        x = x + self.body(x)
        return self.fc(self.drop(x.mean([2, 3])))


class Dense(nn.Module):
    """Concatenation after a pre-activation batch norm, as in DenseNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.conv, self.last = nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)
        return F.adaptive_avg_pool2d(F.relu(self.last(x)), 1).squeeze(-1).squeeze(-1)


class Shuffle(nn.Module):
    """Split, grouped convolution, channel shuffle by view and transpose."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 1), conv_bn(4, 4, groups=2)

    def forward(self, x):
        a, b = self.stem(x).chunk(2, 1)
        x = torch.cat([a, F.relu(self.conv(b))], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class InPlaceOnView(nn.Module):
    """Mutates a view: only right if the mutation reaches the tensor behind it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        F.relu_(x)
        return x, x[:, 1:3]


class Scaled(nn.Module):
    """Normalisation inside the network, scalar sums, a factor per channel."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.conv, self.fc, self.norm = nn.Conv2d(3, 4, 3), nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.after = nn.BatchNorm1d(6, affine=False)

    def forward(self, x):
        x = self.conv((x - self.mean) / 0.25)
        x = F.relu(x * self.scale + 1.0)
        x = self.norm(self.fc(x.mean((2, 3))))
        return self.after(F.relu(1.0 - x))


class Shared(nn.Module):
    """A convolution whose output is used twice, and one weight used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.conv(x)
        y = self.norm(x) + x
        return self.other(self.conv(y))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet option A": OptionA,
    "mobilenet": Inverted,
    "vgg": lambda: nn.Sequential(
        nn.Conv2d(3, 17, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
        conv_bn(17, 5), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), nn.Flatten(),
        nn.Dropout(), nn.Linear(5 * 16, 7), nn.ReLU(), nn.Linear(7, 3),
    ),
    "grouped": lambda: nn.Sequential(conv_bn(3, 12, groups=3), nn.ReLU(), conv_bn(12, 8, groups=4)),
    "densenet": Dense,
    "shuffle": Shuffle,
    "asymmetric pad": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), conv_bn(3, 4, padding=0)),
    "same padding": lambda: nn.Sequential(nn.Conv2d(3, 4, 4, padding="same"), nn.BatchNorm2d(4)),
    "dilated same": lambda: nn.Conv2d(3, 4, (2, 3), padding="same", dilation=(3, 2)),
    "dilation": lambda: conv_bn(3, 100, dilation=2, padding=(2, 0)),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(768, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)
    ),
    "preact": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), conv_bn(3, 4)),
    "no affine": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
    "two norms": lambda: nn.Sequential(conv_bn(3, 4), nn.BatchNorm2d(4)),
    "in place": InPlaceOnView,
    "scaled": Scaled,
    "shared": Shared,
    "unary": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Hardswish(inplace=True), nn.GELU("tanh"), nn.GELU(),
        nn.AdaptiveAvgPool2d((2, 7)), nn.AvgPool2d(2, 1, 1),
    ),
}  # fmt: skip


def with_statistics(module: nn.Module) -> nn.Module:
    """Weights from a fixed seed and batch norms that are far from the identity."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.3, 3, generator=generator)
            if part.affine:
                part.weight.data.normal_(generator=generator)
                part.bias.data.normal_(generator=generator)
    return module.eval()


def export(module: nn.Module, batch: int = 1, dynamic: bool = False, shape=(3, 16, 16)):
    x = torch.randn(batch, *shape)
    return torch.export.export(
        module, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},) if dynamic else None
    )


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_static_batch_one_is_the_same_function_for_any_batch(name):
    module = with_statistics(NETWORKS[name]())
    model = capture_program(export(module))
    x = torch.randn(3, 3, 16, 16)
    expected = module(x)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for want, got, spec in zip(expected, model.graph_module(x), model.outputs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert spec.shape[1:] == want.shape[1:]
    calls = [node for node in model.graph_module.graph.nodes if node.op == "call_function"]
    assert {node.target for node in calls} <= CANONICAL
    assert all(node.name in model.origins for node in calls)
    assert all(node.meta["val"].shape[0] == 1 for node in calls)


@torch.no_grad()
def test_dynamic_batch_leaves_no_sizes():
    module = with_statistics(OptionA())
    model = capture_program(export(module, batch=4, dynamic=True))
    x = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(model.graph_module(x)[0], module(x), rtol=1e-4, atol=1e-4)
    (reshape,) = [n for n in model.graph_module.graph.nodes if n.target is aten.reshape.default]
    assert reshape.args[1] == [-1, 16]


@torch.no_grad()
def test_core_aten_decompositions_capture_too():
    module = with_statistics(Inverted())
    model = capture_program(export(module).run_decompositions())
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.graph_module(x)[0], module(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_double_precision_is_converted_with_a_note():
    module = with_statistics(conv_bn(3, 4)).double()
    x = torch.randn(1, 3, 8, 8)
    model = capture_program(torch.export.export(module, (x.double(),)))
    torch.testing.assert_close(model.graph_module(x)[0], module(x.double()).float())
    assert model.notes == ("weights of type float64 were converted to float32",)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(2, 4, 3)

    def forward(self, left, right):
        y = self.a(left) + self.b(right)
        return {"logits": y.mean((2, 3)), "maps": [y, F.relu(y)]}


@torch.no_grad()
def test_inputs_and_outputs_keep_their_names():
    module = TwoInputs().eval()
    left, right = torch.randn(1, 3, 8, 8), torch.randn(1, 2, 8, 8)
    model = capture_program(torch.export.export(module, (left,), {"right": right}))
    assert [spec.name for spec in model.inputs] == ["left", "right"]
    plain = capture_program(export(nn.Sequential(nn.ReLU()).eval()))
    assert plain.inputs[0].name == "input"
    assert [spec.name for spec in model.outputs] == ["logits", "maps.0", "maps.1"]
    want = module(left, right)
    got = model.graph_module(left, right)
    torch.testing.assert_close(got[0], want["logits"])
    torch.testing.assert_close(got[2], want["maps"][1])


def test_origins_name_module_and_user_line():
    model = capture_program(export(with_statistics(OptionA())))
    origin = model.origins["add"]
    assert origin.source.startswith("test_capture.py:")
    assert model.origins["conv2d_1"].module == "a.0"


class Excitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        x = self.squeeze(torch.cumsum(x, 1))
        x = self.squeeze(x - x.median(1, keepdim=True).values)
        return F.log_softmax(x.mean((2, 3)), 1)


def test_unsupported_operators_are_listed_at_once():
    with pytest.raises(UnsupportedError) as error:
        capture_program(export(Excitation().eval()))
    text = str(error.value)
    assert text.startswith("2 operators")
    assert "aten.cumsum.default" in text
    assert "test_capture.py:" in text
    assert "aten.median.dim" in text
    assert "log_softmax" not in text  # at the network's end


REFUSED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "mean over batch": (lambda x: x.mean(0, keepdim=True), "averages over the batch"),
    "flip batch": (lambda x: x.permute(1, 0, 2, 3), "its batch elsewhere"),
    "merge batch": (lambda x: x.view(-1, 4), "its batch elsewhere"),
    "along the batch": (lambda x: x.permute(1, 2, 3, 0).softmax(-1), "works along the batch"),
    "cat batch": (lambda x: torch.cat([x, x], 0), "along the batch"),
    "pad with one": (lambda x: F.pad(x, (1, 1), value=1.0), "value 1"),
    "enlarging pool": (
        lambda x: F.adaptive_avg_pool2d(x, 32),
        r"adaptive_avg_pool2d.*test_capture.py:\d+.*windows differ too much",
    ),
    "sum over channels": (lambda x: x.sum(1), "behind the channels"),
    "largest of all": (lambda x: x * x.max(), "Name the axes"),
    "truth values": (lambda x: torch.isnan(x) * 1.0, "only floats"),
    "indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[1] * 1.0, "indices"),
}


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused_with_a_reason(name):
    function, reason = REFUSED[name]
    with pytest.raises(UnsupportedError, match=reason):
        capture_program(export(Applied(function).eval(), shape=(4, 16, 16)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value):
    network = nn.Sequential(conv_bn(3, 4), conv_bn(4, 4)).eval()
    with torch.no_grad():
        network[1][1].running_mean[2] = value
    with pytest.raises(InputError, match=r"NaN or infinite.*1_1_running_mean \(module 1\.1\)"):
        capture_program(export(network))


def test_training_mode_is_refused():
    with pytest.raises(UnsupportedError, match=r"model\.eval\(\)"):
        capture_program(export(conv_bn(3, 4).train(), batch=2))
    with pytest.raises(UnsupportedError, match=r"model\.eval\(\)"):
        capture_program(export(nn.Dropout().train(), batch=2))


def test_dynamic_height_is_refused():
    x = torch.randn(1, 3, 16, 16)
    program = torch.export.export(
        nn.ReLU().eval(), (x,), dynamic_shapes=({2: torch.export.Dim("h", max=64)},)
    )
    with pytest.raises(UnsupportedError, match=r"dynamic axes \[2\]"):
        capture_program(program)


def test_integer_input_is_refused():
    program = torch.export.export(
        Applied(lambda x: x.float()).eval(), (torch.ones(1, 4, dtype=torch.int64),)
    )
    with pytest.raises(UnsupportedError, match="int64"):
        capture_program(program)


def test_fingerprint_follows_weights(tmp_path):
    module = with_statistics(OptionA())
    torch.export.save(export(module), tmp_path / "a.pt2")
    first = capture(tmp_path / "a.pt2").fingerprint
    assert capture(tmp_path / "a.pt2").fingerprint == first
    module.fc.bias.data[0] += 1
    assert capture_program(export(module)).fingerprint != first


def test_a_program_without_mutation_is_not_traced_again(monkeypatch):
    def decompose(*_args):
        raise AssertionError("traced again")

    example = (torch.randn(2, 3, 8, 8),)
    plain = nn.Sequential(conv_bn(3, 4), nn.ReLU(), nn.Dropout(), nn.Flatten()).eval()
    changing = nn.Sequential(conv_bn(3, 4), nn.ReLU(inplace=True)).eval()
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", decompose)
    capture_program(torch.export.export(plain, example))
    with pytest.raises(UnsupportedError, match="traced again"):
        capture_program(torch.export.export(changing, example))


def test_values_that_no_memory_holds(monkeypatch):
    class Repeat(nn.Module):
        def forward(self, x):
            return nn.functional.pad(x, (0, 10**5, 0, 10**5))

    with pytest.raises(UnsupportedError, match=r"gives a value of .* GB, more than 4 GB"):
        capture_program(torch.export.export(Repeat(), (torch.zeros(2, 3, 8, 8),)))
    too_large = torch.export.export(nn.ReLU(), (torch.zeros(2, 3, 8, 8),))
    monkeypatch.setattr("tvmq.capture.canonical_graph.LARGEST_VALUE", 100)
    with pytest.raises(UnsupportedError, match=r"input .* gives a value of"):
        capture_program(too_large)


def test_a_lack_of_memory_is_said(tmp_path, monkeypatch):
    def samples(*_args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("tvmq.capture.capture.noise_like", samples)
    program = torch.export.export(nn.ReLU(), (torch.zeros(2, 3, 8, 8),))
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(UnsupportedError, match="too large for this machine's memory"):
        capture(tmp_path / "m.pt2")


def test_what_torch_raises_at_a_graph_is_said_of_the_file(tmp_path, monkeypatch):
    def raise_it(*_, **__):
        raise IndexError("tuple index out of range")

    program = torch.export.export(nn.Linear(3, 4).eval(), (torch.randn(2, 3),))
    torch.export.save(program, tmp_path / "m.pt2")
    monkeypatch.setattr("tvmq.capture.capture.canonicalize", raise_it)
    with pytest.raises(
        UnsupportedError, match=r"m\.pt2: this network can't be captured: tuple ind"
    ):
        capture(tmp_path / "m.pt2")


POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "uncounted padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "one column": lambda x: F.avg_pool2d(x, (3, 1), (2, 1), (1, 0), count_include_pad=False),
    "ceil mode": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "ceil mode, counted": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "ceil mode, uncounted": lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
    "divided by seven": lambda x: F.avg_pool2d(x, 3, 2, 1, True, False, 7),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (4, 5)),
    "adaptive maximum": lambda x: F.adaptive_max_pool2d(x, (4, 5)),
    "one axis": lambda x: F.adaptive_avg_pool2d(x, (None, 4)),
    "overlapping": lambda x: F.adaptive_avg_pool2d(x, (5, 5))[..., :4],
}


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("shape", [(3, 9, 7), (2, 8, 8), (1, 5, 10)])
def test_poolings_whose_windows_differ_are_written_in_regions(name, shape):
    function = POOLINGS[name]
    model = capture_program(export(Applied(function).eval(), shape=shape))
    x = torch.rand(3, *shape) + 1.0  # of nonzero mean, so that a wrong divisor is seen
    torch.testing.assert_close(model.graph_module(x)[0], function(x), rtol=1e-5, atol=1e-6)
    poolings = (aten.avg_pool2d.default, aten.max_pool2d.default, aten.cat.default)
    for node in model.graph_module.graph.nodes:
        if node.op == "call_function":
            assert node.target in (*poolings, aten.slice.Tensor)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, weight, conv_weight):
        return self.conv(F.conv2d(weight, self.weight)) + conv_weight


@torch.no_grad()
def test_an_input_may_have_the_name_of_a_weight():
    module = Named().eval()
    x, y = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 6, 6)
    model = capture_program(torch.export.export(module, (x, y)))
    assert [spec.name for spec in model.inputs] == ["weight", "conv_weight"]
    torch.testing.assert_close(model.graph_module(x, y)[0], module(x, y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_with_what_float32_gives(dtype):
    """The rounding of bfloat16 alone is above what sums in another order may differ by."""
    network = nn.Sequential(conv_bn(3, 64), nn.ReLU(), conv_bn(64, 64), nn.ReLU(), conv_bn(64, 8))
    program = torch.export.export(network.eval().to(dtype), (torch.randn(2, 3, 9, 9, dtype=dtype),))
    model = capture_program(program)
    assert model.notes == (f"weights of type {str(dtype)[6:]} were converted to float32",)


class Cast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.conv(x.to(torch.bfloat16)).float()


def test_a_cast_to_half_precision_within_the_network_is_run_in_float32():
    program = export(Cast().eval().to(torch.bfloat16), batch=2)
    assert capture_program(program).outputs[0].dtype == "float32"


class Ghost(nn.Module):
    """Writes to slices of what it has computed."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        y = self.a(x)
        y[:, 2:6] += self.b(x)
        whole = y[:, :8]
        whole += 1.0
        return whole, y.unbind(1)[3]


@torch.no_grad()
def test_writing_to_slices_is_joining():
    module = Ghost().eval()
    model = capture_program(export(module, batch=2, dynamic=True))
    x = torch.randn(3, 3, 16, 16)
    for got, want in zip(model.graph_module(x), module(x), strict=True):
        torch.testing.assert_close(got, want)


@torch.no_grad()
def test_what_is_made_of_numbers_is_a_constant():
    module = Applied(lambda x: x + torch.arange(3.0).reshape(3, 1, 1) * torch.full((1,), 2.0))
    model = capture_program(export(module.eval()))
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.graph_module(x)[0], module(x))


def weight_norm_of(dim):
    return lambda layer: parametrizations.weight_norm(layer, dim=dim)


@torch.no_grad()
@pytest.mark.parametrize(
    "norm",
    [*map(weight_norm_of, (0, 1, None)), parametrizations.spectral_norm],
    ids=["weight norm", "over another axis", "over all axes", "spectral norm"],
)
def test_weights_that_are_normed_are_constants(norm):
    module = nn.Sequential(norm(nn.Conv2d(3, 8, 3)), nn.Flatten(), norm(nn.Linear(8 * 36, 5)))
    model = capture_program(export(module.eval(), shape=(3, 8, 8)))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.graph_module(x)[0], module(x))


def test_a_weight_norm_of_other_sizes_than_its_weight_is_refused():
    module = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 8, 3))).eval()
    program = export(module)
    size = next(name for name in program.state_dict if name.endswith("original0"))
    program.state_dict[size] = torch.ones(3, 1, 1, 1)
    with pytest.raises(UnsupportedError):
        capture_program(program)


@torch.no_grad()
def test_functions_that_are_undefined_for_noise_are_compared_where_they_are_defined():
    module = Applied(lambda x: torch.log(x + 1.0) + torch.cat([x[:, :1], x[:, 1:]], 1)).eval()
    model = capture_program(export(module))
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model.graph_module(x)[0], module(x))


class ChannelsLast(nn.Module):
    """ConvNeXt's block, its norm apart: dense layers over the last of four axes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x, scale=1.0):
        y = self.conv(x)
        z = self.narrow(F.gelu(self.wide(y.permute(0, 2, 3, 1))))
        return y + z.permute(0, 3, 1, 2) * scale


@torch.no_grad()
def test_a_dense_layer_over_the_last_of_four_axes_is_a_convolution():
    module, x = ChannelsLast().eval(), torch.randn(2, 3, 8, 8)
    model = capture_program(torch.export.export(module, (x, 0.5)))
    torch.testing.assert_close(model.graph_module(x)[0], module(x, 0.5))
    targets = [node.target for node in model.graph_module.graph.nodes]
    assert targets.count(aten.conv2d.default) == 3
    assert aten.linear.default not in targets
    assert aten.permute.default not in targets
    assert [spec.name for spec in model.inputs] == ["x"]


class Grid(nn.Module):
    """Adds positions that it computes by operators without a rule."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        rows = 10.0 ** torch.arange(y.shape[-1], device=x.device).div(4, rounding_mode="floor")
        return y + rows


def test_what_depends_on_no_input_is_computed_without_tracing_again(monkeypatch):
    x = torch.randn(2, 3, 8, 8)
    program = torch.export.export(Grid(), (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert any("arange" in str(node.target) for node in program.graph.nodes)
    monkeypatch.setattr("tvmq.capture.canonicalize._decomposed", lambda _: pytest.fail("traced"))
    model = capture_program(program)
    torch.testing.assert_close(model.graph_module(x)[0], program.module()(x))
