"""REQ as TIR: whole rows in vectors where codes are bytes rounded half up, else element by element."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812

from targets.npu import isa
from targets.npu.check import MAX_RECORD_SHIFT, MAX_RESIDUAL_SHIFT, MAX_SHIFT, RECORD_BYTES
from targets.npu.execute_base import (
    Expr,
    Machine,
    cast,
    eq,
    i64,
    load,
    otherwise,
    signed,
    spread,
    store,
    when,
)
from targets.npu.execute_vector import clamp, widened
from targets.npu.spec import NpuSpec

_RECORD = ("bias", "mult", "border", "right", "left")


def table_sizes(spec: NpuSpec) -> dict[str, int]:
    """Elements of the int64 tables: the records of one instruction, by field."""
    return dict.fromkeys(_RECORD, spec.array.cols)


def emit_requantize(machine: Machine, f: Any, trap: Any) -> None:
    """REQ: see ``simulator.Simulator.requantize``; ``trap()`` emits the trap."""
    bad = T.alloc_buffer((1,), "int64", scope="local")
    store(bad, i64(0), i64(0), 1)
    _read_records(machine, f, bad)
    cols = machine.spec.array.cols
    with T.If(load(bad, i64(0), "int64", 1) > 0):
        with T.Then():
            trap()
        with otherwise():
            plain = tirx.all(
                eq(f.rounding, isa.HALF_UP), eq(f.out_bits, 0), eq(f.nvalid, cols)
            )
            with T.If(plain):
                with T.Then(), T.If(eq(f.residual, 1)):
                    with T.Then():
                        _rows(machine, f, residual=True)
                    with otherwise():
                        _rows(machine, f, residual=False)
                with otherwise():
                    _elements(machine, f)


def _read_records(machine: Machine, f: Any, bad: Any) -> None:
    """Records into the tables; ``bad`` becomes positive if one is illegal."""
    tables = machine.tables
    with T.serial(i64(0), f.nvalid) as j:
        at = T.bind(machine.bases[3] + f.par_addr * 4 + j * RECORD_BYTES)
        words = [T.bind(cast("int64", machine.words_at(at + 4 * n, 1))) for n in range(3)]
        border = T.bind((words[1] >> 16) & 0xFFFF)
        dshift = T.bind(words[2] & 0xFF)
        left = T.bind((words[2] >> 8) & 0xFF)
        right = T.bind(f.shift + dshift)
        mult = tirx.Select(eq(f.multiply, 1), words[1] & 0xFFFF, i64(1))
        for name, value in zip(_RECORD, (words[0], mult, border, right, left), strict=True):
            store(tables[name], j, value, 1)
        levels = (i64(1) << (i64(8) >> f.out_bits)) - 1
        outside = border + levels > machine.spec.sram.par.bytes
        illegal = tirx.any(
            dshift > MAX_RECORD_SHIFT,
            left > MAX_RESIDUAL_SHIFT,
            right > MAX_SHIFT,
            tirx.all(eq(f.rounding, isa.BORDER), outside),
        )
        with when(illegal):
            store(bad, i64(0), i64(1), 1)


def _total(machine: Machine, f: Any, row: Expr, at: Expr, j: Any, lanes: int, residual: bool) -> Expr:
    """``t`` of the channels from ``j`` on; ``at`` is the residual row's address."""
    tables = machine.tables
    acc = cast("int64", machine.words_at(machine.sums_at(row) + j * 4, lanes), lanes)
    t = (acc + load(tables["bias"], j, "int64", lanes)) * load(tables["mult"], j, "int64", lanes)
    if residual:
        centre = spread(signed(f.res_zp, f.residual_unsigned), lanes)
        code = widened(machine, at + j, lanes, f.residual_unsigned) - centre
        t = t + ((code * spread(f.res_mult, lanes)) << load(tables["left"], j, "int64", lanes))
    return t


def _rows(machine: Machine, f: Any, *, residual: bool) -> None:
    lanes = machine.lanes
    zero, low, high = (T.bind(signed(x, f.out_unsigned)) for x in (f.zp, f.lo, f.hi))
    with T.serial(i64(0), f.m1) as i1, T.serial(i64(0), f.m0) as i0:
        row = T.bind(f.acc_row + i1 * f.m0 + i0)
        target = T.bind(f.dst_addr + i1 * f.ds_m1 + i0 * f.ds_m0)
        source = T.bind(f.res_addr + i1 * f.rs_m1 + i0 * f.rs_m0)
        for column in machine.chunks:
            j = i64(column)
            t = _total(machine, f, row, source, j, lanes, residual)
            right = load(machine.tables["right"], j, "int64", lanes)
            half = (spread(i64(1), lanes) << right) >> spread(i64(1), lanes)
            code = ((t + half) >> right) + spread(zero, lanes)
            out = cast("int8", clamp(code, low, high, lanes), lanes)
            store(machine.mem, target + column, out, lanes)


def _elements(machine: Machine, f: Any) -> None:
    """Any rounding, any width, any number of channels."""
    zero, low, high = (T.bind(signed(x, f.out_unsigned)) for x in (f.zp, f.lo, f.hi))
    width = T.bind(i64(8) >> f.out_bits)
    with T.serial(i64(0), f.m1) as i1, T.serial(i64(0), f.m0) as i0:
        row = T.bind(f.acc_row + i1 * f.m0 + i0)
        target = T.bind(f.dst_addr + i1 * f.ds_m1 + i0 * f.ds_m0)
        source = T.bind(f.res_addr + i1 * f.rs_m1 + i0 * f.rs_m0)
        with T.serial(i64(0), f.nvalid) as j:
            with_residual = _total(machine, f, row, source * f.residual, j, 1, residual=True)
            without = _total(machine, f, row, source, j, 1, residual=False)
            t = T.bind(tirx.Select(eq(f.residual, 1), with_residual, without))
            code = T.bind(_rounded(machine, f, t, j, zero, low) + zero)
            value = T.bind(clamp(code, low, high, 1) & ((i64(1) << width) - 1))
            at = T.bind(target + ((j * width) >> 3))
            bit = T.bind((j * width) & 7)
            old = cast("int64", machine.bytes_at(at, 1)) & ((i64(1) << bit) - 1)
            store(machine.mem, at, cast("int8", old | (value << bit)), 1)


def _rounded(machine: Machine, f: Any, t: Expr, j: Expr, zero: Expr, low: Expr) -> Expr:
    """``t`` over two to the power of the channel's shift, rounded as the instruction says."""
    s = T.bind(load(machine.tables["right"], j, "int64", 1))
    floor = T.bind(t >> s)
    half = T.bind((i64(1) << s) >> 1)
    some = T.bind(tirx.min(s, i64(1)))  # without a shift there is nothing to round
    negative = tirx.Select(t < 0, some, i64(0))
    levels = T.bind((i64(1) << (i64(8) >> f.out_bits)) - 2)
    level = tirx.min(tirx.max(floor + zero - low, i64(0)), levels)
    table = load(machine.tables["border"], j, "int64", 1)
    entry = T.bind(tirx.Select(eq(f.rounding, isa.BORDER), table, i64(0)))
    border = cast("int64", machine.bytes_at(machine.bases[3] + entry + level, 1)) & 0xFF
    fraction = ((t - (floor << s)) << 8) >> s
    up = tirx.Select(fraction >= border, i64(1), i64(0))
    modes = {
        isa.HALF_UP: (t + half) >> s,
        isa.HALF_AWAY: (t + half - negative) >> s,
        isa.HALF_EVEN: (t + half - some + (floor & some)) >> s,
        isa.BORDER: floor + up,
    }
    value = floor
    for mode, rounded in modes.items():
        value = tirx.Select(eq(f.rounding, mode), rounded, value)
    return value
