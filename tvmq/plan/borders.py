"""Which values may be rounded by borders, and how many rows of them."""

from __future__ import annotations

import math

from targets.rounding import MAX_BORDER_BITS
from tvmq.regions import SUMS_LEAVE, Regions


def border_refusal(regions: Regions, name: str, bits: int) -> str:
    """Why a value of so many bits can't be rounded by borders, in words; "" if it can."""
    layer = regions.layers.get(regions.values[name].layer)
    if layer is None or layer.kind not in SUMS_LEAVE:
        return "no convolution, linear layer or average makes it, and nothing else rounds so"
    if bits > MAX_BORDER_BITS:
        return f"it has {bits} bits, and at most {MAX_BORDER_BITS} can be rounded so"
    return ""


def may_differ_by_channel(regions: Regions, name: str) -> bool:
    """Whether each channel may have its own: a clamp must come to the same code in all of them.

    That of a ReLU does, since zero is a code.
    """
    value = regions.values[name]
    return all(not math.isfinite(bound) or bound == 0 for bound in (value.low, value.high))
