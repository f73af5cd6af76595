"""The annotated program: names, batch, and the arithmetic it stands for."""

from functools import cache

import numpy as np
import pytest
import torch
from quantization_cases import float_model, images, plan
from torch import nn

from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.plan.annotate import annotate
from tvmq.plan.planner import make_plan
from tvmq.settings import Settings

FREE = Settings(scales="free", granularity="channel")


@cache
def _annotated(name, settings):
    return annotate(float_model(name), plan(name, settings))


def _program(name, settings=None):
    settings = settings or Settings()
    return _annotated(name, settings), plan(name, settings)


def test_names_survive():
    program, _ = _program("resnet_small")
    nodes = {node.name: node for node in program.graph.nodes}
    names = [node.name for node in float_model("resnet_small").graph_module.graph.nodes
             if node.op == "call_function"]  # fmt: skip
    assert nodes.keys() >= set(names)
    for name in ("x_q", "relu_q", "conv2d_1_weight_q", "avg_pool2d_q"):
        assert nodes[name].target == torch.ops.tvmq.fake_quantize.default
    assert nodes["avg_pool2d"].target == torch.ops.aten.conv2d.default


@pytest.mark.parametrize("name", ["resnet_small", "mobilenet_small", "densenet_small", "preact"])
@pytest.mark.parametrize("settings", [Settings(), FREE], ids=["pot", "free"])
def test_runs_close_to_float_for_any_batch(name, settings):
    program, _ = _program(name, settings)
    x = images(name)
    with torch.no_grad():
        exact = float_model(name).graph_module(x)[0]
        outputs = program(x.double())[0]
        alone = program(x[:1].double())[0]
    # The last sums are not rounded to codes, so their order shows in the last bits.
    torch.testing.assert_close(alone, outputs[:1], rtol=1e-12, atol=1e-12)
    assert outputs.dtype == torch.float64
    assert float((outputs - exact).square().mean()) < 0.02 * float(exact.square().mean())


@pytest.mark.parametrize("settings", [Settings(), FREE], ids=["pot", "free"])
def test_steps_reach_the_graph_exactly(settings):
    program, quantized = _program("resnet_small", settings)
    for name, value in quantized.values.items():
        step = program.get_buffer(f"{name}_step")
        assert step.dtype == torch.float64
        assert step.item() == value.step
    for name, weight in quantized.weights.items():
        assert program.get_buffer(f"{name}_weight_step").tolist() == list(weight.steps)


def test_a_layer_equals_its_integers():
    """Residual, per-channel multipliers, bias and rounding, computed from the plan alone."""
    program, quantized = _program("resnet_small", FREE)
    seen = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n):
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    with torch.no_grad():
        Recorder(program).run(images("resnet_small")[:4].double())
    by_target = {name: value for name, value in seen.items() if isinstance(value, torch.Tensor)}

    def codes(name, step):
        return torch.round(
            by_target[name] / torch.tensor(step).double().reshape(-1, 1, 1, 1)
        ).long()

    q, weight = quantized.requantize["conv2d_2"], quantized.weights["conv2d_2"]
    source, output = quantized.values["relu_1"], quantized.values["relu_2"]
    unit = source.step * np.array(weight.steps)
    bias = np.rint(program.conv2d_2_bias_q.numpy() / unit).astype(np.int64)
    w = torch.round(
        by_target["conv2d_2_weight_q"] / torch.tensor(weight.steps).double().reshape(-1, 1, 1, 1)
    )
    sums = (
        torch.nn.functional.conv2d(codes("relu_1_q", [source.step]).double(), w, padding=1)
        .long()
        .numpy()
    )
    channels = (1, -1, 1, 1)
    m, s, rs = (np.array(n).reshape(channels) for n in (q.multiplier, q.shift, q.residual_shift))
    total = ((sums + bias.reshape(channels)) << q.fraction) * m
    total += (
        codes("relu_q", [quantized.values["relu"].step]).numpy() * q.residual_multiplier
    ) << rs
    want = np.clip((total + (1 << (s - 1))) >> s, output.low, output.high)
    np.testing.assert_array_equal(codes("relu_2_q", [output.step]).numpy(), want)


class NamedAsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, conv2d_weight, conv2d_bias):
        return self.conv(conv2d_weight) + conv2d_bias


def test_steps_of_inputs_are_not_those_of_weights_of_their_name():
    shapes = (torch.randn(2, 3, 4, 4), 9 * torch.randn(2, 4, 4, 4))
    model = capture_program(torch.export.export(NamedAsWeight().eval(), shapes))
    quantized = make_plan(model, calibrate(model, [list(shapes)], 2), Settings())
    annotated = annotate(model, quantized)
    steps = {
        node.target: getattr(annotated, node.target)
        for node in annotated.graph.nodes
        if node.op == "get_attr" and "_step" in node.target
    }
    both = [steps["conv2d_weight_step"].tolist(), steps["conv2d_weight_step_"].tolist()]
    wanted = [[quantized.values["conv2d_weight"].step], list(quantized.weights["conv2d"].steps)]
    assert sorted(both) == sorted(wanted)
    assert both[0] != both[1]
