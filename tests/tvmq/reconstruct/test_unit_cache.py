"""Units run on as few images at a time as memory wants; what comes of it is the same."""

import pytest
import torch
from quantization_cases import calibration, float_model

from tvmq.plan.planner import make_plan
from tvmq.reconstruct import unit_bias, unit_cache
from tvmq.reconstruct.losses import MSE
from tvmq.reconstruct.unit_bias import correct_unit_biases
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit, float_unit, network_steps
from tvmq.reconstruct.unit_work import unit_loss
from tvmq.reconstruct.units import find_units
from tvmq.settings import Settings

NAME = "resnet_small"


def _measured(index: int) -> tuple[float, list[torch.Tensor], torch.Tensor, list[int]]:
    """Loss, corrections and outputs of a unit, and how many images it was run on at a time."""
    model = float_model(NAME)
    plan = make_plan(model, calibration(NAME), Settings(3, 4, "pot", "channel", method=("rapq",)))
    units, steps = find_units(model), network_steps(model, plan)
    cache = UnitCache(model, units, calibration(NAME), steps)
    sizes: list[int] = []
    try:
        for i in range(index + 1):
            exact = float_unit(model, units[i])
            cache.float_outputs(i, exact)
            unit = QuantizedUnit(model, plan, units[i], steps)
            if i < index:
                cache.advance(i, unit)
        loss = unit_loss(unit, cache, MSE, slice(3, 32))
        correct_unit_biases(cache, unit, exact, 20)
        corrections = [bias.correction.detach().clone() for bias in unit.biases.values()]
        unit.graph_module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        cache.advance(index, unit)
        outputs = cache.quantized.rows(units[index].outputs[0], slice(0, 32)).clone()
    finally:
        cache.close()
    return loss, corrections, outputs, sizes


@pytest.mark.parametrize("index", [0, 1])  # a layer, and a block whose layers wait for each other
def test_images_in_parts_give_what_all_of_them_give(monkeypatch, index):
    loss, corrections, outputs, sizes = _measured(index)
    assert sizes == [32]
    monkeypatch.setattr(unit_cache, "BATCH", 7)
    loss_in_parts, in_parts, outputs_in_parts, sizes = _measured(index)
    assert sizes == [7, 7, 7, 7, 4]
    assert loss_in_parts == pytest.approx(loss, rel=1e-6)
    for one, other in zip(corrections, in_parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert float((outputs != outputs_in_parts).float().mean()) < 0.01


def test_large_tensors_make_few_images(monkeypatch):
    model = float_model(NAME)
    largest = unit_cache._largest(model, find_units(model)[0])
    monkeypatch.setattr(unit_cache, "BATCH_BYTES", 3 * largest)
    assert max(_measured(0)[3]) == 3


def test_a_block_is_corrected_by_as_many_images_as_may_wait(monkeypatch):
    _, all_of_them, _, _ = _measured(1)
    monkeypatch.setattr(unit_bias, "MAX_BYTES", 1)
    _, one_image, _, _ = _measured(1)
    assert not torch.allclose(all_of_them[0], one_image[0])
    monkeypatch.setattr(unit_bias, "MAX_BYTES", 2**40)
    assert torch.equal(_measured(1)[1][0], all_of_them[0])
