"""Networks of every shape reconstruct, whatever batch they were exported with."""

from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from quantization_cases import calibration, float_model, images
from torch import nn

from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.lowering import lower
from tvmq.plan.annotate import annotate
from tvmq.plan.plan_network import plan_network
from tvmq.plan.planner import make_plan
from tvmq.plan.round_reads import round_reads
from tvmq.reconstruct.engine import Reconstruction, reconstruct
from tvmq.reconstruct.units import find_units
from tvmq.run.reference import run_reference
from tvmq.settings import Settings

SETTINGS = Settings(4, 4, "pot", "channel", method=("rapq",), iterations=1)


def _reconstructed(model, data, settings=SETTINGS) -> Reconstruction:
    return reconstruct(model, data, make_plan(model, data, settings))


@pytest.mark.parametrize("name", [name for name in models.ZOO if name != "resnet_small"])
def test_reconstructs(name):
    done = _reconstructed(float_model(name), calibration(name))
    assert all(unit.iterations == 1 for unit in done.units)
    learned = {layer for unit in done.units for layer in unit.layers}
    weights = {layer for layer, weight in done.plan.weights.items() if weight.codes}
    assert learned == weights


@pytest.mark.slow
@pytest.mark.parametrize("name", models.ZOO)
def test_borders_of_any_network_are_executed(name):
    """What is learned is what the integers compute, whatever makes and reads the values."""
    model, x = float_model(name), images(name)[:4]
    settings = replace(SETTINGS, activation_bits=3, method=("qdrop", "aquant"))
    program = annotate(model, _reconstructed(model, calibration(name), settings).plan)
    integer = lower(model, program)
    want = run_reference(integer, {model.inputs[0].name: x.numpy()})
    for got, expected in zip(program(x.double()), want, strict=True):
        np.testing.assert_array_equal(got.float().numpy(), expected)


@pytest.mark.parametrize("method", [("rapq", "distill"), ("qdrop", "aquant")])
def test_residuals_of_more_bits_are_learned_with(method):
    """The copies that blocks read are inside of their units, and keep to a step of few bits."""
    name, scales = "resnet_projection", "free" if "qdrop" in method else "pot"
    settings = Settings(2, 2, scales, "channel", method=method, iterations=2, residual_bits=8)
    model, x = round_reads(float_model(name), settings), images(name)
    done = _planned_and_reconstructed(model, calibrate(model, [x]), settings)
    values = done.plan.values
    assert (values["relu"].bits, values["relu_rounded"].bits) == (8, 2)
    assert any("relu_rounded" in unit.values for unit in find_units(done.model))
    program = annotate(done.model, done.plan)
    want = run_reference(lower(done.model, program), {model.inputs[0].name: x.numpy()})
    for got, expected in zip(program(x.double()), want, strict=True):
        np.testing.assert_array_equal(got.float().numpy(), expected)


def _planned_and_reconstructed(model, data, settings) -> Reconstruction:
    found = plan_network(model, data, settings)
    return reconstruct(found.model, found.calibration, found.plan)


class _Block(nn.Module):
    """Attention and a small perceptron, each behind a layer norm and beside a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        split = self.qkv(self.norms[0](x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = (split[:, :, i].transpose(1, 2) for i in range(3))
        scores = (q @ k.transpose(-2, -1)).softmax(-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(n, tokens, width))
        return x + self.mlp(self.norms[1](x))


class _VisionTransformer(nn.Module):
    """Patches of 4 by 4, two blocks, the mean of all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.Sequential(*(_Block(16, 2) for _ in range(2)))
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x)
        tokens = self.blocks(patches.flatten(2).transpose(1, 2))
        return self.head(tokens.transpose(1, 2).reshape(patches.shape).mean([2, 3]))


def _transformer() -> torch.export.ExportedProgram:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return torch.export.export(_VisionTransformer().eval(), (torch.randn(1, 3, 16, 16),))


def test_a_vision_transformer_reconstructs():
    """Its units are the halves of its blocks."""
    program = _transformer()
    model = capture_program(program)
    x = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    data = calibrate(model, [x])
    settings = replace(SETTINGS, weight_bits=2, activation_bits=8)
    done = _reconstructed(model, data, settings)
    assert [len(unit.layers) for unit in done.units] == [1, *[4, 2] * 2, 1]
    nearest = make_plan(model, data, replace(settings, method=("rtn",)))
    with torch.no_grad():
        exact = model.graph_module(x)[0]
        errors = [
            float((annotate(model, plan, torch.float32)(x)[0] - exact).square().mean())
            for plan in (done.plan, nearest)
        ]
    assert errors[0] < errors[1]


def test_a_batch_of_1_is_no_special_case():
    """The usual export has a fixed batch of 1; training takes its own batch size all the same."""
    module, example = models.ZOO["resnet_small"]()
    with torch.no_grad():
        fixed = torch.export.export(module, (example[:1],))
    model = capture_program(fixed)
    settings = replace(SETTINGS, method=("qdrop",))
    done = _reconstructed(model, calibrate(model, list(images("resnet_small").split(16))), settings)
    dynamic = _reconstructed(float_model("resnet_small"), calibration("resnet_small"), settings)
    for name, weight in dynamic.plan.weights.items():
        assert done.plan.weights[name].codes == weight.codes
        assert done.plan.weights[name].steps == weight.steps
