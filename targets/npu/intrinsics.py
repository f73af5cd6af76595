"""Tensor intrinsics: what one row of each compute instruction means, and the call it becomes.

An intrinsic is a pair. ``desc`` is the meaning in plain TIR: it compiles and runs on a CPU, and it
is the pattern that
``Schedule.tensorize`` looks for. ``impl`` is the call that takes its place; the code generator
folds the loops around
such calls into the hardware loops of one instruction (``loop_tree.py``).

    npu.gemm        acc[j] += (sum_r act[r] * wgt[r, j]) << fraction       R activations, an R x C
    weight tile
    npu.dwconv      acc[j] += (act[j] * wgt[j]) << fraction                one kernel tap of C
    channels
    npu.requantize  out[j] = clamp(half_up(t[j], shift) + zero)            C or fewer channels
    (arithmetic.py)
    npu.max         out = max(out, act)                                    one tap of one channel's
    window
    npu.add         out = clamp(half_up(a + b, shift) + zero)              one element
    npu.lut         out = table[byte of act]                               one element

Immediates such as a shift are constants of the pattern, so each combination is an intrinsic of its
own, registered
the first time it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, TypeAlias

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

ACT, WGT, ACC, PAR = "global.act", "global.wgt", "global.acc", "global.par"
RECORD_WORDS = 3
"""32-bit words of one channel's parameter record: bias; multiplier and border; shifts."""

Buffer: TypeAlias = Any  # tirx.Buffer and tvm.ir.Expr: TVM ships no types
Expr: TypeAlias = Any


@dataclass(frozen=True)
class RequantizeFields:
    """The immediates of REQ that the meaning depends on; see ``arithmetic.requantize``."""

    shift: int
    multiplier: bool
    zero_point: int
    low: int
    high: int
    dtype: str
    residual_dtype: str = ""
    residual_zero_point: int = 0
    residual_multiplier: int = 1

    def value(self, acc: Expr, record: tuple[Expr, Expr, Expr], residual: Expr | None) -> Expr:
        """One output code from one int32 sum, its record and the residual's code."""
        bias, scale, shifts = record
        t = tirx.Cast("int64", acc) + tirx.Cast("int64", bias)
        if self.multiplier:
            t = t * tirx.Cast("int64", scale & tirx.IntImm("int32", 0xFFFF))
        if residual is not None:
            centred = tirx.Cast("int64", residual) - _i64(self.residual_zero_point)
            left = tirx.Cast("int64", (shifts >> 8) & tirx.IntImm("int32", 0xFF))
            t = t + ((centred * _i64(self.residual_multiplier)) << left)
        right = _i64(self.shift) + tirx.Cast("int64", shifts & tirx.IntImm("int32", 0xFF))
        half = (_i64(1) << right) >> 1
        code = ((t + half) >> right) + _i64(self.zero_point)
        return tirx.Cast(self.dtype, tirx.max(tirx.min(code, _i64(self.high)), _i64(self.low)))


@dataclass(frozen=True)
class AddFields:
    """The immediates of VADD."""

    a_dtype: str
    a_zero_point: int
    a_multiplier: int
    a_shift: int
    b_dtype: str
    b_zero_point: int
    b_multiplier: int
    b_shift: int
    shift: int
    zero_point: int
    low: int
    high: int
    dtype: str

    def value(self, a: Expr, b: Expr) -> Expr:
        """One output code from the two codes."""
        left = (tirx.Cast("int64", a) - _i64(self.a_zero_point)) * _i64(
            self.a_multiplier << self.a_shift
        )
        right = (tirx.Cast("int64", b) - _i64(self.b_zero_point)) * _i64(
            self.b_multiplier << self.b_shift
        )
        half = (1 << self.shift) >> 1
        code = ((left + right + _i64(half)) >> _i64(self.shift)) + _i64(self.zero_point)
        return tirx.Cast(self.dtype, tirx.max(tirx.min(code, _i64(self.high)), _i64(self.low)))


def gemm(rows: int, cols: int, dtype: str, fraction: int) -> str:
    """Register a GEMM tile of ``rows`` inputs and ``cols`` output channels; return its name."""

    def meaning(act: Buffer, wgt: Buffer, acc: Buffer) -> None:
        with T.serial(0, rows) as r, T.serial(0, cols) as j, T.sblock("gemm"):
            vr, vj = T.axis.reduce((0, rows), r), T.axis.spatial((0, cols), j)
            T.buffer_store(acc, gemm_value(acc[vj], act[vr], wgt[vr * cols + vj], fraction), [vj])

    name = f"npu.gemm_{rows}x{cols}_{_short(dtype)}i8i32" + (f"_f{fraction}" if fraction else "")
    buffers = [(ACT, dtype, rows), (WGT, "int8", rows * cols), (ACC, "int32", cols)]
    immediates = (fraction, _immediate(dtype))
    return _register(name, "npu.gemm", buffers, meaning, updates=True, immediates=immediates)


def gemm_value(acc: Expr, act: Expr, weight: Expr, fraction: int) -> Expr:
    """The sum after one more product."""
    product = tirx.Cast("int32", act) * tirx.Cast("int32", weight)
    return acc + (product << fraction if fraction else product)


def depthwise(cols: int, dtype: str, fraction: int) -> str:
    """Register one kernel tap of ``cols`` channels; return its name."""

    def meaning(act: Buffer, wgt: Buffer, acc: Buffer) -> None:
        with T.serial(0, cols) as j, T.sblock("dwconv"):
            vj = T.axis.spatial((0, cols), j)
            T.buffer_store(acc, gemm_value(acc[vj], act[vj], wgt[vj], fraction), [vj])

    name = f"npu.dwconv_{cols}_{_short(dtype)}i8i32" + (f"_f{fraction}" if fraction else "")
    buffers = [(ACT, dtype, cols), (WGT, "int8", cols), (ACC, "int32", cols)]
    immediates = (fraction, _immediate(dtype))
    return _register(name, "npu.dwconv", buffers, meaning, updates=True, immediates=immediates)


def requantize(channels: int, fields: RequantizeFields) -> str:
    """Register the requantization of ``channels`` sums; return its name."""
    residual = bool(fields.residual_dtype)

    def meaning(*buffers: Buffer) -> None:
        acc, par, *rest = buffers
        with T.serial(0, channels) as j, T.sblock("requantize"):
            vj: Any = (
                T.axis.spatial((0, channels), j) if channels > 1 else 0
            )  # TVM drops axes of one
            record = tuple(par[vj * RECORD_WORDS + word] for word in range(RECORD_WORDS))
            value = fields.value(acc[vj], record, rest[0][vj] if residual else None)
            T.buffer_store(rest[-1], value, [vj])

    buffers = [(ACC, "int32", channels), (PAR, "int32", channels * RECORD_WORDS)]
    if residual:
        buffers.append((ACT, fields.residual_dtype, channels))
    buffers.append((ACT, fields.dtype, channels))
    immediates = (channels, *(_immediate(x) for x in astuple(fields)))
    name = "npu.requantize_" + "_".join(str(x) for x in (channels, *astuple(fields)))
    return _register(name, "npu.requantize", buffers, meaning, immediates=immediates)


def max_pool(dtype: str) -> str:
    """Register one tap of a maximum; return its name."""

    def meaning(act: Buffer, out: Buffer) -> None:
        with T.serial(0, 1), T.sblock("max"):
            T.buffer_store(out, tirx.max(out[0], act[0]), [0])

    name = f"npu.max_{_short(dtype)}"
    buffers = [(ACT, dtype, 1), (ACT, dtype, 1)]
    return _register(
        name, "npu.max", buffers, meaning, updates=True, immediates=(_immediate(dtype),)
    )


def add(fields: AddFields) -> str:
    """Register the sum of two codes; return its name."""

    def meaning(a: Buffer, b: Buffer, out: Buffer) -> None:
        with T.serial(0, 1), T.sblock("add"):
            T.buffer_store(out, fields.value(a[0], b[0]), [0])

    dtypes = (fields.a_dtype, fields.b_dtype, fields.dtype)
    name = "npu.add_" + "_".join(str(x) for x in astuple(fields))
    immediates = tuple(_immediate(x) for x in astuple(fields))
    return _register(name, "npu.add", [(ACT, d, 1) for d in dtypes], meaning, immediates=immediates)


def lut_call(act: Buffer, table: Buffer, out: Buffer, index: Expr) -> None:
    """Emit the look-up of one code; ``tensorize`` can't match an index that depends on data."""
    pointers = [
        act.access_ptr("r", offset=index),
        table.access_ptr("r"),
        out.access_ptr("w", offset=index),
    ]
    T.evaluate(tirx.call_extern("int32", "npu.lut", *pointers))


def lut_value(code: Expr, table: Buffer, out_dtype: str) -> Expr:
    """The table's entry for the byte of ``code``."""
    return tirx.Cast(out_dtype, table[tirx.Cast("int32", tirx.Cast("uint8", code))])


def _register(
    name: str,
    call: str,
    buffers: list[tuple[str, str, int]],
    meaning: Callable[..., None],
    *,
    updates: bool = False,
    immediates: tuple[int, ...] = (),
) -> str:
    """Register ``name`` once. ``buffers`` are (scope, dtype, elements), the written one last."""
    if TensorIntrin.get(name, allow_missing=True) is not None:
        return name

    def calls(*matched: Buffer) -> None:
        *reads, written = matched
        pointers = [b.access_ptr("r") for b in reads] + [
            written.access_ptr("rw" if updates else "w")
        ]
        T.evaluate(tirx.call_extern("int32", call, *pointers, *immediates))

    TensorIntrin.register(
        name, _half(buffers, meaning, updates=updates), _half(buffers, calls, updates=updates)
    )
    return name


def _half(
    buffers: list[tuple[str, str, int]], body: Callable[..., None], *, updates: bool
) -> tirx.PrimFunc:
    """One half of an intrinsic: matched buffers, what is read and written, ``body``."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("intrinsic")
            handles = [T.arg(f"p{i}", T.handle()) for i in range(len(buffers))]
            matched = [
                T.match_buffer(handle, (n,), dtype, offset_factor=1, scope=scope)
                for handle, (scope, dtype, n) in zip(handles, buffers, strict=True)
            ]
            with T.sblock("root"):
                *reads, written = [b[0:n] for b, (_, _, n) in zip(matched, buffers, strict=True)]
                T.reads(*([written, *reads] if updates else reads))
                T.writes(written)
                body(*matched)
        return builder.get()


def _i64(value: int) -> Expr:
    return tirx.IntImm("int64", value)


def _short(dtype: str) -> str:
    return {"int8": "i8", "uint8": "u8", "": "none"}[dtype]


def _immediate(value: object) -> int:
    """A field as an integer of the call: uint8 is 1, int8 is 0, no dtype is -1."""
    if isinstance(value, str):
        return {"int8": 0, "uint8": 1, "": -1}[value]
    return int(value)  # type: ignore[call-overload]
