"""Kernels of the host for the layers of an integer network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import tirx

from targets.cpu.conv2d import build_conv2d
from targets.cpu.host import CpuFeatures
from targets.layers import Conv2d, Layer


@dataclass(frozen=True, eq=False)
class Kernel:
    """A scheduled function and the arrays it needs.

    Attributes:
        func: parameters are the layer's inputs in order, [N, H, W, C] with N symbolic (rank 2 values as
            [N, 1, 1, C]: the caller reshapes), ``constants`` in order, and the output [N, H, W, K].
        constants: packed weights and per-channel arrays.
    """

    func: tirx.PrimFunc
    constants: tuple[npt.NDArray[np.generic], ...]


def make_kernel(layer: Layer, host: CpuFeatures) -> Kernel | None:
    """The kernel of ``layer``, or None where TVM's own lowering is good enough."""
    if isinstance(layer, Conv2d):
        return Kernel(*build_conv2d(layer, host))
    return None
