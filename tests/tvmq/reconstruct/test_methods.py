"""The exponent of a unit's loss follows from the scales of its last batch norm."""

import math
from dataclasses import replace

import pytest
import torch
from quantization_cases import float_model

from tvmq.reconstruct.methods import LEARNED, loss_power
from tvmq.reconstruct.units import find_units
from tvmq.settings import LEARNED_METHODS

MODEL = float_model("resnet_small")
BLOCK = find_units(MODEL)[1]


def _with_gamma(gamma: torch.Tensor):
    norms = dict(MODEL.batch_norms)
    last = [name for name in BLOCK.nodes if name in norms][-1]
    norms[last] = replace(norms[last], gamma=gamma)
    return replace(MODEL, batch_norms=norms)


@pytest.mark.parametrize(("gamma", "kappa"), [(1.0, 0.9), (4.0, 0.9), (-3.0, 0.9), (1.0, 0.1)])
def test_power_by_hand(gamma, kappa):
    model = _with_gamma(torch.full((8,), gamma))
    expected = round(1 + kappa / (1 + math.exp(-(8 * gamma - 1) / 8)), 1)
    assert loss_power(model, BLOCK, LEARNED["rapq"], kappa) == expected


def test_powers_differ_with_the_batch_norm():
    powers = {
        loss_power(_with_gamma(torch.full((8,), g)), BLOCK, LEARNED["rapq"], 0.9)
        for g in (-4.0, 0.0, 4.0)
    }
    assert powers == {1.0, 1.4, 1.9}


def test_other_methods_and_single_layers_have_power_2():
    assert {loss_power(MODEL, BLOCK, LEARNED[name], 0.9) for name in ("brecq", "qdrop")} == {2.0}
    assert loss_power(MODEL, find_units(MODEL)[-1], LEARNED["rapq"], 0.9) == 2.0


def test_every_name_of_the_command_line_has_a_method():
    assert set(LEARNED) == set(LEARNED_METHODS)
