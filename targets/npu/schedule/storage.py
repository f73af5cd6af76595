"""How wide the codes of a tensor lie in memory: a byte each, or packed where all that touch it can.

Codes of 4 or 2 bits are packed along channels, element 0 in the low bits. Tensors that come from
the host or go to it are bytes, and so are those that a table or a move reads or writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from targets.layers import Add, Conv2d, Layer, Lut, MaxPool2d, Move, Value


def host_bytes(value: Value) -> int:
    """Bytes of a tensor of one image at the edge of a program: a code per byte."""
    return stored_bytes(replace(value, bits=8))


def stored_bytes(value: Value) -> int:
    """Bytes of a tensor of one image as it lies in memory."""
    height, width, channels = value.shape
    itemsize = 4 if value.dtype == "int32" else 1
    return height * width * channels * itemsize * value.bits // 8


def elements(value: Value) -> int:
    """Length of the flat buffer that holds a tensor: its bytes, or its int32 sums."""
    return math.prod(value.shape) * value.bits // 8


def pixel_bytes(value: Value) -> int:
    """Bytes of all channels of a pixel."""
    return value.shape[2] * value.bits // 8


def row_bytes(value: Value) -> int:
    """Bytes from one row to the next, the border of a tensor that stays in ACT included."""
    _, left, _, right = value.border or (0, 0, 0, 0)
    return (value.shape[1] + left + right) * pixel_bytes(value)


def pixel_offset(value: Value, row: Any, column: Any) -> Any:
    """Byte at which a pixel begins; ints or expressions, negative inside the border."""
    top, left, _, _ = value.border or (0, 0, 0, 0)
    return (row + top) * row_bytes(value) + (column + left) * pixel_bytes(value)


def bordered_bytes(value: Value) -> int:
    """Bytes of a tensor that stays in ACT, border included."""
    top, _, bottom, _ = value.border or (0, 0, 0, 0)
    return (value.shape[0] + top + bottom) * row_bytes(value)


def repeated(code: int, value: Value) -> int:
    """A byte that holds ``code`` at every place, read as the tensor's dtype."""
    if value.bits == 8:
        return code
    byte = sum((code & ((1 << value.bits) - 1)) << place for place in range(0, 8, value.bits))
    return byte - 256 if value.dtype == "int8" and byte > 127 else byte


def choose_storage(
    layers: Sequence[Layer],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    widths: Sequence[int],
) -> list[Layer]:
    """The same layers, with ``Value.bits`` the width at which each tensor is stored.

    Args:
        layers: in order, all in one program.
        inputs: tensors from outside.
        outputs: tensors for outside.
        widths: what the machine's array computes with, in bits.
    """
    bits = {v.name: v.bits for layer in layers for v in (*layer.inputs, layer.output)}
    bits |= {v.name: 8 for v in (*inputs, *outputs)}
    bits = {name: width if width in widths else 8 for name, width in bits.items()}
    while bytewise := {
        name for layer in layers for name in _unpackable(layer, bits) if bits[name] != 8
    }:
        bits |= dict.fromkeys(bytewise, 8)
    return [map_values(layer, lambda v: replace(v, bits=bits[v.name])) for layer in layers]


def as_bytes(layer: Layer) -> Layer:
    """The same layer with every tensor stored as bytes."""
    return map_values(layer, lambda v: replace(v, bits=8))


def _unpackable(layer: Layer, bits: dict[str, int]) -> list[str]:
    """The tensors that the layer can only work on as bytes."""
    values = [*layer.inputs, layer.output]
    names = [v.name for v in values]
    if isinstance(layer, Lut | Move):
        return names
    ragged = [v.name for v in values if v.shape[2] * bits[v.name] % 8]
    if not isinstance(layer, Conv2d):
        return ragged if len({bits[name] for name in names}) == 1 else names
    residual = layer.requantize.residual if layer.requantize else None
    if residual is not None and bits[residual.value.name] != bits[layer.output.name]:
        ragged += [residual.value.name, layer.output.name]
    if layer.groups > 1 and not layer.depthwise:
        for value in values:
            if value.shape[2] // layer.groups * bits[value.name] % 8:
                ragged.append(value.name)
    return ragged


def map_values(layer: Layer, change: Callable[[Value], Value]) -> Layer:
    """The same layer with every tensor that it reads or writes put through ``change``."""
    output = change(layer.output)
    if isinstance(layer, Conv2d):
        requantize = layer.requantize
        if requantize is not None and requantize.residual is not None:
            residual = replace(requantize.residual, value=change(requantize.residual.value))
            requantize = replace(requantize, residual=residual)
        return replace(layer, input=change(layer.input), output=output, requantize=requantize)
    if isinstance(layer, Add):
        a, b = (replace(side, value=change(side.value)) for side in (layer.a, layer.b))
        return replace(layer, a=a, b=b, output=output)
    if isinstance(layer, MaxPool2d | Lut):
        return replace(layer, input=change(layer.input), output=output)
    pieces = tuple(replace(piece, value=change(piece.value)) for piece in layer.pieces)
    return replace(layer, pieces=pieces, output=output)
