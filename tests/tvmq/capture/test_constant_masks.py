"""What is added to scores: positions and masks apart, and only in front of a softmax."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from targets.errors import UnsupportedError
from tvmq.capture.capture import capture_program
from tvmq.capture.constant_masks import HIDDEN, LOWEST

T = 6


class Scores(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.bias = nn.Parameter(torch.randn(2, T, T))
        self.register_buffer("hides", torch.ones(T, T, dtype=torch.bool).triu(1))
        self.function = function

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(-1, T, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return self.function(self, q, k, v).transpose(1, 2).flatten(2)


def captured(function):
    module, x = Scores(function).eval(), torch.randn(2, T, 8)
    batch = {0: torch.export.Dim("batch")}
    return module, x, capture_program(torch.export.export(module, (x,), dynamic_shapes=(batch,)))


def _soft(scores, v):
    return scores.softmax(-1) @ v


BOTH = {
    "causal": (lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), 1),
    "positions": (lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, m.bias), 1),
    "shown": (lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, ~m.hides), 1),
    "put together": (
        lambda m, q, k, v: F.scaled_dot_product_attention(
            q, k, v, ~(m.hides & (m.hides | m.hides.new_ones(())) ^ m.hides.new_zeros(()))
        ),
        1,
    ),
    "both": (
        lambda m, q, k, v: F.scaled_dot_product_attention(
            q, k, v, m.bias.masked_fill(m.hides, -100.0)
        ),
        2,
    ),
    "added": (lambda m, q, k, v: _soft(q @ k.mT + m.bias.masked_fill(m.hides, -1e9), v), 2),
    "filled": (lambda m, q, k, v: _soft((q @ k.mT).masked_fill(m.hides, -torch.inf), v), 1),
    "computed": (lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, q @ k.mT), 1),
}


@pytest.mark.parametrize("name", BOTH)
def test_masks_are_summands_of_their_own(name):
    function, count = BOTH[name]
    module, x, model = captured(function)
    added = [n for n in model.graph_module.graph.nodes if n.target is torch.ops.aten.add.Tensor]
    assert len(added) == count
    torch.testing.assert_close(model.graph_module(x)[0], module(x), rtol=1e-4, atol=1e-5)
    for held in model.graph_module.buffers():
        assert torch.isfinite(held).all()
        assert held.min() >= LOWEST


@pytest.mark.parametrize(
    "function",
    [
        lambda m, q, k, v: (q @ k.mT).masked_fill(m.hides, -torch.inf) @ v,
        lambda m, q, k, v: torch.where(m.hides, 1e4, q @ k.mT) @ v,
    ],
    ids=["without softmax", "so large"],
)
def test_what_leaves_no_codes_to_others_is_refused(function):
    with pytest.raises(UnsupportedError, match=r"that no softmax makes 0 of.*Fill in"):
        captured(function)


FILLED = {
    "zeros": lambda m, s: s.masked_fill(m.hides, 0.0),
    "number": lambda m, s: s.masked_fill(m.hides, 2.5),
    "where": lambda m, s: torch.where(m.hides, s, 0.0),
    "where not": lambda m, s: torch.where(m.hides, -1.5, s),
    "where zeros like it": lambda m, s: torch.where(m.hides, s, torch.zeros_like(s)),
    "where a buffer": lambda m, s: torch.where(m.hides, s, m.bias[:1]),
    "one of two": lambda m, s: torch.where(m.hides, s, 2 * s.relu()),
}


@pytest.mark.parametrize("name", FILLED)
def test_numbers_are_filled_in(name):
    module, x, model = captured(lambda m, q, k, v: FILLED[name](m, q @ k.mT) @ v)
    torch.testing.assert_close(model.graph_module(x)[0], module(x), rtol=1e-4, atol=1e-5)
    made = {str(node.target) for node in model.graph_module.graph.nodes}
    assert "aten.mul.Tensor" in made, made


@pytest.mark.parametrize("name", ["where", "where not"])
def test_where_hides_tokens_from_a_softmax(name):
    pick = {"where": lambda h, s: torch.where(~h, s, -1e9)}
    pick["where not"] = lambda h, s: torch.where(h, torch.tensor(-torch.inf), s)
    module, x, model = captured(lambda m, q, k, v: _soft(pick[name](m.hides, q @ k.mT), v))
    torch.testing.assert_close(model.graph_module(x)[0], module(x), rtol=1e-4, atol=1e-5)
    assert all(held.min() >= LOWEST for held in model.graph_module.buffers())


def test_a_mask_that_depends_on_the_image_is_refused():
    with pytest.raises(UnsupportedError, match="a comparison"):
        captured(lambda m, q, k, v: torch.where(q @ k.mT > 0, q @ k.mT, 0.0) @ v)


@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_row_that_sees_nothing_is_refused(lowest):
    hides = torch.zeros(T, T, dtype=torch.bool)
    hides[3] = True
    with pytest.raises(UnsupportedError, match=r"hides all tokens from a row.*Leave one"):
        captured(lambda m, q, k, v: _soft(q @ k.mT + _low(hides, lowest), v))


def _low(hides, lowest):
    return torch.zeros(T, T).masked_fill(hides, lowest) + torch.zeros(T, T).masked_fill(
        torch.eye(T, dtype=torch.bool), -100.0
    )


def test_a_hidden_token_is_nothing():
    assert torch.tensor(-HIDDEN).exp() < 2**-40


class ConstantQueries(nn.Module):
    """Attention among constants, as in the first layer of a decoder, seen without a copy."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, T, 2, 4))
        self.dense = nn.Linear(8, 8)

    def forward(self, x):
        heads = self.queries.transpose(1, 2)
        made = F.scaled_dot_product_attention(heads, heads, heads)
        return self.dense(x) + made.transpose(1, 2).view(1, T, 8)


def test_constants_are_seen_as_they_are_kept():
    module, x = ConstantQueries().eval(), torch.randn(2, T, 8)
    batch = {0: torch.export.Dim("batch")}
    model = capture_program(torch.export.export(module, (x,), dynamic_shapes=(batch,)))
    torch.testing.assert_close(model.graph_module(x)[0], module(x), rtol=1e-4, atol=1e-5)
