"""What the parts of the executor share: the image's memories as one byte array, vectors in it, and field decoding.

Everything is emitted through TVM's IR builder; a Python function here stands for the TIR that it emits. All scalars
are int64: no address or extent that the fields can spell overflows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import tvm
from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812

from targets.npu import isa
from targets.npu.spec import NpuSpec

Expr: TypeAlias = tvm.ir.Expr
Buffer: TypeAlias = tirx.Buffer
SLACK = 1024
"""Bytes behind the memories: a vector may be read where only its first elements count."""


def i64(value: int) -> Expr:
    """A constant."""
    return tirx.IntImm("int64", value)


def i32(value: int) -> Expr:
    """A constant."""
    return tirx.IntImm("int32", value)


def vector(dtype: str, lanes: int) -> str:
    """The name of a vector type, or of the scalar."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def cast(dtype: str, value: Expr, lanes: int = 1) -> Expr:
    """A conversion of each element."""
    return tirx.Cast(vector(dtype, lanes), value)


def spread(value: Expr, lanes: int) -> Expr:
    """A scalar in every element."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def load(buffer: Buffer, at: Expr, dtype: str, lanes: int) -> Expr:
    """Consecutive elements of a buffer of ``dtype``."""
    return buffer.vload([at], dtype=vector(dtype, lanes))


def store(buffer: Buffer, at: Expr, value: Expr, lanes: int) -> None:
    """Write consecutive elements."""
    T.buffer_store(buffer, value, [at if lanes == 1 else tirx.Ramp(at, i64(1), lanes)])


def pick(index: Expr, values: Sequence[Any]) -> Expr:
    """Element ``index``, by selection."""
    chosen = as_i64(values[-1])
    for n in range(len(values) - 2, -1, -1):
        chosen = tirx.Select(eq(index, n), as_i64(values[n]), chosen)
    return chosen


def eq(a: Expr, b: Any) -> Expr:
    """Whether two int64 are equal."""
    return tirx.EQ(a, as_i64(b))


def as_i64(value: Any) -> Expr:
    """An integer or expression as int64."""
    return i64(value) if isinstance(value, int) else tirx.Cast("int64", value)


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """Statements under a condition."""
    with T.If(condition), T.Then():
        yield


@contextmanager
def otherwise() -> Iterator[None]:
    """The other branch; stands inside ``T.If``."""
    with T.Else():
        yield


def signed(byte: Any, unsigned: Any) -> Any:
    """A byte field read as signed unless ``unsigned``; serves Python integers too."""
    return byte - (((byte >> 7) & (1 - unsigned)) << 8)


@dataclass(frozen=True)
class Machine:
    """One image's machine while its code is being emitted.

    Attributes:
        spec: the description.
        mem: ACT, WGT, ACC, PAR and the scratch of the executor itself, one behind the other, int8.
        regions: constants, arena, inputs, outputs as (buffer, leading indices).
        region_bytes: their sizes.
        tables: int64 scratch buffers by name.
        state: int64 [program counter, running, status, ...].
        vnni: whether the host has 512-bit dot products of bytes.
    """

    spec: NpuSpec
    mem: Buffer
    regions: tuple[tuple[Buffer, tuple[Expr, ...]], ...]
    region_bytes: tuple[Any, ...]
    tables: dict[str, Buffer]
    state: Buffer
    vnni: bool

    @property
    def bases(self) -> tuple[int, int, int, int]:
        """Where ACT, WGT, ACC and PAR begin in ``mem``."""
        return bases(self.spec)

    @property
    def lanes(self) -> int:
        """Columns that one vector holds."""
        return math.gcd(self.spec.array.cols, 16)

    @property
    def chunks(self) -> range:
        """First column of each vector of a row."""
        return range(0, self.spec.array.cols, self.lanes)

    def bytes_at(self, at: Expr, lanes: int) -> Expr:
        """Consecutive bytes as int8."""
        return load(self.mem, at, "int8", lanes)

    def words_at(self, at: Expr, lanes: int) -> Expr:
        """Consecutive little-endian words as int32."""
        return tirx.reinterpret(vector("int32", lanes), load(self.mem, at, "int8", 4 * lanes))

    def put_words(self, at: Expr, value: Expr, lanes: int) -> None:
        """Write consecutive int32."""
        store(self.mem, at, tirx.reinterpret(vector("int8", 4 * lanes), value), 4 * lanes)

    def sums_at(self, row: Expr, column: int = 0) -> Expr:
        """The byte in ``mem`` where an accumulator begins."""
        return self.bases[2] + (row * self.spec.array.cols + column) * 4


def bases(spec: NpuSpec) -> tuple[int, int, int, int]:
    """Where ACT, WGT, ACC and PAR begin."""
    act, wgt, acc = spec.sram.act.bytes, spec.sram.wgt.bytes, spec.sram.acc.bytes
    return 0, act, act + wgt, act + wgt + acc


def memory_bytes(spec: NpuSpec) -> int:
    """Bytes of the four memories, and slack."""
    return bases(spec)[3] + spec.sram.par.bytes + SLACK


def decode_fields(kind: type[isa.Instruction], words: Sequence[Expr]) -> SimpleNamespace:
    """Bind every field of an instruction; ``words`` are its eight 32-bit words, zero-extended to int64."""
    values = {}
    for name, first, width in isa.LAYOUTS[kind]:
        values[name] = T.bind(_field(words, first, width))
    return SimpleNamespace(**values)


def _field(words: Sequence[Expr], first: int, width: int) -> Expr:
    index, shift = divmod(first, 32)
    value = words[index] >> i64(shift)
    if shift + width > 32:  # a field has 32 bits at most: it lies in two words
        value = value | (words[index + 1] << i64(32 - shift))
    return value & i64((1 << width) - 1)


def unused_bits(kind: type[isa.Instruction], words: Sequence[Expr]) -> Expr:
    """Nonzero if a bit is set that no field owns."""
    used = 0xFF
    for _, first, width in isa.LAYOUTS[kind]:
        used |= ((1 << width) - 1) << first
    stray: Expr = i64(0)
    for index, word in enumerate(words):
        unused = ~(used >> (32 * index)) & 0xFFFFFFFF
        if unused:
            stray = stray | (word & i64(unused))
    return stray
