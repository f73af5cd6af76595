"""Any module of operators that export gives is what torch computes, or is refused with advice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checked_modules import LEAST_DB, check
from random_modules import (
    FUNCTIONS,
    GROUP_NORMS,
    JOINS,
    JUMPS,
    REDUCTIONS,
    RESIZES,
    TRANSPOSED,
    Applied,
    Between,
    Combined,
    RowBlock,
    group_norm,
    random_module,
    transposed,
)
from torch import nn

QUICK, ALL = 12, 1_000


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_one_tensor(name):
    module = Between(FUNCTIONS[name])
    least_db = 10 if name in JUMPS else LEAST_DB
    check(module, (3, 7, 9), devices=name in ("mish", "at_most"), least_db=least_db)


@pytest.mark.parametrize("name", JOINS)
def test_what_joins_two_tensors(name):
    check(Combined(6, JOINS[name]), (6, 7, 9), devices=name in ("difference", "stacked"))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name):
    module = nn.Sequential(nn.Conv2d(3, 8, 3), Applied(REDUCTIONS[name]), nn.Linear(8, 5))
    check(module, (3, 8, 11), devices=name in ("sum", "max_twice"))


@pytest.mark.parametrize("name", RESIZES)
def test_other_sizes_and_orders(name):
    devices = name in ("nearest", "bilinear", "pixel_shuffle_of_a_maximum", "pixel_unshuffle")
    check(Between(RESIZES[name]), (3, 6, 8), devices=devices)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name):
    module = Between(transposed(**TRANSPOSED[name]))
    check(module, (3, 5, 6), devices=name in ("cut", "in groups"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RESIZES, *TRANSPOSED])
def test_other_sizes_on_all_devices(name):
    step = RESIZES[name] if name in RESIZES else transposed(**TRANSPOSED[name])
    check(Between(step), (3, 6, 8), devices=True)


@pytest.mark.parametrize("name", GROUP_NORMS)
def test_group_norms(name):
    check(Between(group_norm(name)), (3, 6, 7), devices=name == "of four groups")


def test_group_norms_of_rows():
    module = nn.Sequential(nn.Conv1d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv1d(8, 4, 1))
    check(module, (3, 12), devices=False)


@pytest.mark.parametrize("end", ["rows", "means"])
def test_rows(end):
    layers = [nn.Conv1d(5, 8, 3), RowBlock(), nn.Conv1d(8, 3, 1)]
    if end == "means":
        layers += [nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    check(nn.Sequential(*layers), (5, 18), devices=end == "rows")


@pytest.mark.parametrize(("shape", "kind"), [((3, 6, 8), nn.Conv2d), ((3, 12), nn.Conv1d)])
def test_halves_that_gate_the_other(shape, kind):
    module = nn.Sequential(kind(3, 8, 3, padding=1), nn.GLU(1), kind(4, 4, 1))
    check(module, shape, devices=kind is nn.Conv1d)


def test_slopes_by_channel():
    slopes = nn.PReLU(8)
    with torch.no_grad():
        slopes.weight.copy_(torch.linspace(-0.5, 1.5, 8))
    check(Between(slopes), (3, 7, 9), devices=True)
    rows = nn.Sequential(nn.Conv1d(3, 8, 3), slopes, nn.Conv1d(8, 4, 1), nn.PReLU())
    check(rows, (3, 12), devices=False)


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=() if n < QUICK else pytest.mark.slow) for n in range(ALL)]
)
def test_random_modules(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    module, shape = random_module(rng)
    check(module, shape, devices=seed % 10 == 0)


class Dead(nn.Module):
    """A layer whose input is always 0: it gives its bias."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.dead, self.bias, self.last = (nn.Conv2d(4, 4, 1) for _ in range(3))
        with torch.no_grad():
            self.dead.bias.fill_(-1e4)
            self.bias.bias.copy_(size * torch.tensor([0.11, -0.13, 0.06, 0.30]))
            self.last.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.bias(torch.relu(self.dead(x))))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_layer_that_reads_only_zeros_gives_its_bias(size):
    check(Dead(size), (4, 5, 6), devices=size == 1.0)


def test_channels_in_another_order_of_an_image_of_another_shape():
    torch.manual_seed(0)
    module = nn.Sequential(
        Combined(3, JOINS["stacked"]), Applied(REDUCTIONS["flat_mean"]), nn.Linear(6, 8)
    )
    check(module, (3, 7, 8), devices=True)
