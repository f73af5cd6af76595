"""Calibration images mixed: few images are soon known by heart, pieces of two of them are not.

As CutMix (arXiv 1905.04899) does it, without labels: the float network says what the outputs are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

SHARE = 0.5
"""Of the images that get a piece of another one."""

SIDES = (0.25, 0.75)
"""Of the sides of a piece, relative to the image's."""


def mixed(inputs: Sequence[torch.Tensor], generator: torch.Generator) -> list[torch.Tensor]:
    """A batch, some of whose images have a rectangle of another one of the batch.

    Args:
        inputs: of the network, [N, ...] each, left as they are. Images, [N, C, H, W], are mixed at
            the same place of each input; where an input is anything else, nothing is.
        generator: of what is mixed with what, and where.

    Returns:
        As many tensors; images in channels-last order.
    """
    if any(x.dim() != 4 for x in inputs):
        return list(inputs)
    count = len(inputs[0])
    others = torch.randperm(count, generator=generator).tolist()
    drawn = torch.rand(count, 5, generator=generator).tolist()
    results = [x.clone(memory_format=torch.channels_last) for x in inputs]
    for i, (other, (chance, *place)) in enumerate(zip(others, drawn, strict=True)):
        if chance < SHARE:
            for x, result in zip(inputs, results, strict=True):
                rows, columns = _piece(*x.shape[2:], *place)
                result[i, :, rows, columns] = x[other, :, rows, columns]
    return results


def _piece(
    height: int, width: int, tall: float, wide: float, down: float, right: float
) -> tuple[slice, slice]:
    """Rows and columns of a piece; the numbers are in [0, 1)."""
    return _stretch(height, tall, down), _stretch(width, wide, right)


def _stretch(size: int, length: float, start: float) -> slice:
    least, most = SIDES
    count = max(1, round(size * (least + (most - least) * length)))
    first = int(start * (size - count + 1))
    return slice(first, first + count)
