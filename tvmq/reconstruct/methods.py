"""The methods: small configurations of one training loop."""

from __future__ import annotations

from dataclasses import dataclass


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
        exponents: with power-of-two steps, exponents of weights and activations are searched for
            by what they do to the unit, and activation exponents once more over the whole network.
        batch_norm_power: the exponent of a unit's loss follows from its last batch norm.
    """

    whole_blocks: bool
    phases: tuple[Phase, ...]
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
        exponents=True,
        batch_norm_power=True,
    ),
}
"""By the names of ``--method``."""
