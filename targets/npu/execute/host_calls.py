"""The host's side of a program: tensors into the input region, tensors from the output region.

The device executes one image's bytes; these functions sit between it and tensors with a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from targets.layers import Value

_INT32_BYTES = 4


def pack_inputs(values: Sequence[Value]) -> tirx.PrimFunc:
    """Tensors [n, H, W, C] of codes, one behind the other -> int8[n, bytes]."""
    total = sum(_elements(v) for v in values)
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
                    with T.parallel(0, batch) as n, T.grid(*value.shape) as (h, w, c):
                        at = offset + (h * value.shape[1] + w) * value.shape[2] + c
                        T.buffer_store(packed, tirx.Cast("int8", tensor[n, h, w, c]), [n, at])
                    offset += _elements(value)
        return builder.get()


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
