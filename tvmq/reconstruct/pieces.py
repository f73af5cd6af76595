"""Tensors piece by piece, so that what several operators do to one stays in the caches of a core.

Arithmetic on tensors of a whole batch waits for memory: each operator reads and writes all of it.
Done to one piece after the other, only the first operator reads from memory and the last one writes
there. What comes out is the same to the bit, but for sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

PIECE = 2**18
"""Numbers in a piece, about."""


def dense(x: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor without gaps: as it is, or a copy, if it must be in the order of ``like``."""
    order = x if like is None else like
    if _last(order):
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


def pieces(*tensors: torch.Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Corresponding stretches of tensors of one shape and one dense order: views of one axis.

    Where there is None instead of a tensor, there is None instead of its stretches. On a GPU a
    single stretch is all.
    """
    flat = [None if tensor is None else _flat(tensor) for tensor in tensors]
    (count,) = {len(tensor) for tensor in flat if tensor is not None}
    cached = all(tensor is None or tensor.device.type == "cpu" for tensor in flat)
    size = PIECE if cached else max(1, count)
    for first in range(0, count, size):
        yield tuple(None if t is None else t[first : first + size] for t in flat)


def _last(x: torch.Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1).view(-1) if _last(x) else x.view(-1)
