"""Operators that TVM's importer lacks or reads otherwise, and what it can't have at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from random_modules import Applied
from torch import nn
from torch.nn import functional as F
from tvm import relax
from unoptimized import LLVM

from relay_passes.frontend.import_float import import_float
from targets.errors import UnsupportedError


def exported(function, *shape):
    free = ({0: torch.export.Dim("n")},)
    return torch.export.export(Applied(function), (torch.randn(3, *shape),), dynamic_shapes=free)


FUNCTIONS = {
    "largest": lambda x: x.amax(1),
    "largest, kept": lambda x: x.amax((1, 2), keepdim=True),
    "smallest": lambda x: x.amin(-1),
    "product": lambda x: x.prod(1),
    "logsumexp": lambda x: x.logsumexp(1),
    "last": lambda x: x[:, -1],
    "last but one of the last axis": lambda x: x[..., -2],
    "first": lambda x: x[:, 0],
    "passes": lambda x: x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_imported_computes_what_torch_does(name):
    mod = import_float(exported(FUNCTIONS[name], 4, 5))
    machine = relax.VirtualMachine(tvm.compile(mod, target=LLVM), tvm.cpu())
    for count in (1, 4):
        x = torch.randn(count, 4, 5)
        (found,) = machine["main"](tvm.runtime.tensor(x.numpy()))
        np.testing.assert_allclose(found.numpy(), FUNCTIONS[name](x).numpy(), rtol=1e-5)


SAMPLED = {
    "zeros around": {"align_corners": False},
    "corners": {"align_corners": True},
    "nearest": {"mode": "nearest", "align_corners": False},
    "border": {"padding_mode": "border", "align_corners": False},
    "reflected": {"padding_mode": "reflection", "align_corners": True},
}


@pytest.mark.parametrize("name", SAMPLED)
def test_an_image_is_sampled_where_torch_does(name):
    def function(x):
        return F.grid_sample(x[:, :2], 1.4 * x[:, 2:4, :, :3].permute(0, 2, 3, 1), **SAMPLED[name])

    mod = import_float(exported(function, 4, 5, 6))
    machine = relax.VirtualMachine(tvm.compile(mod, target=LLVM), tvm.cpu())
    x = torch.randn(4, 4, 5, 6)
    (found,) = machine["main"](tvm.runtime.tensor(x.numpy()))
    np.testing.assert_allclose(found.numpy(), function(x).numpy(), rtol=1e-4, atol=1e-5)


def test_what_tvm_has_no_operator_for_is_named():
    with pytest.raises(UnsupportedError, match=r"hypot\.default.*compute them from its outputs"):
        import_float(exported(lambda x: torch.hypot(x, x), 4))


def test_numbers_that_a_table_lacks_give_nan():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, x):
            return self.table(x)

    module, free = Words(), ({0: torch.export.Dim("n")},)
    numbers = torch.tensor([[0, 4], [5, -1], [2, 5_000_000]])
    program = torch.export.export(module, (numbers.clamp(0, 4),), dynamic_shapes=free)
    machine = relax.VirtualMachine(tvm.compile(import_float(program), target=LLVM), tvm.cpu())
    (found,) = machine["main"](tvm.runtime.tensor(numbers.numpy()))
    want = module(numbers.clamp(0, 4)).detach().numpy()
    known = ((numbers >= 0) & (numbers < 5)).numpy()
    np.testing.assert_array_equal(found.numpy(), np.where(known[..., None], want, np.nan))
