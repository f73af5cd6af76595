"""Training on another device: all of an iteration is there; a device that is missing is said."""

import pytest
import torch
from one_device import nowhere
from quantization_cases import calibration, float_model

from targets.errors import InputError
from tvmq.plan.planner import make_plan
from tvmq.plan.scale_tensors import find_families
from tvmq.reconstruct.engine import reconstruct
from tvmq.reconstruct.inner_scales import InnerScales, inner_families
from tvmq.reconstruct.learn_device import learn_device
from tvmq.reconstruct.refinements.learned import Phase
from tvmq.reconstruct.training import Training, train_unit
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit, float_unit, network_steps
from tvmq.reconstruct.units import find_units
from tvmq.regions import find_regions
from tvmq.settings import Settings

NAME = "mobilenet_rescaled"  # clamps, depthwise layers and additions


@pytest.mark.parametrize("name", [NAME, "resnet_small", "mlp"])
@pytest.mark.parametrize("drop", [0.0, 0.5, 1.0])
def test_nothing_of_an_iteration_stays_behind(name, drop):
    """No operator reads tensors of two devices; the device without numbers is always there."""
    model = float_model(name)
    plan = make_plan(model, calibration(name), Settings(4, 4, "free", "channel", method=("qdrop",)))
    units, steps = find_units(model), network_steps(model, plan)
    cache = UnitCache(model, units, calibration(name), steps)
    try:
        for index, given in enumerate(units):
            cache.float_outputs(index, float_unit(model, given))
            unit = QuantizedUnit(model, plan, given, steps)
            devices = _train_nowhere(unit, cache, drop)
            assert devices == {"meta"}
            unit = QuantizedUnit(model, plan, given, network_steps(model, plan))
            cache.advance(index, unit)
    finally:
        cache.close()


def test_scaled_tensors_move_along():
    model = float_model(NAME)
    plan = make_plan(model, calibration(NAME), Settings(2, 4, "pot", "channel", method=("rapq",)))
    units, families = find_units(model), find_families(model.graph_module)
    index, *_ = min(inner_families(families, units, find_regions(model)), key=lambda each: each[0])
    cache = UnitCache(model, units, calibration(NAME), network_steps(model, plan))
    try:
        for n in range(index + 1):
            exact = float_unit(model, units[n])
            cache.float_outputs(n, exact)
            unit = QuantizedUnit(model, plan, units[n], network_steps(model, plan))
            if n < index:
                cache.advance(n, unit)
        inside = {
            value: family
            for n, family, value in inner_families(families, units, find_regions(model))
            if n == index
        }
        InnerScales(model, unit, exact, inside)
        assert _train_nowhere(unit, cache, 0.5) == {"meta"}
    finally:
        cache.close()


def _train_nowhere(unit: QuantizedUnit, cache: UnitCache, drop: float) -> set[str]:
    seen = set()
    unit.graph_module.register_forward_pre_hook(
        lambda module, inputs: seen.update(x.device.type for x in (*inputs, *module.parameters()))
    )
    phase, generator = Phase(weights=True, steps=drop > 0, drop=drop), torch.Generator()
    training = Training(3, 4, device=torch.device("meta"))
    with nowhere():
        train_unit(unit, cache, phase, training, cache.count, generator)
    return seen


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tpu", r"--learn-device tpu: give cpu, cuda, or cuda:N"),
        ("cuda:x", r"--learn-device cuda:x: give cpu"),
        ("cuda", r"--learn-device cuda: torch sees none.*Give --learn-device cpu"),
        ("cuda:3", r"--learn-device cuda:3: torch sees none"),
    ],
)
def test_a_device_that_is_not_there_is_said(monkeypatch, name, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=words):
        learn_device(name)


def test_gpus_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert learn_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(InputError, match="torch sees 2 of them"):
        learn_device("cuda:2")


def test_the_engine_asks_for_its_device_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = float_model("mlp")
    start = make_plan(model, calibration("mlp"), Settings(4, 4, method=("rapq",)))
    with pytest.raises(InputError, match="torch sees none"):
        reconstruct(model, calibration("mlp"), start, device="cuda")
