"""Dot-product instructions of the host as tensor intrinsics.

TVM's own VNNI intrinsic passes ``<16 x i32>`` operands, which LLVM 22 refuses; ours passes bytes.

They are built by calls, not parsed from TVMScript: its parser looks through all modules of the
process for the source of each frame, which takes a third of a second once torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

VNNI = "tvmq.cpu.vnni_u8s8"


def _half(body: Callable[[Any, Any, Any], None]) -> tirx.PrimFunc:
    """One half of an intrinsic: 16 sums of 4 products, ``body`` says how."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("vnni")
            a, b, c = (T.arg(name, T.handle()) for name in "abc")
            A = T.match_buffer(a, (4,), "uint8", offset_factor=1)
            B = T.match_buffer(b, (16, 4), "int8", offset_factor=1)
            C = T.match_buffer(c, (16,), "int32", offset_factor=1)
            with T.sblock("root"):
                T.reads(C[0:16], A[0:4], B[0:16, 0:4])
                T.writes(C[0:16])
                body(A, B, C)
        return builder.get()


def _meaning(A: Any, B: Any, C: Any) -> None:
    with T.serial(0, 16) as i, T.serial(0, 4) as k, T.sblock("update"):
        vi, vk = T.axis.remap("SR", [i, k])
        product = T.Cast("int32", A[vk]) * T.Cast("int32", B[vi, vk])
        T.buffer_store(C, C[vi] + product, [vi])


def _instruction(A: Any, B: Any, C: Any) -> None:
    quad = T.reinterpret(A.vload([0], "uint8x4"), dtype="int32")
    sums = T.call_llvm_pure_intrin(
        T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512"),
        C.vload([0], "int32x16"),
        T.reinterpret(T.broadcast(quad, 16), dtype="uint8x64"),
        B.vload([0, 0], "int8x64"),
        dtype="int32x16",
    )
    T.buffer_store(C, sums, [T.ramp(T.int32(0), 1, 16)])


s_tir.TensorIntrin.register(VNNI, _half(_meaning), _half(_instruction), override=True)
