"""Kernels of the host for the layers of an integer network, by the type that describes a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from targets.cpu.addition import build_add
from targets.cpu.convolution import build_conv2d
from targets.cpu.host import CpuFeatures
from targets.cpu.kernel import Kernel
from targets.cpu.lookup import build_lut
from targets.cpu.pool import build_max_pool2d
from targets.cpu.rows import build_norm, build_softmax
from targets.layers import Add, Conv2d, Layer, Lut, MaxPool2d, Norm, Softmax

KERNELS: dict[type[Layer], Callable[[Any, CpuFeatures], Kernel]] = {
    Conv2d: build_conv2d,
    Add: build_add,
    MaxPool2d: build_max_pool2d,
    Lut: build_lut,
    Softmax: build_softmax,
    Norm: build_norm,
}


def make_kernel(layer: Layer, host: CpuFeatures) -> Kernel | None:
    """The kernel of ``layer``, or None where TVM's own lowering will do (moves, constants)."""
    build = KERNELS.get(type(layer))
    return None if build is None else build(layer, host)
