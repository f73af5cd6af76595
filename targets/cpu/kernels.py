"""Kernels of the host for the layers of an integer network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import tirx

from targets.cpu.conv2d import build_conv2d
from targets.cpu.elementwise import build_add, build_lut, build_max_pool2d
from targets.cpu.host import CpuFeatures
from targets.layers import Add, Conv2d, Layer, Lut, MaxPool2d


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


def make_kernel(layer: Layer, host: CpuFeatures) -> Kernel | None:
    """The kernel of ``layer``, or None where TVM's own lowering is good enough (moves)."""
    match layer:
        case Conv2d():
            return Kernel(*build_conv2d(layer, host))
        case Add():
            return Kernel(*build_add(layer))
        case MaxPool2d():
            return Kernel(*build_max_pool2d(layer))
        case Lut():
            return Kernel(*build_lut(layer))
        case _:
            return None
