"""Complete plans: fields, exactness, policies."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from models import export
from quantization_cases import float_model, plan
from torch import nn

from targets.errors import ArithmeticRangeError, InputError, UnsupportedError
from targets.rounding import FLOOR, Rounding, RoundingMode
from tvmq.calibrate.batch_norm_ranges import ranges_from_batch_norm
from tvmq.calibrate.calibrate import calibrate
from tvmq.calibrate.observers import STEP_OF_ZEROS
from tvmq.capture.capture import capture_program
from tvmq.plan.annotate import annotate
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.planner import make_plan
from tvmq.plan.rounded_bias import rounded_bias
from tvmq.plan.weight_steps import weight_codes
from tvmq.reconstruct.engine import reconstruct
from tvmq.regions import find_regions
from tvmq.settings import Settings

NETWORKS = ["resnet_small", "resnet_projection", "mobilenet_small", "densenet_small", "preact"]


def _plan(name, **settings):
    return plan(name, Settings(**settings))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_power_of_two_steps(name, granularity):
    quantized = _plan(name, granularity=granularity)
    pools = {
        n for n, layer in find_regions(float_model(name)).layers.items() if layer.kind == "pool"
    }
    steps = [value.step for value in quantized.values.values()]
    steps += [s for n, w in quantized.weights.items() if n not in pools for s in w.steps]
    assert all(math.frexp(step)[0] == 0.5 for step in steps)
    for layer, integers in quantized.requantize.items():
        if layer not in pools:
            assert set(integers.multiplier) == {1}
            assert integers.residual_multiplier == 1


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("scales", ["pot", "free"])
def test_integers_equal_the_steps(name, granularity, scales):
    """The integers are the ratios of steps to 50 bits, residual and additions included."""
    quantized = _plan(name, granularity=granularity, scales=scales)
    checked = 0
    for layer in find_regions(float_model(name)).layers.values():
        if not layer.output:
            continue
        output = Fraction(quantized.values[layer.output].step)
        pairs = []
        if layer.kind == "add":
            add = quantized.additions[layer.name]
            for side, m, left in zip(layer.inputs, add.multipliers, add.shifts, strict=True):
                ratio = Fraction(quantized.values[side].step) / output
                pairs.append((Fraction(m << left, 2**add.shift), ratio))
        if layer.name in quantized.weights:
            scale = quantized.requantize[layer.name]
            source = Fraction(quantized.values[layer.inputs[0]].step)
            for k, step in enumerate(quantized.weights[layer.name].steps):
                held = Fraction(scale.multiplier[k] << scale.fraction, 2 ** scale.shift[k])
                pairs.append((held, source * Fraction(step) / output))
                if layer.residual:
                    left = scale.residual_multiplier << scale.residual_shift[k]
                    ratio = Fraction(quantized.values[layer.residual].step) / output
                    pairs.append((Fraction(left, 2 ** scale.shift[k]), ratio))
        assert all(abs(held / ratio - 1) < Fraction(1, 2**50) for held, ratio in pairs)
        checked += len(pairs)
    assert checked > 5


@pytest.mark.parametrize("name", NETWORKS)
def test_fields_and_proofs(name):
    for scales in ("pot", "free"):
        quantized = _plan(name, scales=scales, granularity="channel")
        for integers in quantized.requantize.values():
            assert 0 <= integers.fraction <= 15
            assert all(1 <= m <= 65535 for m in integers.multiplier)
            assert all(0 <= s <= 47 for s in integers.shift)
            assert all(0 <= s <= 31 for s in integers.residual_shift)
            assert max(integers.shift) - min(integers.shift) <= 15
        assert quantized.proofs.keys() == quantized.weights.keys()
        assert all(0 < proof.total <= proof.limit for proof in quantized.proofs.values())


def test_bits_of_first_and_last_layer():
    quantized = _plan("resnet_small", weight_bits=2, activation_bits=4)
    bits = {name: weight.bits for name, weight in quantized.weights.items() if name != "avg_pool2d"}
    assert bits == {"conv2d": 8, "linear": 8, **{f"conv2d_{i}": 2 for i in (1, 2, 3, 4)}}
    bits = {name: value.bits for name, value in quantized.values.items()}
    assert bits == {"x": 8, "avg_pool2d": 8, "relu": 4, **{f"relu_{i}": 4 for i in (1, 2, 3, 4)}}
    assert quantized.values["relu_1"].high == 15
    assert _plan("resnet_small", weight_bits=2, first_last_bits=4).weights["conv2d"].bits == 4


def test_a_glob_that_fits_no_layer_is_an_error():
    with pytest.raises(InputError, match=r"--exclude layer9\.\*: no layer"):
        _plan("resnet_small", exclude=("layer1.*", "layer9.*"))


def test_excluded_layers_keep_eight_bits():
    quantized = _plan("resnet_small", weight_bits=4, exclude=("layer1.conv*", "conv2d_4"))
    assert [quantized.weights[f"conv2d_{i}"].bits for i in (1, 2, 3, 4)] == [8, 8, 4, 8]


def test_relu6_cuts_the_codes():
    quantized = _plan("mobilenet_small")
    for name, value in quantized.values.items():
        if name.startswith("clamp"):
            assert value.low == 0
            assert value.high <= 6 / value.step
            assert value.signed is False


def test_tied_values_share_step_and_zero_point():
    quantized = _plan("densenet_small", scales="free")
    shared = {
        (quantized.values[n].step, quantized.values[n].zero_point)
        for n in ("relu", "relu_1", "cat", "relu_2", "cat_1")
    }
    assert len(shared) == 1
    assert "one step for relu, relu_1, cat, relu_2, cat_1" in quantized.values["relu"].reason


def test_per_tensor_free_has_one_multiplier():
    quantized = _plan("resnet_small", scales="free")
    assert all(len(integers.multiplier) == 1 for integers in quantized.requantize.values())


def test_a_clamp_is_at_the_nearest_code():
    """6 / 0.047 = 127.66, whose code is 128."""
    settings = Settings(scales="free")
    quantized = plan("mobilenet_small", settings)
    name = next(name for name in quantized.values if name.startswith("clamp"))
    values = {**quantized.values, name: replace(quantized.values[name], step=0.047)}
    model = float_model("mobilenet_small")
    edited = complete_plan(model, settings, "", values, quantized.weights, {})
    assert edited.values[name].step == 0.047
    assert (edited.values[name].low, edited.values[name].high) == (0, 128)
    values[name] = replace(values[name], rounding=FLOOR)
    edited = complete_plan(model, settings, "", values, quantized.weights, {})
    assert (edited.values[name].low, edited.values[name].high) == (0, 127)


@pytest.mark.parametrize("mode", [RoundingMode.HALF_AWAY, RoundingMode.HALF_EVEN])
def test_a_rounding_that_nobody_executes_is_refused(mode):
    """Also of a value that no clamp cuts."""
    quantized = _plan("resnet_small")
    values = {**quantized.values, "x": replace(quantized.values["x"], rounding=Rounding(mode))}
    message = f"value x: rounds by {mode.name}, but real numbers only by HALF_UP, FLOOR or BORDER"
    with pytest.raises(UnsupportedError, match=message):
        complete_plan(float_model("resnet_small"), Settings(), "", values, quantized.weights, {})


@pytest.mark.parametrize(("coarseness", "shift"), [(2.0**19, 33), (2.0**20, 34)])
def test_a_floor_that_float64_may_miss_is_refused(coarseness, shift):
    quantized, model = _plan("mlp", scales="free"), float_model("mlp")
    layer = next(layer for layer in find_regions(model).layers.values() if layer.output)
    sums = quantized.values[layer.inputs[0]].step * quantized.weights[layer.name].steps[0]
    coarse = replace(quantized.values[layer.output], step=coarseness * 1.37 * sums)

    def complete(value):
        values = {**quantized.values, layer.output: value}
        return complete_plan(model, quantized.settings, "", values, quantized.weights, {})

    assert complete(coarse).requantize[layer.name].shift == (shift,)
    if shift <= 33:
        complete(replace(coarse, rounding=FLOOR))
    else:
        with pytest.raises(
            ArithmeticRangeError, match="FLOOR after a right shift of 34, at most 33"
        ):
            complete(replace(coarse, rounding=FLOOR))


class _Joined(nn.Module):
    """What reads the concatenation meets codes below 0, though the first part has none."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)])
        self.reader = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        first, second = (part(x) for part in self.parts)
        return self.reader(torch.cat([torch.relu(first), second], dim=1))


def test_a_reader_of_joined_values_may_meet_the_codes_of_each():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    model = capture_program(export((_Joined().eval(), x)))
    quantized = make_plan(model, calibrate(model, [x]), Settings())
    assert {value.low for value in quantized.values.values()} == {0, -128}
    assert_sums_are_of_the_worst_input(model, quantized, "conv2d_2", low=-128, high=127)


def test_sums_are_proven_of_codes_about_their_zero_point():
    """conv2d_1 of this network reads a SiLU, whose codes are 13 higher than its values."""
    model, quantized = float_model("silu_net"), _plan("silu_net")
    assert quantized.values["silu"].zero_point == 13
    assert_sums_are_of_the_worst_input(model, quantized, "conv2d_1", low=-13, high=242)


def assert_sums_are_of_the_worst_input(model, quantized, layer, low, high):
    """The proof's smallest and largest sum, from input codes less their zero point."""
    weights, (source,) = quantized.weights[layer], find_regions(model).layers[layer].inputs
    codes = weight_codes(model.weight_of(model.nodes[layer]), weights).long()
    step = quantized.values[source].step
    bias = rounded_bias(model, layer, step, weights.steps, quantized.biases.get(layer))
    least, most = (
        (codes * torch.where(codes > 0, *ends)).sum(dim=(1, 2, 3)) + bias
        for ends in ((low, high), (high, low))
    )
    proof = quantized.proofs[layer]
    assert (proof.smallest, proof.largest) == (int(least.min()), int(most.max()))


def test_a_plan_is_printed_as_a_line():
    quantized = _plan("resnet_small")
    assert repr(quantized).startswith("<Plan w8a8, ")
    assert len(repr(quantized)) < 200


class _DeadBranch(nn.Module):
    """A ReLU behind a batch norm that gives -1 always."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.b, self.c = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.last = nn.BatchNorm2d(4)
        nn.init.zeros_(self.norm.weight)
        nn.init.constant_(self.norm.bias, -1.0)

    def forward(self, x):
        return self.c(torch.relu(self.last(self.b(torch.relu(self.norm(self.a(x)))))))


def test_what_is_always_0_has_a_fine_step_with_images_without_and_learned():
    torch.manual_seed(0)
    batch = {0: torch.export.Dim("batch")}
    x = torch.randn(16, 3, 4, 4)
    program = torch.export.export(_DeadBranch().eval(), (x,), dynamic_shapes=(batch,))
    model = capture_program(program)
    seen = calibrate(model, [x])
    assert make_plan(model, seen).values["relu"].step == STEP_OF_ZEROS
    assert make_plan(model, ranges_from_batch_norm(model)).values["relu"].step == STEP_OF_ZEROS
    settings = Settings(4, 4, first_last_bits=4, method=("qdrop",), iterations=4)
    learned = reconstruct(model, seen, make_plan(model, seen, settings)).plan
    assert learned.values["relu"].step <= STEP_OF_ZEROS


class _Attention(nn.Module):
    """Values behind a SiLU, which would get a zero point of their own."""

    def __init__(self):
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, x):
        values = nn.functional.silu(self.values(x) * 1.5)
        scores = self.queries(x) @ self.keys(x).transpose(1, 2)
        return scores.softmax(-1) @ values


def test_matrices_that_are_multiplied_have_zero_point_0():
    torch.manual_seed(0)
    module = _Attention().eval()
    model = capture_program(export((module, torch.randn(2, 5, 12))))
    quantized = make_plan(model, calibrate(model, [torch.randn(16, 5, 12)]))
    regions = find_regions(model)
    matrices = [layer for layer in regions.layers.values() if layer.kind == "matmul"]
    read = [quantized.values[name] for layer in matrices for name in layer.inputs]
    assert [value.zero_point for value in read] == [0] * 4
    assert "zero point 0, since matrices are multiplied" in read[3].reason
    assert all(read[n].signed for n in (0, 1, 3))


@pytest.mark.parametrize("size", [1e-7, 1e-12, 1e-35])
@pytest.mark.parametrize("scales", ["pot", "free"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_weights_too_small_for_any_shift_are_0_beside_an_exact_bias(size, scales, granularity):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)).eval()
    with torch.no_grad():
        net[0].weight.normal_(0, size)
        net[0].bias.copy_(torch.tensor([5.0, -4.5]))
    batch = {0: torch.export.Dim("batch")}
    x = torch.randn(16, 2, 4, 4)
    model = capture_program(torch.export.export(net, (x,), dynamic_shapes=(batch,)))
    settings = Settings(scales=scales, granularity=granularity)
    quantized = make_plan(model, calibrate(model, [x]), settings)
    exact = net(x).detach()
    found = annotate(model, quantized)(x.double())[0]
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("scales", ["pot", "free"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_tiny_branch_is_added_in_coarser_steps(scales, swapped):
    """Layer scale begins near 0, so what a branch adds to its stream may be next to nothing."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.first(x)
            tiny = (self.branch(x) * 1e-14).relu()
            return (x.relu() + tiny if swapped else tiny + x.relu()).mean((2, 3))

    torch.manual_seed(0)
    images = torch.randn(4, 2, 8, 8)
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Branch().eval(), (images,), dynamic_shapes=batch)
    model = capture_program(program)
    settings = Settings(scales=scales, calib_method="minmax")
    found = make_plan(model, calibrate(model, [[images]]), settings)
    assert any("doubled for add" in value.reason for value in found.values.values())
    exact, quantized = model.graph_module(images)[0], annotate(model, found)(images.double())[0]
    assert (exact - quantized).abs().max() < 0.02 * exact.abs().max()
