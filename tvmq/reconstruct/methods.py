"""The methods: small configurations of one training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvmq.float_model import FloatModel
from tvmq.reconstruct.units import Unit


@dataclass(frozen=True)
class Phase:
    """One run of the training loop over a unit.

    Attributes:
        weights: the rounding of weights is learned.
        steps: activation steps are learned.
        drop: share of activations that stay float, in [0, 1]; 1: none is quantized inside.
        share: of the iterations that were asked for.
    """

    weights: bool
    steps: bool
    drop: float
    share: float = 1.0


@dataclass(frozen=True)
class Method:
    """How a network is reconstructed.

    Attributes:
        whole_blocks: units are blocks; otherwise single layers.
        phases: in order.
        compensated: learning starts from codes whose rounding errors compensate each other.
        exponents: exponents of weights and activations are searched for by what they do to the
            unit, and activation exponents once more over the whole network.
        batch_norm_power: the exponent of a unit's loss follows from its last batch norm.
    """

    whole_blocks: bool
    phases: tuple[Phase, ...]
    compensated: bool = False
    exponents: bool = False
    batch_norm_power: bool = False


LEARNED: dict[str, Method] = {
    "adaround": Method(False, (Phase(weights=True, steps=False, drop=1.0),)),
    "brecq": Method(
        True,
        (
            Phase(weights=True, steps=False, drop=1.0),
            Phase(weights=False, steps=True, drop=0.0, share=0.25),
        ),
    ),
    "qdrop": Method(True, (Phase(weights=True, steps=True, drop=0.5),)),
    "rapq": Method(
        True,
        (Phase(weights=True, steps=True, drop=0.5),),
        compensated=True,
        exponents=True,
        batch_norm_power=True,
    ),
}
"""By the names of ``--method``."""


def loss_power(model: FloatModel, unit: Unit, method: Method, kappa: float) -> float:
    """The exponent of a unit's loss, from the scales of its last batch norm.

    ``1 + kappa * sigmoid((sum(gamma) - 1) / channels)``, to one decimal, as in RAPQ; 2 for methods
    that do not ask for it, for single layers and for units without batch norm.
    """
    norms = [model.batch_norms[name] for name in unit.nodes if name in model.batch_norms]
    if not method.batch_norm_power or len(unit.layers) < 2 or not norms:
        return 2.0
    gamma = norms[-1].gamma
    mean = (float(gamma.double().sum()) - 1) / len(gamma)
    return round(1 + kappa / (1 + math.exp(-mean)), 1)
