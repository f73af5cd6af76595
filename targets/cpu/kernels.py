"""Kernels of the host for the layers of an integer network, by the type that describes a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from targets.cpu.addition import build_add
from targets.cpu.convolution import build_conv2d, conv2d_cuts
from targets.cpu.cuts import Cut, CutSpace
from targets.cpu.host import CpuFeatures
from targets.cpu.kernel import Kernel
from targets.cpu.lookup import build_lut
from targets.cpu.pool import build_max_pool2d
from targets.cpu.rows import build_norm, build_softmax
from targets.errors import CapacityError
from targets.layers import Add, Conv2d, Layer, Lut, MaxPool2d, Norm, Softmax

KERNELS: dict[type[Layer], Callable[[Any, CpuFeatures], Kernel]] = {
    Conv2d: build_conv2d,
    Add: build_add,
    MaxPool2d: build_max_pool2d,
    Lut: build_lut,
    Softmax: build_softmax,
    Norm: build_norm,
}


def cuts_of(layer: Layer, host: CpuFeatures) -> CutSpace | None:
    """What the kernel of ``layer`` may be cut like; None where it has no choice, or is none."""
    return conv2d_cuts(layer, host) if isinstance(layer, Conv2d) else None


def make_kernel(layer: Layer, host: CpuFeatures, cut: Cut | None = None) -> Kernel | None:
    """The kernel of ``layer``, or None where TVM's own lowering will do (moves, constants).

    Args:
        layer: the layer.
        host: the processor.
        cut: that takes the place of the rule's.

    Raises:
        CapacityError: the kernel can't be cut like that.
    """
    build = KERNELS.get(type(layer))
    if cut is None:
        return None if build is None else build(layer, host)
    space = cuts_of(layer, host)
    if space is None or cut not in space:
        why = "it has no choice" if space is None else "sizes must divide and tiles fit registers"
        raise CapacityError(
            f"{layer.name}: its kernel on the CPU can't be cut into {cut}: {why}. Leave the cut "
            f"out, or tune again."
        )
    assert isinstance(layer, Conv2d)
    return build_conv2d(layer, host, cut)
