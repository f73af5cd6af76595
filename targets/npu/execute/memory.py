"""What the compiled executor works on: memories, registers, and the bits of an instruction.

All scratchpads of bytes, four work areas and the arena lie in one buffer: a byte has one address.

    ACT | WGT | PAR | held tile | wide weights | weights in quads | staged activations | slack
    | arena

Vector loads may run over the end of an operand by less than a row of the array; the slack keeps
them inside. The arena is last, since its size is the program's and all others are the machine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

from tvm import tirx
from tvm.tirx.script import builder as T

from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec

Expr: TypeAlias = Any
Buffer: TypeAlias = Any

HALTED = -1
_CODE, _PC, _KNOWN, _HELD = range(4)
_LANES = 32
"""Bytes that a copy moves at once."""


@dataclass(frozen=True)
class Areas:
    """Where each area begins in the byte memory."""

    wgt: int
    par: int
    held: int
    wide: int
    quads: int
    stage: int
    arena: int

    @staticmethod
    def of(spec: NpuSpec, block: int) -> Areas:
        """Areas of a machine; ``block`` is how many pixels the sums of are made at once."""
        sram, tile = spec.sram, 4 * spec.array.rows * spec.array.cols
        taps = 31 * 31 * spec.array.cols
        sizes = (
            sram.act.bytes,
            sram.wgt.bytes,
            sram.par.bytes,
            tile,
            max(4 * sram.wgt.bytes, taps),
            4 * sram.wgt.bytes,
            max(4 * spec.array.rows * block, spec.array.cols),
        )
        starts = [0]
        for size in sizes:
            starts.append(-(-(starts[-1] + size) // 64) * 64)
        wgt, par, held, wide, quads, stage, end = starts[1:]
        return Areas(wgt, par, held, wide, quads, stage, arena=end + 64 + 4 * spec.array.cols)


@dataclass(frozen=True)
class State:
    """Buffers of one image's run.

    Attributes:
        spec: the machine.
        areas: layout of ``mem``.
        program: int32[n, 8].
        constants: int8[nc].
        inputs: int8[batch, ni].
        outputs: int8[batch, no].
        image: index in the batch.
        vnni: whether the target has 512-bit dot products of bytes.
        mem: int8, see ``Areas``.
        acc: int32, rows of C sums.
        rows: int32, offset of each pixel's activations.
        registers: trap code (0 running), program counter, whether the opcode was known, the held
            tile's widths.
        tokens: int32[16], by source * 4 + target.
    """

    spec: NpuSpec
    areas: Areas
    program: Buffer
    constants: Buffer
    inputs: Buffer
    outputs: Buffer
    image: Expr
    vnni: bool
    mem: Buffer
    acc: Buffer
    rows: Buffer
    registers: Buffer
    tokens: Buffer

    @property
    def code(self) -> Expr:
        """0 while running, HALTED, or why it trapped."""
        return self.registers[_CODE]

    @property
    def pc(self) -> Expr:
        """The current instruction."""
        return self.registers[_PC]

    @property
    def known(self) -> Expr:
        """1 once an opcode matched."""
        return self.registers[_KNOWN]

    @property
    def held(self) -> Expr:
        """0, or 1 + the widths for which the array holds a tile."""
        return self.registers[_HELD]

    def stop(self, code: int) -> None:
        """Halt or trap."""
        T.buffer_store(self.registers, code, [_CODE])

    def go_to(self, pc: Expr) -> None:
        """Set the program counter."""
        T.buffer_store(self.registers, pc, [_PC])

    def set_known(self, value: int) -> None:
        """Remember whether an opcode matched."""
        T.buffer_store(self.registers, value, [_KNOWN])

    def hold(self, widths: Expr) -> None:
        """Remember for which widths the array holds a tile."""
        T.buffer_store(self.registers, widths, [_HELD])


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """The statements inside run where the condition holds."""
    with T.If(condition), T.Then():
        yield


def i32(value: Expr) -> Expr:
    """As int32."""
    return tirx.IntImm("int32", value) if isinstance(value, int) else tirx.Cast("int32", value)


def i64(value: Expr) -> Expr:
    """As int64."""
    return tirx.IntImm("int64", value) if isinstance(value, int) else tirx.Cast("int64", value)


def unused_bits(kind: type[isa.Instruction], state: State, pc: Expr) -> Expr:
    """Not 0 where a bit that the instruction does not have is set."""
    used = 0xFF
    for _, first, width in isa.LAYOUTS[kind]:
        used |= ((1 << width) - 1) << first
    found: Expr = i32(0)
    for word in range(8):
        mask = ~(used >> (32 * word)) & 0xFFFFFFFF
        if mask:
            found = found | (state.program[pc, word] & i32(_as_signed(mask)))
    return found


def read_fields(kind: type[isa.Instruction], state: State, pc: Expr) -> SimpleNamespace:
    """The instruction's fields, each bound to a variable: int32, but int64 where 32 bits wide."""
    return SimpleNamespace(
        **{n: T.bind(_field(state, pc, first, width)) for n, first, width in isa.LAYOUTS[kind]}
    )


def widened(fields: SimpleNamespace) -> SimpleNamespace:
    """The same fields as int64, for the rules."""
    return SimpleNamespace(**{name: i64(value) for name, value in vars(fields).items()})


def _field(state: State, pc: Expr, first: int, width: int) -> Expr:
    word, low = divmod(first, 32)
    value = i64(state.program[pc, word]) & i64(0xFFFFFFFF)
    if low + width > 32:
        value = value | (i64(state.program[pc, word + 1]) << i64(32))
    value = (value >> i64(low)) & i64((1 << width) - 1)
    return value if width == 32 else i32(value)


def _as_signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def byte_value(byte: Expr, unsigned: Expr) -> Expr:
    """A byte field (0 to 255) read as uint8 or int8."""
    return byte - 256 * (byte >> 7) * (1 - unsigned)


def little_endian(state: State, start: Expr, count: int) -> Expr:
    """An int32 of up to four bytes, the lowest first."""
    value: Expr = i32(0)
    for n in range(count):
        value = value | ((i32(state.mem[start + n]) & 255) << (8 * n))
    return value


def chunks(count: Expr, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """Call ``body(begin, width)`` for full vectors of ``lanes``, then for single elements."""
    full = T.bind(tirx.truncdiv(count, i32(lanes)))
    with T.serial(0, full) as n:
        body(n * lanes, lanes)
    with T.serial(0, count - full * lanes) as n:
        body(full * lanes + n, 1)


def each(count: Expr, store: Callable[[Expr], None]) -> None:
    """Call ``store(element)`` for each element, in vectors."""

    def body(begin: Expr, width: int) -> None:
        if width == 1:
            store(begin)
            return
        with T.vectorized(0, width) as lane:
            store(begin + lane)

    chunks(count, _LANES, body)
