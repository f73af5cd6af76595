"""A layer's bias in whole units of its sums."""

from __future__ import annotations

import torch

from targets.rounding import HALF
from tvmq.float_model import FloatModel
from tvmq.plan.plan import BiasPlan


def rounded_bias(
    model: FloatModel, layer: str, source: float, units: tuple[float, ...], bias: BiasPlan | None
) -> torch.Tensor:
    """The bias of a layer with weights, int64[K]; the part of a zero point is not in it.

    Args:
        model: the float network.
        layer: name of the convolution or linear node.
        source: step of the value that is read.
        units: of the weights (``WeightPlan.units``), one or K.
        bias: the correction that is added before rounding.
    """
    node = model.nodes[layer]
    value = model.bias_of(node)
    channels = model.weight_of(node).shape[0]
    exact = torch.zeros(channels, dtype=torch.float64) if value is None else value.double()
    if bias is not None and bias.correction:
        exact = exact + torch.tensor(bias.correction, dtype=torch.float64)
    unit = source * torch.tensor(units, dtype=torch.float64)
    return torch.floor(exact / unit + HALF).long()
