"""Compensating codes beat nearest ones on the layer's output; covariances are exact."""

from functools import cache

import pytest
import torch
from torch import nn

from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture_program
from tvmq.execute_graph import GraphRun
from tvmq.plan.plan import WeightPlan
from tvmq.plan.planner import make_plan
from tvmq.reconstruct.compensation import (
    DAMPING,
    compensate_layer,
    compensated_codes,
    covariance,
)
from tvmq.reconstruct.engine import reconstruct
from tvmq.reconstruct.soft_rounding import SoftWeight
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit, float_unit, network_steps
from tvmq.reconstruct.units import find_units
from tvmq.settings import Settings


def _correlated(columns: int) -> torch.Tensor:
    """float64[1, D, D]: a covariance far from diagonal."""
    x = torch.randn(200, columns, generator=torch.Generator().manual_seed(0)).double()
    x = x + 2 * x.roll(1, 1)
    return (x.T @ x / 200)[None]


def _output_error(weight: SoftWeight, codes: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    error = codes.double() * weight.exact_steps[:, None] - weight.weight.double()
    damped = moments[0] + DAMPING * moments[0].diagonal().mean() * torch.eye(len(moments[0]))
    return ((error @ damped) * error).sum(dim=1)


def _compensated(weight: SoftWeight, moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, errors = compensated_codes(weight, weight.exact_steps[None], moments)
    return codes[0], errors[0]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_compensation_lowers_the_output_error_of_every_channel(bits):
    weight = torch.randn(6, 18, generator=torch.Generator().manual_seed(1)) * 0.3
    soft = SoftWeight(weight, WeightPlan((2.0**-bits,) * 6, bits, ""))
    moments = _correlated(18)
    codes, errors = _compensated(soft, moments)
    nearest = _output_error(soft, soft.nearest_codes(), moments)
    assert torch.all(errors < nearest)
    torch.testing.assert_close(errors, _output_error(soft, codes, moments))
    assert codes.min() >= soft.low
    assert codes.max() <= soft.high
    assert torch.equal(codes, codes.round())


def test_factors_of_products_are_part_of_the_step():
    """Of a whole row they are another step; column by column no code alone could be better."""
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(3)) * 0.5
    soft = SoftWeight(weight, WeightPlan((0.25,) * 3, 3, ""))
    moments = _correlated(8)
    rows = torch.tensor([[0.75], [1.0], [1.25]]).double()
    found = compensated_codes(soft, soft.exact_steps[None], moments, rows)
    wanted = compensated_codes(soft, soft.exact_steps[None] * rows.T, moments)
    assert torch.equal(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1])
    spread = torch.tensor([0.5, 1.0, 1.5, 1.125]).repeat_interleave(2).double()
    codes, errors = compensated_codes(soft, soft.exact_steps[None], moments, spread)
    torch.testing.assert_close(errors[0], _output_error(soft, codes[0] * spread, moments))
    for column in range(8):
        for change in (-1, 1):
            other = codes[0].clone()
            other[:, column] = (other[:, column] + change).clamp(soft.low, soft.high)
            assert (_output_error(soft, other * spread, moments) >= errors[0] - 1e-9).all()


def test_no_single_code_could_be_better():
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(2)) * 0.5
    soft = SoftWeight(weight, WeightPlan((0.25,) * 3, 3, ""))
    moments = _correlated(7)
    codes, errors = _compensated(soft, moments)
    for column in range(7):
        for change in (-1, 1):
            other = codes.clone()
            other[:, column] = (other[:, column] + change).clamp(soft.low, soft.high)
            assert torch.all(_output_error(soft, other, moments) >= errors - 1e-9)


def test_several_steps_at_once_are_as_one_after_the_other():
    weight = torch.randn(6, 7, generator=torch.Generator().manual_seed(3)) * 0.5
    soft = SoftWeight(weight, WeightPlan((0.25,) * 6, 3, ""))
    moments = torch.cat([_correlated(7), torch.eye(7)[None].double()])  # two groups of 3 channels
    steps = torch.rand(4, 6, generator=torch.Generator().manual_seed(4)).double() + 0.1
    codes, errors = compensated_codes(soft, steps, moments)
    for row, one in enumerate(steps):
        alone = compensated_codes(soft, one[None], moments)
        assert torch.equal(codes[row], alone[0][0])
        torch.testing.assert_close(errors[row], alone[1][0])


class _Pruned(nn.Module):
    """Two channels that are constant where a depthwise layer reads them, one per group."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.grouped = nn.Conv2d(4, 6, 3, stride=2, groups=2)
        self.last = nn.Linear(6, 5)
        nn.init.zeros_(self.norm.weight[:2])
        nn.init.constant_(self.norm.bias[:2], 1.9)

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.relu(self.norm(self.first(x)))))
        return self.last(torch.relu(self.grouped(x)).permute(0, 2, 3, 1))


@cache
def _pruned_network():
    torch.manual_seed(0)
    pictures = torch.randn(16, 3, 24, 24)
    program = torch.export.export(_Pruned().eval(), (pictures[:1],))
    model = capture_program(program)
    return model, calibrate(model, [pictures])


@pytest.mark.parametrize("layer", ["conv2d", "conv2d_1", "conv2d_2", "linear"])
def test_covariance_is_that_of_what_the_weights_are_multiplied_with(layer):
    model, known = _pruned_network()
    plan = make_plan(model, known, Settings(4, 8, "pot", "channel", method=("rapq",)))
    units, steps = find_units(model), network_steps(model, plan)
    unit_cache = UnitCache(model, units, known, steps)
    try:
        for index, unit in enumerate(units):
            unit_cache.float_outputs(index, float_unit(model, unit))
            quantized = QuantizedUnit(model, plan, unit, steps)
            if layer in unit.layers:
                found = covariance(quantized, unit_cache, layer, 16)
                rows = _rows_of(quantized, unit_cache, layer)
                for group, moments in enumerate(found):
                    expected = torch.cov(rows[group].double().T, correction=0)
                    expected = expected.reshape(moments.shape)
                    torch.testing.assert_close(moments, expected, rtol=1e-3, atol=1e-4)
                return
            unit_cache.advance(index, quantized)
    finally:
        unit_cache.close()


def test_a_layer_has_the_codes_that_its_factors_want():
    model, known = _pruned_network()
    plan = make_plan(model, known, Settings(2, 8, "free", "channel", method=("qdrop", "waps")))
    units, steps = find_units(model), network_steps(model, plan)
    unit_cache = UnitCache(model, units, known, steps)
    try:
        for index, unit in enumerate(units):
            unit_cache.float_outputs(index, float_unit(model, unit))
            quantized = QuantizedUnit(model, plan, unit, steps, {"conv2d_2": 1})
            if "conv2d_2" in unit.layers:
                break
            unit_cache.advance(index, quantized)
        scale, weight = quantized.products["conv2d_2"], quantized.weights["conv2d_2"]
        scale.use(torch.tensor([[0.5, 1.5], [1.0, 0.75]]).double())
        compensate_layer(quantized, unit_cache, "conv2d_2", 16, (0,))
        moments = covariance(quantized, unit_cache, "conv2d_2", 16)
    finally:
        unit_cache.close()
    steps, shape = weight.exact_steps[None], weight.weight.shape
    wanted, _ = compensated_codes(weight, steps, moments, scale.spread)
    other, _ = compensated_codes(weight, steps, moments)
    assert torch.equal(weight.codes.float(), wanted.reshape(shape))
    assert not torch.equal(wanted, other)


def _rows_of(unit: QuantizedUnit, unit_cache: UnitCache, layer: str) -> list[torch.Tensor]:
    """By group, [N, D]: cut out one by one, in the order of the layer's weight."""
    (node,) = (n for n in unit.graph_module.graph.nodes if n.name == layer)
    inputs = tuple(unit_cache.quantized.rows(name, slice(0, 16)) for name in unit.unit.inputs)
    x = GraphRun(unit.graph_module).start(*inputs).result_of(node.args[0].name).detach()
    weight = unit.weights[layer].weight
    if weight.dim() == 2:
        return [x.reshape(-1, x.shape[-1])]
    stride, padding = {"conv2d": (1, 0), "conv2d_1": (1, 1), "conv2d_2": (2, 0)}[layer]
    groups, size = x.shape[1] // weight.shape[1], weight.shape[2]
    x = torch.nn.functional.pad(x, [padding] * 4)
    places = range(0, x.shape[2] - size + 1, stride)
    cut = [x[:, :, i : i + size, j : j + size] for i in places for j in places]
    return [
        torch.cat([part.chunk(groups, dim=1)[g].flatten(1) for part in cut]) for g in range(groups)
    ]


def test_constant_channels_are_no_trouble():
    model, known = _pruned_network()
    settings = Settings(4, 8, "pot", "channel", method=("rapq",), iterations=2)
    done = reconstruct(model, known, make_plan(model, known, settings))
    assert all(unit.held_out_loss <= unit.candidates[0].loss for unit in done.units)
