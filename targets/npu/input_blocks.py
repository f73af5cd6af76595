"""Inputs in blocks of pixels, where a strided convolution reads them.

A convolution of an image of three channels fills few lanes of the array. Its windows move by whole
strides, so a block of as many pixels as a stride has can be one pixel with their channels, and the
convolution is one without strides over fewer and deeper pixels:

    7 x 7, stride 2, of 224 x 224 x 3      7 tiles of 7 * 3 lanes
    4 x 4 of 112 x 112 x 12                4 tiles of 4 * 12 lanes

The host writes every byte of an input anyway and can write blocks as well. Sums have the same
products, and zeros: weights where a block reaches past the window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from targets.errors import CapacityError
from targets.layers import Conv2d, Layer, Value, Weights
from targets.npu.kinds.cost import ceil_div
from targets.npu.kinds.table import plan
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.job import Job
from targets.npu.schedule.storage import Blocks


@dataclass(frozen=True)
class Blocked:
    """The layers of a program, and what the host hands to it.

    Attributes:
        layers: those that read blocks written anew.
        inputs: as the program reads them.
        blocks: how the host packs them, by name; none for those that it leaves as they are.
    """

    layers: list[Layer]
    inputs: list[Value]
    blocks: Mapping[str, Blocks]


def in_blocks(
    layers: Sequence[Layer], inputs: Sequence[Value], outputs: Sequence[Value], spec: NpuSpec
) -> Blocked:
    """Have the host pack inputs in blocks where that costs the layer behind fewer cycles.

    Args:
        layers: of a program, in order.
        inputs: tensors that come from outside.
        outputs: tensors that are needed outside.
        spec: the machine.
    """
    kept = {value.name for value in outputs}
    result, blocks = list(layers), dict[str, Blocks]()
    for value in inputs:
        # once for each operand: a residual reads the tensor as it is
        readers = [n for n, layer in enumerate(layers) for read in layer.inputs if read == value]
        if len(readers) != 1 or value.name in kept:
            continue
        (reader,) = readers
        layer = layers[reader]
        found = over_blocks(layer, value) if isinstance(layer, Conv2d) else None
        if found is not None and _cycles(found[0], spec) < _cycles(layer, spec):
            result[reader], blocks[value.name] = found
    packed = [blocks[v.name].packed(v) if v.name in blocks else v for v in inputs]
    return Blocked(result, packed, blocks)


def _cycles(layer: Layer, spec: NpuSpec) -> float:
    """Estimated, by itself."""
    try:
        return plan(Job.alone(layer, spec)).cost.cycles
    except CapacityError:
        return float("inf")


@dataclass(frozen=True)
class _Axis:
    """Rows, or columns, in blocks of ``size``.

    Attributes:
        lead: pixels of the first window's first block that lie before the window.
        kernel: blocks of a window.
        count: blocks that hold pixels of the image.
        before: pixels in the first of them that lie before the image.
        padding: blocks of padding before and behind them.
    """

    size: int
    lead: int
    kernel: int
    count: int
    before: int
    padding: tuple[int, int]


def _axis(length: int, windows: int, kernel: int, stride: int, padding: int) -> _Axis:
    """Blocks along one axis.

    Args:
        length: of the image.
        windows: of the output.
        kernel: pixels of a window.
        stride: of the windows, and pixels of a block.
        padding: before the image.
    """
    lead = -padding % stride  # the image begins with a block
    if ceil_div(kernel + lead, stride) > ceil_div(kernel, stride):
        lead = 0  # the first window does
    blocks = ceil_div(kernel + lead, stride)
    read = windows - 1 + blocks
    first, before = divmod(lead + padding, stride)
    last = min((lead + padding + length - 1) // stride, read - 1)
    return _Axis(stride, lead, blocks, last + 1 - first, before, (first, read - 1 - last))


def over_blocks(layer: Conv2d, value: Value) -> tuple[Conv2d, Blocks] | None:
    """The convolution of an input in blocks of its strides, and these; None if it can't be one."""
    right = layer.right
    if not isinstance(right, Weights) or right.factors is not None or layer.input != value:
        return None
    if layer.groups > 1 or layer.dilation != (1, 1) or layer.strides == (1, 1):
        return None
    kernel, padding = layer.weight_shape[1:3], layer.padding[:2]
    y, x = (
        _axis(*numbers)
        for numbers in zip(
            value.shape[:2], layer.output.shape[:2], kernel, layer.strides, padding, strict=True
        )
    )
    if min(y.count, x.count) < 1:  # all windows lie in the padding
        return None
    blocks = Blocks(
        (y.size, x.size), (y.count, x.count), (y.before, x.before), layer.input_zero_point
    )
    weights = _weights(right, y, x)
    return replace(
        layer,
        input=blocks.packed(value),
        right=weights,
        strides=(1, 1),
        padding=(y.padding[0], x.padding[0], y.padding[1], x.padding[1]),
    ), blocks


def _weights(right: Weights, y: _Axis, x: _Axis) -> Weights:
    """Weights of windows of blocks, channels in the order of ``Blocks``."""
    K, R, S, C = right.codes.shape
    codes = np.zeros((K, y.kernel * y.size, x.kernel * x.size, C), np.int8)
    codes[:, y.lead : y.lead + R, x.lead : x.lead + S] = right.codes
    codes = codes.reshape(K, y.kernel, y.size, x.kernel, x.size, C).transpose(0, 1, 3, 2, 4, 5)
    filling = codes[0].size - R * S * C
    return replace(right, codes=codes.reshape(K, y.kernel, x.kernel, -1), filling=filling)
