"""Losses by name; RAPQ's exponent follows from the scales of a unit's last batch norm."""

import math
from dataclasses import replace

import pytest
import torch
from quantization_cases import float_model

from tvmq.reconstruct.losses import LOSSES, MSE, batch_norm_loss
from tvmq.reconstruct.units import find_units
from tvmq.settings import Settings

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
    loss = LOSSES["batch-norm lp"](model, BLOCK, Settings(kappa=kappa))
    assert loss.power == expected
    assert str(loss) == f"|error|^{expected:g}"


def test_powers_differ_with_the_batch_norm():
    powers = {
        batch_norm_loss(_with_gamma(torch.full((8,), g)), BLOCK, 0.9).power
        for g in (-4.0, 0.0, 4.0)
    }
    assert powers == {1.0, 1.4, 1.9}


def test_single_layers_and_the_mean_squared_error_have_power_2():
    assert batch_norm_loss(MODEL, find_units(MODEL)[-1], 0.9) == MSE
    assert LOSSES["mse"](MODEL, BLOCK, Settings()) == MSE
