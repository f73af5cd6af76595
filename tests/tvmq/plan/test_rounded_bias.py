"""Biases in whole units of the sums."""

import torch
from quantization_cases import float_model

from tvmq.plan.rounded_bias import rounded_bias


def test_ties_go_up():
    """As the sums that a bias is part of do: 1/2 becomes 1, -1/2 becomes 0."""
    model = float_model("resnet_small")
    bias = model.bias_of(model.nodes["conv2d"]).double()
    assert bias.min() < 0 < bias.max()
    codes = rounded_bias(model, "conv2d", 2.0, tuple(bias.abs().tolist()), None)
    assert torch.equal(codes, (bias > 0).long())
