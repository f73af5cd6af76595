"""Norms without a mean, however a network writes them, are one operator on rows."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from targets.errors import UnsupportedError
from targets.rows import LONGEST_ROW, longest_norm
from tvmq.capture.capture import capture_program

own = torch.ops.tvmq


class Normed(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.RMSNorm(8)
        nn.init.uniform_(self.norm.weight)
        self.function = function

    def forward(self, x):
        return self.function(self.first(x), self.norm)


def captured(function):
    module, x = Normed(function).eval(), torch.randn(2, 5, 6)
    batch = {0: torch.export.Dim("batch")}
    return module, x, capture_program(torch.export.export(module, (x,), dynamic_shapes=(batch,)))


WAYS = {
    "module": lambda x, norm: norm(x),
    "power": lambda x, norm: norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6)),
    "product": lambda x, norm: torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * x,
    "quotient": lambda x, norm: x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5),
    "length": lambda x, norm: F.normalize(x, dim=-1),
    "length of columns": lambda x, norm: F.normalize(x, dim=1),
    "length times a number": lambda x, norm: F.normalize(x, dim=-1) * 3.0,
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_one_norm(way):
    module, x, model = captured(WAYS[way])
    targets = [n.target for n in model.graph_module.graph.nodes if n.op == "call_function"]
    moves = [torch.ops.aten.permute.default] * (2 if "columns" in way else 0)
    assert sorted(map(str, targets)) == sorted(
        map(str, [torch.ops.aten.linear.default, own.rms_norm.default, *moves])
    )
    torch.testing.assert_close(model.graph_module(x)[0], module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, _: x / torch.linalg.vector_norm(x, 1, -1, keepdim=True),
        lambda x, _: x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True),
        lambda x, _: x.square() / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    ],
    ids=["another length", "of matrices", "of another vector"],
)
def test_other_lengths_are_refused(function):
    with pytest.raises(UnsupportedError, match="can't be quantized"):
        captured(lambda x, norm: F.linear(function(x, norm), norm.weight[None]))  # no float end


@pytest.mark.parametrize("function", ["normalize", "layer_norm", "softmax"])
def test_rows_too_long_for_the_sums_are_refused(function):
    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

        def forward(self, x):
            rows = self.first(x).flatten(1)
            rows = {
                "normalize": F.normalize,
                "layer_norm": lambda r: F.layer_norm(r, r.shape[1:]),
                "softmax": lambda r: r.softmax(1),
            }[function](rows)
            return self.last(rows.reshape(x.shape))

    longest = longest_norm(centred=function == "layer_norm")
    x = torch.randn(2, 1, 1, 1 + (LONGEST_ROW if function == "softmax" else longest))
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(Long().eval(), (x,), dynamic_shapes=(batch,))
    with pytest.raises(UnsupportedError, match=r"at most \d+ numbers can be normalized together"):
        capture_program(program)
