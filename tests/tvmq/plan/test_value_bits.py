"""Which values are residuals, and how many bits they have."""

import pytest
import torch
from models import export
from quantization_cases import float_model, plan
from torch import nn

from targets.errors import InputError
from tvmq.capture.capture import capture_program
from tvmq.plan.value_bits import residuals
from tvmq.regions import find_regions
from tvmq.settings import Settings


def _residuals(model) -> frozenset[str]:
    return residuals(model, find_regions(model))


def _captured(module: nn.Module, *shape: int):
    return capture_program(export((module.eval(), torch.randn(2, *shape))))


def test_what_blocks_add_and_make_is_a_residual_and_what_is_inside_is_none():
    # "avg_pool2d" is what the last block's residual becomes for the last layer
    assert _residuals(float_model("resnet_small")) == {"relu", "relu_2", "relu_4", "avg_pool2d"}
    projected = {"relu", "relu_2", "conv2d_4", "relu_4", "avg_pool2d"}
    assert _residuals(float_model("resnet_projection")) == projected
    assert _residuals(float_model("mobilenet_small")) == {"clamp", "add"}


def test_an_embedding_of_positions_is_one_and_so_is_what_a_class_token_is_joined_with():
    found = _residuals(float_model("vit_small"))
    assert {"conv2d", "constant", "cat", "constant_1", "add", "add_1", "add_4"} <= found
    assert not any(name.startswith(("layer_norm", "linear", "softmax")) for name in found)


class _Biased(nn.Module):
    """Scores with a bias of positions, which is no residual."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.randn(1, 5, 5))

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(1, 2) + self.bias
        return scores.softmax(-1) @ x


def test_a_bias_of_scores_is_none():
    model = _captured(_Biased(), 5, 8)
    assert any(layer.kind == "add" for layer in find_regions(model).layers.values())
    assert _residuals(model) == frozenset()


def test_residuals_alone_get_the_bits():
    few, more = (plan("resnet_small", Settings(2, 2, residual_bits=bits)) for bits in (0, 4))
    bits = {name: value.bits for name, value in few.values.items()}
    assert bits == {
        "x": 8,
        "avg_pool2d": 8,
        **{f"relu{i}": 2 for i in ("", "_1", "_2", "_3", "_4")},
    }
    rich = dict.fromkeys(("relu", "relu_2", "relu_4"), 4)
    assert {name: value.bits for name, value in more.values.items()} == bits | rich


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activation_bits": 4, "residual_bits": 4}, "a whole number from 5 to 8, or leave it out"),
        ({"activation_bits": 7, "residual_bits": 9}, "have 7 bits; give 8, or leave it out"),
        ({"residual_bits": 8}, "activations have 8 bits; leave it out"),
        ({"residual_reads": "twice"}, "choose one of rounded, whole"),
    ],
)
def test_bits_that_say_nothing_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        Settings(**settings)
