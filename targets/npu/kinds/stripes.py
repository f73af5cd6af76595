"""Stripes of output rows, for layers without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from targets.npu.kinds.cost import ceil_div

MIN_STRIPES = 4
"""With fewer stripes the DMA has no compute to hide under."""


def stripe_heights(rows: int, row_bytes: Callable[[int], int], capacity: int) -> Iterator[int]:
    """Heights of stripes that fit, tallest first; each divides the image as evenly as it goes.

    Args:
        rows: of the image.
        row_bytes: bytes that a stripe of some height takes in ACT.
        capacity: of ACT.
    """
    last = 0
    for stripes in range(min(rows, MIN_STRIPES), rows + 1):
        height = ceil_div(rows, stripes)
        if height != last and slots(rows, height) * row_bytes(height) <= capacity:
            yield height
        last = height


def slots(rows: int, height: int) -> int:
    """How many stripes are in ACT at a time."""
    return min(2, ceil_div(rows, height))
