"""What a kernel of the host is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import tirx


@dataclass(frozen=True, eq=False)
class Kernel:
    """A scheduled function and the arrays it needs.

    Layers that differ in the values of ``constants`` alone have structurally equal functions.

    Attributes:
        func: its parameters are the layer's inputs in order, each [N, H, W, C] with N symbolic (a
            value of rank 2 as [N, 1, 1, C]: the caller reshapes), then ``constants``, then the
            output [N, H, W, K], which it writes.
        constants: packed weights and per-channel arrays.
    """

    func: tirx.PrimFunc
    constants: tuple[npt.NDArray[np.generic], ...]
