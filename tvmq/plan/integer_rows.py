"""Softmax and norms as integers compute them, as torch operators of an annotated graph.

``tvmq::integer_softmax`` and ``tvmq::integer_norm`` read a tensor held in codes and give what the
sums of ``targets/rows.py`` stand for, which the value's own ``fake_quantize`` rounds.
"""

from __future__ import annotations

import torch

from targets.rows import (
    SOFTMAX_BITS,
    NormScale,
    derive_norm,
    exponentials,
    norm_sums,
    softmax_sums,
)
from tvmq.float_model import FloatModel
from tvmq.plan.plan import Plan, ValuePlan, WeightPlan
from tvmq.regions import Layer, is_centred, norm_epsilon, norm_weights

_library = torch.library.Library("tvmq", "FRAGMENT")
_library.define("integer_softmax(Tensor x, float step, int heads, float factor) -> Tensor")
_library.define(
    "integer_norm(Tensor x, float step, Tensor gamma, Tensor beta, float gain_step, float eps,"
    " bool centred) -> Tensor"
)


def norm_scale(model: FloatModel, layer: Layer, value: ValuePlan, weights: WeightPlan) -> NormScale:
    """The integers of a norm that reads codes of ``value``."""
    node = model.nodes[layer.name]
    gamma, beta = norm_weights(model, node)
    (gain_step,) = weights.steps
    return derive_norm(
        gamma.numpy(),
        beta.numpy(),
        norm_epsilon(node),
        value.step,
        gain_step,
        centred=is_centred(node),
        zero_point=value.zero_point,
    )


def rounded_norm(model: FloatModel, layer: Layer, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand of a norm as its integers are, float64[C] each."""
    scale = norm_scale(model, layer, plan.values[layer.inputs[0]], plan.weights[layer.name])
    (gain_step,) = plan.weights[layer.name].steps
    gain, bias = torch.from_numpy(scale.gain).double(), torch.from_numpy(scale.bias).double()
    return gain * gain_step, bias * (gain_step * 2.0**-scale.fraction)


@torch.library.impl(_library, "integer_softmax", "CompositeExplicitAutograd")  # type: ignore[untyped-decorator]
def integer_softmax(x: torch.Tensor, step: float, heads: int, factor: float) -> torch.Tensor:
    """Softmax over the last axis of (..., heads * U), of each head by itself.

    Args:
        x: multiples of ``step``.
        step: of its codes.
        heads: divides the last axis.
        factor: of the sums, near 1, where free steps need one to be exact.
    """
    codes = _codes(x, step).unflatten(-1, (heads, -1)).numpy()
    sums = softmax_sums(codes, exponentials(step))
    return torch.from_numpy(sums * (2.0**-SOFTMAX_BITS * factor)).flatten(-2).to(x.dtype)


@torch.library.impl(_library, "integer_norm", "CompositeExplicitAutograd")  # type: ignore[untyped-decorator]
def integer_norm(
    x: torch.Tensor,
    step: float,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    gain_step: float,
    eps: float,
    centred: bool,
) -> torch.Tensor:
    """A norm over the last axis.

    Args:
        x: multiples of ``step``, (..., C).
        step: of its codes.
        gamma: multiples of ``gain_step``, [C].
        beta: multiples of the unit of the sums, [C].
        gain_step: of gamma.
        eps: added to the variance.
        centred: whether the mean is subtracted.
    """
    reals = gamma.double().numpy(), beta.double().numpy()
    scale = derive_norm(reals[0], reals[1], eps, step, gain_step, centred=centred)
    sums = norm_sums(_codes(x, step).numpy(), scale)
    return torch.from_numpy(sums * (gain_step * 2.0**-scale.fraction)).to(x.dtype)


def _codes(x: torch.Tensor, step: float) -> torch.Tensor:
    return torch.round(x / step).to(torch.int64)
