"""The host's side of a program: tensors into the input region, tensors from the output region.

The device executes one image's bytes; these functions sit between it and tensors with a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from targets.layers import Value
from targets.npu.schedule.storage import Blocks

_INT32_BYTES = 4


def pack_inputs(values: Sequence[Value], blocks: Mapping[str, Blocks]) -> tirx.PrimFunc:
    """Tensors [n, H, W, C] of codes, one behind the other -> int8[n, bytes].

    Args:
        values: as the network has them.
        blocks: by name, how those are packed that the program reads in blocks.
    """
    total = sum(_elements(blocks[v.name].packed(v) if v.name in blocks else v) for v in values)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("npu_pack_inputs")
            handles = [T.arg(f"x{i}", T.handle()) for i in range(len(values) + 1)]
            batch = tirx.Var("n", "int64")
            tensors = [
                T.match_buffer(handle, (batch, *value.shape), value.dtype)
                for handle, value in zip(handles, values, strict=False)
            ]
            packed = T.match_buffer(handles[-1], (batch, total), "int8")
            with T.sblock("root"):
                offset = 0
                for value, tensor in zip(values, tensors, strict=True):
                    if value.name in blocks:
                        offset += _pack_blocks(value, tensor, blocks[value.name], packed, offset)
                        continue
                    with T.parallel(0, batch) as n, T.grid(*value.shape) as (h, w, c):
                        at = offset + (h * value.shape[1] + w) * value.shape[2] + c
                        T.buffer_store(packed, tirx.Cast("int8", tensor[n, h, w, c]), [n, at])
                    offset += _elements(value)
        return builder.get()


def _pack_blocks(
    value: Value, tensor: tirx.Buffer, blocks: Blocks, packed: tirx.Buffer, offset: int
) -> int:
    """Write a tensor in blocks from byte ``offset`` of an image on; returns its bytes."""
    height, width, channels = value.shape
    (rows, columns), (top, left) = blocks.size, blocks.before
    extents = (blocks.count[0], rows, blocks.count[1], columns, channels)
    fill = tirx.const(blocks.fill, value.dtype)
    with T.parallel(0, tensor.shape[0]) as n, T.grid(*extents) as (by, y, bx, x, c):
        h, w = by * rows + y - top, bx * columns + x - left
        inside = tirx.all(h >= 0, h < height, w >= 0, w < width)
        code = tirx.if_then_else(inside, tensor[n, h, w, c], fill)
        block = by * blocks.count[1] + bx
        at = offset + ((block * rows + y) * columns + x) * channels + c
        T.buffer_store(packed, tirx.Cast("int8", code), [n, at])
    return _elements(blocks.packed(value))


def unpack_output(value: Value, offset: int, total: int) -> tirx.PrimFunc:
    """int8[n, total] from byte ``offset`` on -> [n, H, W, C]."""
    width, channels = value.shape[1:]
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("npu_unpack_output")
            packed_handle, out_handle = (T.arg(x, T.handle()) for x in ("p", "y"))
            batch = tirx.Var("n", "int64")
            packed = T.match_buffer(packed_handle, (batch, total), "int8")
            out = T.match_buffer(out_handle, (batch, *value.shape), value.dtype)
            with T.sblock("root"), T.parallel(0, batch) as n, T.grid(*value.shape) as (h, w, c):
                at = (h * width + w) * channels + c
                T.buffer_store(out, _element(packed, n, offset, at, value.dtype), [n, h, w, c])
        return builder.get()


def _element(packed: tirx.Buffer, n: tirx.Var, offset: int, at: Any, dtype: str) -> Any:
    if dtype != "int32":
        return tirx.Cast(dtype, packed[n, offset + at])
    word = None
    for byte in range(_INT32_BYTES):
        code = packed[n, offset + at * _INT32_BYTES + byte]
        part = tirx.Cast("int32", tirx.Cast("uint8", code)) << (8 * byte)
        word = part if word is None else word | part
    return word


def _elements(value: Value) -> int:
    return int(np.prod(value.shape))
