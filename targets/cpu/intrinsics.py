"""Dot-product instructions of the host as tensor intrinsics.

TVM's own VNNI intrinsic passes ``<16 x i32>`` operands, which LLVM 22 refuses; ours passes bytes.

They are built by calls, not parsed from TVMScript: its parser looks through all modules of the
process for the source of each frame, which takes a third of a second once torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

VNNI = "tvmq.cpu.vnni_u8s8"
VNNI_WORDS = "tvmq.cpu.vnni_s16s16"


@dataclass(frozen=True)
class _Dot:
    """Products of one instruction: each of 16 sums of so many, which fill 32 bits.

    Attributes:
        depth: products of a sum.
        left: type of what all sums share.
        right: type of what each has for itself.
        instruction: LLVM's name of it.
    """

    depth: int
    left: str
    right: str
    instruction: str

    def half(self, body: Callable[[Any, Any, Any], None]) -> tirx.PrimFunc:
        """One half of an intrinsic; ``body`` says how the sums are made."""
        depth = self.depth
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("vnni")
                a, b, c = (T.arg(name, T.handle()) for name in "abc")
                A = T.match_buffer(a, (depth,), self.left, offset_factor=1)
                B = T.match_buffer(b, (16, depth), self.right, offset_factor=1)
                C = T.match_buffer(c, (16,), "int32", offset_factor=1)
                with T.sblock("root"):
                    T.reads(C[0:16], A[0:depth], B[0:16, 0:depth])
                    T.writes(C[0:16])
                    body(A, B, C)
            return builder.get()

    def meaning(self, A: Any, B: Any, C: Any) -> None:
        """In plain TIR."""
        with T.serial(0, 16) as i, T.serial(0, self.depth) as k, T.sblock("update"):
            vi, vk = T.axis.remap("SR", [i, k])
            product = T.Cast("int32", A[vk]) * T.Cast("int32", B[vi, vk])
            T.buffer_store(C, C[vi] + product, [vi])

    def call(self, A: Any, B: Any, C: Any) -> None:
        """By the instruction."""
        shared = T.reinterpret(A.vload([0], f"{self.left}x{self.depth}"), dtype="int32")
        operands = [
            T.reinterpret(T.broadcast(shared, 16), dtype=f"{self.left}x{16 * self.depth}"),
            B.vload([0, 0], f"{self.right}x{16 * self.depth}"),
        ]
        sums = T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id(self.instruction),
            C.vload([0], "int32x16"),
            *operands,
            dtype="int32x16",
        )
        T.buffer_store(C, sums, [T.ramp(T.int32(0), 1, 16)])


for _name, _dot in (
    (VNNI, _Dot(4, "uint8", "int8", "llvm.x86.avx512.vpdpbusd.512")),
    (VNNI_WORDS, _Dot(2, "int16", "int16", "llvm.x86.avx512.vpdpwssd.512")),
):
    s_tir.TensorIntrin.register(_name, _dot.half(_dot.meaning), _dot.half(_dot.call), override=True)
