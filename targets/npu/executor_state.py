"""What the executor's units work on: memories, regions, and the fields of the instruction at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from tvm import tirx
from tvm.tirx.script import builder as T

from targets.npu import isa
from targets.npu.spec import NpuSpec

Expr: TypeAlias = Any  # TVM ships no types

_SLACK = 4096
"""Bytes behind a memory that a masked or zero-weighted lane may read."""


def i32(value: int) -> Expr:
    """A 32-bit constant."""
    return tirx.IntImm("int32", value)


def i64(value: int) -> Expr:
    """A 64-bit constant."""
    return tirx.IntImm("int64", value)


def wide(value: Expr) -> Expr:
    """As int64."""
    return tirx.Cast("int64", value)


def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """One of two values; both are evaluated."""
    return tirx.Select(condition, yes, no)


def unsigned(code: Expr) -> Expr:
    """A byte as 0 to 255."""
    return tirx.Cast("int32", tirx.Cast("uint8", code))


def code(byte: Expr, is_unsigned: Expr) -> Expr:
    """A byte as an operand, signed or not."""
    return select(is_unsigned != 0, unsigned(byte), tirx.Cast("int32", byte))


def byte_field(value: Expr, is_unsigned: Expr) -> Expr:
    """An 8-bit field as a number, signed or not."""
    signed = select(value >= 128, value - 256, value)
    return T.Bind(select(is_unsigned != 0, value, signed))


def field(program: Any, index: Expr, first: int, width: int) -> Expr:
    """Bits [first, first + width) of the instruction at ``index``; width below 32 or aligned."""
    word, bit = divmod(first, 32)
    if width == 32 and bit == 0:
        return program[index, word]
    low = min(width, 32 - bit)
    value = (program[index, word] >> bit) & i32((1 << low) - 1)
    if low < width:
        value = value | (
            (program[index, word + 1] & i32((1 << (width - low)) - 1)) << low
        )
    return value


class Fields:
    """The fields of one instruction as bound variables: ``fields.m0``."""

    def __init__(self, program: Any, index: Expr, kind: type[isa.Instruction]) -> None:
        self._program, self._index = program, index
        self._layout = {name: (first, width) for name, first, width in isa.LAYOUTS[kind]}
        self._bound: dict[str, Expr] = {}

    def __getattr__(self, name: str) -> Expr:
        if name not in self._bound:
            first, width = self._layout[name]
            self._bound[name] = T.Bind(field(self._program, self._index, first, width))
        return self._bound[name]


class Machine:
    """Memories of one image. ACT, WGT and PAR are bytes in one buffer, ACC holds int32."""

    def __init__(
        self, spec: NpuSpec, arena_bytes: int, constants: Any, inputs: Any, outputs: Any, image: Expr
    ) -> None:
        self.spec = spec
        self.rows, self.columns = spec.array.rows, spec.array.cols
        sram = spec.sram
        self.act = 0
        self.wgt = sram.act.bytes + _SLACK
        self.par = self.wgt + sram.wgt.bytes + _SLACK
        self.bytes = T.sblock_alloc_buffer((self.par + sram.par.bytes + _SLACK,), "int8")
        self.acc = T.sblock_alloc_buffer((sram.acc.bytes // 4 + _SLACK,), "int32")
        arena = T.sblock_alloc_buffer((max(arena_bytes, 1),), "int8")
        self.memory_bytes = (sram.act.bytes, sram.wgt.bytes, sram.acc.bytes, sram.par.bytes)
        self._regions = ((constants, ()), (arena, ()), (inputs, (image,)), (outputs, (image,)))
        self.region_bytes = tuple(buffer.shape[-1] for buffer, _ in self._regions)

    def start(self, memory: Expr) -> Expr:
        """Where a byte memory begins in ``bytes``."""
        rest = select(memory == 1, i32(self.wgt), i32(self.par))
        return T.Bind(select(memory == 0, i32(self.act), rest))

    def for_region(self, region: Expr, body: Callable[[Any, Callable[[Expr], list[Expr]]], None]) -> None:
        """Emit ``body(buffer, index)`` for whichever region is meant; ``index`` maps an offset."""
        for number, (buffer, prefix) in enumerate(self._regions):
            with T.If(region == number), T.Then():
                body(buffer, lambda offset, prefix=prefix: [*prefix, offset])  # type: ignore[misc]

    def word(self, at: Expr) -> Expr:
        """The little-endian int32 at byte ``at`` of ``bytes``."""
        return join_bytes(self.bytes[at + n] for n in range(4))


def join_bytes(parts: Iterable[Expr]) -> Expr:
    """Four bytes, lowest first, as int32."""
    value = None
    for n, part in enumerate(parts):
        shifted = unsigned(part) << (8 * n)
        value = shifted if value is None else value | shifted
    return value
