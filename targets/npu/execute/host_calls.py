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
from targets.npu.execute.executor import TRAPS

_INT32_BYTES = 4
_INDEX_DIGITS = 9
_TRAP_TEXT_BYTES = 64 + max(map(len, TRAPS.values()))
_SET_ERROR = "TVMFFIErrorSetRaisedFromCStr"
"""Of TVM's runtime, which every process that loads a module has."""


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
    """int8[n, total] from byte ``offset`` on -> [n, H, W, C]; raises if an image trapped."""
    width, channels = value.shape[1:]
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("npu_unpack_output")
            packed_handle, trap_handle, out_handle = (T.arg(x, T.handle()) for x in ("p", "t", "y"))
            batch = tirx.Var("n", "int64")
            packed = T.match_buffer(packed_handle, (batch, total), "int8")
            trap = T.match_buffer(trap_handle, (batch, 2), "int32")
            out = T.match_buffer(out_handle, (batch, *value.shape), value.dtype)
            with T.sblock("root"):
                with T.sblock("trap"):
                    T.reads(trap[0:batch, 0:2])
                    T.writes()
                    text = T.sblock_alloc_buffer((_TRAP_TEXT_BYTES,), "int8")
                    end = T.sblock_alloc_buffer((1,), "int32")
                    with T.serial(0, batch) as n, T.If(trap[n, 0] != 0), T.Then():
                        _raise_trap(trap[n, 0], trap[n, 1], text, end)
                with T.parallel(0, batch) as n, T.grid(*value.shape) as (h, w, c):
                    at = (h * width + w) * channels + c
                    T.buffer_store(out, _element(packed, n, offset, at, value.dtype), [n, h, w, c])
        return builder.get()


def _raise_trap(code: Any, index: Any, text: tirx.Buffer, end: tirx.Buffer) -> None:
    """Return with a RuntimeError that says which instruction trapped and why.

    The text is put together here because the message of a TIR assertion can't hold a number.

    Args:
        code: a key of ``TRAPS``.
        index: of the instruction.
        text: int8[_TRAP_TEXT_BYTES], for the message.
        end: int32[1], for its length.
    """

    def write(byte: Any) -> None:
        T.buffer_store(text, tirx.Cast("int8", byte), [end[0]])
        T.buffer_store(end, end[0] + 1, [0])

    T.buffer_store(end, 0, [0])
    for letter in b"the NPU trapped at instruction ":
        write(tirx.IntImm("int8", letter))
    for power in [10**n for n in reversed(range(1, _INDEX_DIGITS))]:
        with T.If(index >= power), T.Then():
            write(ord("0") + index // power % 10)
    write(ord("0") + index % 10)
    for number, reason in TRAPS.items():
        with T.If(code == number), T.Then():
            for letter in f": {reason}\0".encode():
                write(tirx.IntImm("int8", letter))
    T.evaluate(tirx.call_extern("int32", _SET_ERROR, "RuntimeError", text.data))
    T.evaluate(tirx.tvm_throw_last_error())


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
