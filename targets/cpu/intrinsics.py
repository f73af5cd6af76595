"""Instructions that sum products of narrow integers, as tensor intrinsics.

Each is two of them: in one, all sums share what is multiplied by their weights; in the other, each
sum has its own, joined in a word of 32 bits.

All are exact. ``vpmaddwd`` sums products of words in 32 bits. ``vpmaddubsw`` sums two products of
bytes in 16 and saturates there: it is for weights of which it is proved that no input gets so far.

They are built by calls, not parsed from TVMScript: its parser looks through all modules of the
process for the source of each frame, which takes a third of a second once torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from tvm import ir, s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

Expr: TypeAlias = ir.Expr
Vector: TypeAlias = Any
Emit: TypeAlias = Callable[["DotProduct", Vector, Vector, Vector], Vector]
"""From int32 sums, ``lanes * depth`` elements of ``left`` and as many of ``right``, to sums."""


@dataclass(frozen=True, eq=False)
class DotProduct:
    """``lanes`` sums, to each of which ``depth`` products are added.

    Attributes:
        name: of the instruction.
        lanes: int32 sums of a vector.
        depth: products of a sum.
        left: type of what is multiplied.
        right: type of the weights, and how they are stored.
        emit: the calls of LLVM's intrinsics.
        operations: instructions that it takes, sums included.
        in_words: sums of two neighbouring products are kept in 16 bits, which saturate.
    """

    name: str
    lanes: int
    depth: int
    left: str
    right: str
    emit: Emit
    operations: int
    in_words: bool = False

    @cached_property
    def shared(self) -> str:
        """The name under which TVM knows it, of ``left[depth]`` for all sums."""
        return self._registered("shared", (self.depth,), self.left, self._meaning)

    @cached_property
    def joined(self) -> str:
        """The same of ``int32[lanes]``, in each word ``depth`` elements of ``left``."""
        return self._registered("joined", (self.lanes,), "int32", self._meaning_joined)

    @property
    def bits(self) -> int:
        """Of an element of ``left``."""
        return 16 if self.left == "int16" else 8

    def join(self, elements: Sequence[Expr]) -> Expr:
        """Elements of ``left``, at most ``depth``, in a word; the rest of it is zero."""
        word = None
        for place, element in enumerate(elements):
            if self.bits == 8:
                part = element.astype("uint8").astype("int32")
            else:
                part = element.astype("int32") & tirx.const(0xFFFF, "int32")
            part = part << tirx.const(self.bits * place, "int32") if place else part
            word = part if word is None else word | part
        return word

    def products(self, word: Expr, weights: Sequence[Expr]) -> Expr:
        """The sum of the products of a word's elements and weights."""
        total = None
        for place, weight in enumerate(weights):
            left = word << tirx.const(32 - self.bits * (place + 1), "int32")
            if self.left == "uint8":
                left = left.astype("uint32") >> tirx.const(24, "uint32")
            else:
                left = left >> tirx.const(32 - self.bits, "int32")
            product = left.astype("int32") * weight.astype("int32")
            total = product if total is None else total + product
        return total

    def _registered(
        self, kind: str, left: tuple[int, ...], dtype: str, meaning: Callable[[Any, Any, Any], None]
    ) -> str:
        name = f"tvmq.cpu.{self.name}.{kind}"
        halves = self._half(left, dtype, meaning), self._half(left, dtype, self._call)
        s_tir.TensorIntrin.register(name, *halves, override=True)
        return name

    def _half(
        self, left: tuple[int, ...], dtype: str, body: Callable[[Any, Any, Any], None]
    ) -> tirx.PrimFunc:
        """One half of an intrinsic; ``body`` says how the sums are made."""
        lanes, depth = self.lanes, self.depth
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("dot")
                a, b, c = (T.arg(name, T.handle()) for name in "abc")
                A = T.match_buffer(a, left, dtype, offset_factor=1)
                B = T.match_buffer(b, (lanes, depth), self.right, offset_factor=1)
                C = T.match_buffer(c, (lanes,), "int32", offset_factor=1)
                with T.sblock("root"):
                    T.reads(C[0:lanes], A[0 : left[0]], B[0:lanes, 0:depth])
                    T.writes(C[0:lanes])
                    body(A, B, C)
            return builder.get()

    def _meaning(self, A: Any, B: Any, C: Any) -> None:
        """In plain TIR, of what all sums share."""
        with T.serial(0, self.lanes) as i, T.serial(0, self.depth) as k, T.sblock("update"):
            vi, vk = T.axis.remap("SR", [i, k])
            product = T.Cast("int32", A[vk]) * T.Cast("int32", B[vi, vk])
            T.buffer_store(C, C[vi] + product, [vi])

    def _meaning_joined(self, A: Any, B: Any, C: Any) -> None:
        """In plain TIR, of words."""
        with T.serial(0, self.lanes) as i, T.sblock("update"):
            vi = T.axis.remap("S", [i])
            weights = [B[vi, place] for place in range(self.depth)]
            T.buffer_store(C, C[vi] + self.products(A[vi], weights), [vi])

    def _call(self, A: Any, B: Any, C: Any) -> None:
        """By the instruction."""
        size = self.lanes * self.depth
        if A.dtype == "int32":
            words = A.vload([0], f"int32x{self.lanes}")
        else:
            element = A.vload([0], f"{self.left}x{self.depth}")
            word = T.reinterpret(element, dtype=f"int{self.bits * self.depth}")
            words = T.broadcast(word, self.lanes)
        left = T.reinterpret(words, dtype=f"{self.left}x{size}")
        right = B.vload([0, 0], f"{self.right}x{size}")
        sums = self.emit(self, C.vload([0], f"int32x{self.lanes}"), left, right)
        T.buffer_store(C, sums, [T.ramp(T.int32(0), 1, self.lanes)])


def accumulating(instruction: str) -> Emit:
    """An instruction that adds to the sums itself."""

    def emit(dot: DotProduct, sums: Vector, left: Vector, right: Vector) -> Vector:
        return _call(instruction, f"int32x{dot.lanes}", sums, left, right)

    return emit


def of_words(instruction: str) -> Emit:
    """An instruction that multiplies words and sums neighbours in 32 bits."""

    def emit(dot: DotProduct, sums: Vector, left: Vector, right: Vector) -> Vector:
        words = right if dot.right == "int16" else T.Cast(f"int16x{dot.lanes * dot.depth}", right)
        return sums + _call(instruction, f"int32x{dot.lanes}", left, words)

    return emit


def of_bytes(products: str, sums_of_words: str) -> Emit:
    """Two instructions: sums of two products of bytes as words, and of two words in 32 bits."""

    def emit(dot: DotProduct, sums: Vector, left: Vector, right: Vector) -> Vector:
        count = 2 * dot.lanes
        words = _call(products, f"int16x{count}", left, right)
        ones = T.broadcast(T.int16(1), count)
        return sums + _call(sums_of_words, f"int32x{dot.lanes}", words, ones)

    return emit


def neon_bytes(_: DotProduct, sums: Vector, left: Vector, right: Vector) -> Vector:
    """``smull`` and ``sadalp``: a product of two int8 always fits 16 bits, a sum of two doesn't."""
    products = _call("llvm.aarch64.neon.smull", "int16x8", left, right)
    return sums + _call("llvm.aarch64.neon.saddlp", "int32x4", products)


def _call(instruction: str, result: str, *operands: Vector) -> Vector:
    index = T.llvm_lookup_intrinsic_id(instruction)
    return T.call_llvm_pure_intrin(index, *operands, dtype=result)
