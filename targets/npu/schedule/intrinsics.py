"""Tensor intrinsics: what one row of each compute instruction means, and the call it becomes.

An intrinsic is a pair. ``desc`` is the meaning in plain TIR: it compiles and runs on a CPU, and it
is the pattern that ``Schedule.tensorize`` looks for. ``impl`` is the call that takes its place; the
code generator folds the loops around such calls into the hardware loops of one instruction.

    npu.gemm        acc[j] += (sum_r act[r] * wgt[r, j]) << fraction    a tile of lanes x columns,
                    the sum once more shifted by another number and added or subtracted
    npu.dwconv      acc[j] += (act[j] * wgt[j]) << fraction             one kernel tap of C channels
    npu.requantize  out[j] = clamp(round(t[j], shift) + zero)           C or fewer channels
    npu.max         out = max(out, act)                                 one tap of one byte's codes
    npu.add         out = clamp(half_up(a + b, shift) + zero)           one byte's codes
    npu.multiply    out = clamp(half_up(a * b, shift) + zero)           one code
    npu.lut         out = table[byte of act]                            one byte
    npu.softmax     out = softmax of act, requantized                   one row
    npu.norm        out = layer norm of act, requantized                one row

Elements of 4 or 2 bits are packed in bytes, the first in the low bits. Immediates such as a shift
are constants of the pattern, so each combination is an intrinsic of its own, registered the first
time it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import astuple
from dataclasses import fields as dataclass_fields
from typing import Any, TypeAlias

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from targets.npu.schedule.meanings import (
    AddFields,
    MaxFields,
    MultiplyFields,
    ProductFields,
    RequantizeFields,
    RequantizeRow,
    max_byte,
    packed_byte,
)
from targets.npu.schedule.row_meanings import NormFields, RowFields, SoftmaxFields
from targets.rounding import RoundingMode

ACT, WGT, ACC, PAR = "global.act", "global.wgt", "global.acc", "global.par"

FIELDS: dict[str, type] = {
    "npu.gemm": ProductFields,
    "npu.dwconv": ProductFields,
    "npu.requantize": RequantizeRow,
    "npu.max": MaxFields,
    "npu.add": AddFields,
    "npu.multiply": MultiplyFields,
    "npu.softmax": SoftmaxFields,
    "npu.norm": NormFields,
}
"""Intrinsic -> the dataclass whose fields, in order, are the immediates of its call."""
_DTYPES = ("int8", "uint8", "")
"""Dtypes by their immediate; "" is that of a residual that there isn't."""

Buffer: TypeAlias = Any  # tirx.Buffer and tvm.ir.Expr: TVM ships no types
Expr: TypeAlias = Any


def product(fields: ProductFields) -> str:
    """Register a GEMM tile, or one kernel tap of DWC; return its name."""
    call = "npu.gemm" if fields.lanes else "npu.dwconv"
    lanes, columns = fields.used
    before_the_last_lane = max(0, lanes - 1) * fields.columns

    def meaning(act: Buffer, wgt: Buffer, acc: Buffer) -> None:
        reduction = fields.reduction_loops
        with ExitStack() as stack:
            loops = [stack.enter_context(T.serial(0, n)) for n in fields.loops()]
            stack.enter_context(T.sblock(call[4:]))
            axes = [
                (T.axis.reduce if place < reduction else T.axis.spatial)((0, n), loop)
                for place, (n, loop) in enumerate(zip(fields.loops(), loops, strict=True))
            ]
            column, a, ae, w, we = fields.offsets(axes)
            T.buffer_store(acc, fields.value(acc[column], act[a], ae, wgt[w], we), [column])

    buffers = [
        (ACT, fields.dtype, (lanes or columns) * fields.act_bits // 8),
        (WGT, "int8", (before_the_last_lane + columns) * fields.wgt_bits // 8),
        (ACC, "int32", columns),
    ]
    return _register(call, fields, buffers, meaning, updates=True)


def requantize(channels: int, fields: RequantizeFields) -> str:
    """Register the requantization of ``channels`` sums; return its name.

    All parameters count as read by each channel: TVM would take the hull of its record and of a row
    of borders behind the last one, whose extent depends on the channel.
    """
    residual = bool(fields.residual_dtype)
    per_byte, words = 8 // fields.bits, fields.parameter_words(channels)

    def meaning(*buffers: Buffer) -> None:
        acc, par, *rest = buffers
        with T.serial(0, channels // per_byte) as n, T.sblock("requantize"):
            # TVM drops axes of one.
            at: Any = T.axis.spatial((0, channels // per_byte), n) if channels > per_byte else 0
            *residuals, out = (buffer[at : at + 1] for buffer in rest)
            T.reads(acc[at * per_byte : at * per_byte + per_byte], par[0:words], *residuals)
            T.writes(out)
            codes = []
            for place in range(per_byte):
                channel = at * per_byte + place
                record = [par[word] for word in fields.word_places(channel, channels)]
                added = rest[0][at] if residual else None
                codes.append(fields.value(acc[channel], record, added, place))
            T.buffer_store(rest[-1], packed_byte(codes, fields.bits, fields.dtype), [at])

    buffers = [(ACC, "int32", channels), (PAR, "int32", words)]
    if residual:
        buffers.append((ACT, fields.residual_dtype, channels // per_byte))
    buffers.append((ACT, fields.dtype, channels // per_byte))
    row = RequantizeRow(**vars(fields), channels=channels)
    return _register("npu.requantize", row, buffers, meaning)


def max_pool(dtype: str, bits: int) -> str:
    """Register one tap of a maximum over the codes of one byte; return its name."""

    def meaning(act: Buffer, out: Buffer) -> None:
        with T.serial(0, 1), T.sblock("max"):
            T.buffer_store(out, max_byte(out[0], act[0], dtype, bits), [0])

    buffers = [(ACT, dtype, 1), (ACT, dtype, 1)]
    return _register("npu.max", MaxFields(dtype, bits), buffers, meaning, updates=True)


def add(fields: AddFields) -> str:
    """Register the sum of two codes; return its name."""

    def meaning(a: Buffer, b: Buffer, out: Buffer) -> None:
        with T.serial(0, 1), T.sblock("add"):
            T.buffer_store(out, fields.byte(a[0], b[0]), [0])

    dtypes = (fields.a_dtype, fields.b_dtype, fields.dtype)
    return _register("npu.add", fields, [(ACT, dtype, 1) for dtype in dtypes], meaning)


def multiply(fields: MultiplyFields) -> str:
    """Register the product of two codes; return its name."""

    def meaning(a: Buffer, b: Buffer, out: Buffer) -> None:
        with T.serial(0, 1), T.sblock("multiply"):
            T.buffer_store(out, fields.code(a[0], b[0]), [0])

    dtypes = (fields.a_dtype, fields.b_dtype, fields.dtype)
    return _register("npu.multiply", fields, [(ACT, dtype, 1) for dtype in dtypes], meaning)


def lut_call(act: Buffer, table: Buffer, out: Buffer, index: Expr) -> None:
    """Emit the look-up of one code; ``tensorize`` can't match an index that depends on data."""
    pointers = [
        act.access_ptr("r", offset=index),
        table.access_ptr("r"),
        out.access_ptr("w", offset=index),
    ]
    T.evaluate(tirx.call_extern("int32", "npu.lut", *pointers))


def row_call(
    call: str, act: Buffer, source: Expr, par: Buffer, out: Buffer, target: Expr, fields: RowFields
) -> None:
    """Emit the operation on one row, from and to these bytes; no pattern has several passes."""
    pointers = [
        act.access_ptr("r", offset=source),
        par.access_ptr("r"),
        out.access_ptr("w", offset=target),
    ]
    T.evaluate(tirx.call_extern("int32", call, *pointers, *immediates(fields)))


def lut_value(code: Expr, table: Buffer, out_dtype: str) -> Expr:
    """The table's entry for the byte of ``code``."""
    return tirx.Cast(out_dtype, table[tirx.Cast("int32", tirx.Cast("uint8", code))])


def immediates(fields: Any) -> tuple[int, ...]:
    """The integers of a call, from its fields."""
    return tuple(_DTYPES.index(x) if isinstance(x, str) else int(x) for x in astuple(fields))


def read_fields(call: str, numbers: Sequence[int]) -> Any:
    """The fields of a call, from its integers: reverses ``immediates``; None if it has none."""
    if call not in FIELDS:
        return None
    read: dict[str, Callable[[int], Any]] = {
        "str": _DTYPES.__getitem__,
        "bool": bool,
        "int": int,
        "RoundingMode": RoundingMode,
    }
    declared = dataclass_fields(FIELDS[call])
    values = {f.name: read[str(f.type)](n) for f, n in zip(declared, numbers, strict=True)}
    return FIELDS[call](**values)


def _register(
    call: str,
    fields: Any,
    buffers: list[tuple[str, str, int]],
    meaning: Callable[..., None],
    *,
    updates: bool = False,
) -> str:
    """Register the intrinsic of these fields once and return its name.

    ``buffers`` are (scope, dtype, elements), the written one last.
    """
    name = "_".join(str(x) for x in (call, *astuple(fields)))
    if TensorIntrin.get(name, allow_missing=True) is not None:
        return name

    def calls(*matched: Buffer) -> None:
        *reads, written = matched
        pointers = [b.access_ptr("r") for b in reads] + [
            written.access_ptr("rw" if updates else "w")
        ]
        T.evaluate(tirx.call_extern("int32", call, *pointers, *immediates(fields)))

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
