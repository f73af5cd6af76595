"""The captured graph is the exported network, for any batch, in canonical operators only."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
        x = x * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        return F.softmax(x.mean((2, 3)), 1)


def test_unsupported_operators_are_listed_at_once():
    with pytest.raises(UnsupportedError) as error:
        capture_program(export(Excitation().eval()))
    text = str(error.value)
    assert text.startswith("2 operators")
    assert "aten.mul.Tensor" in text
    assert "test_capture.py:" in text
    assert "product of two activations" in text
    assert "softmax" in text


REFUSED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "mean over batch": (lambda x: x.mean(0, keepdim=True), "averages over the batch"),
    "flip batch": (lambda x: x.permute(1, 0, 2, 3), "moves the batch"),
    "merge batch": (lambda x: x.view(-1, 4), "moves the batch"),
    "cat batch": (lambda x: torch.cat([x, x], 0), "along the batch"),
    "reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "mode 'reflect'"),
    "pad with one": (lambda x: F.pad(x, (1, 1), value=1.0), "value 1"),
    "uneven pool": (lambda x: F.adaptive_avg_pool2d(x, 5), "different sizes"),
    "uncounted padding": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        r"avg_pool2d.*test_capture.py:\d+.*divided by fewer.*count_include_pad=True",
    ),
    "ceil mode": (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), "ceil_mode=False"),
    "sum over channels": (lambda x: x.sum(1), "behind the channels"),
    "largest of all": (lambda x: x * x.max(), "name the axes"),
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

    monkeypatch.setattr("tvmq.capture.capture._samples", samples)
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
