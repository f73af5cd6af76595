"""VADD, POOL and LUT as TIR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812

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
)

_WIDE, _NARROW = 16, 1


def widened(machine: Machine, at: Expr, lanes: int, unsigned: Expr) -> Expr:
    """Bytes as int64, signed or not."""
    mask = tirx.Select(eq(unsigned, 1), i64(0xFF), i64(-1))
    return cast("int64", machine.bytes_at(at, lanes), lanes) & spread(mask, lanes)


def clamp(value: Expr, low: Expr, high: Expr, lanes: int) -> Expr:
    """The nearest value from ``low`` to ``high``; ``high`` wins where they cross."""
    return tirx.min(tirx.max(value, spread(low, lanes)), spread(high, lanes))


def half_up(value: Expr, shift: Expr, lanes: int) -> Expr:
    """Divide by a power of two, ties towards plus infinity."""
    half = (i64(1) << shift) >> 1
    return (value + spread(half, lanes)) >> spread(shift, lanes)


def runs(length: Expr, body: Callable[[Expr, int], None]) -> None:
    """Call ``body(first, lanes)`` for vectors of elements, then for single ones."""
    whole = T.bind(length // _WIDE)
    with T.serial(i64(0), whole) as n:
        body(n * _WIDE, _WIDE)
    with T.serial(i64(0), length - whole * _WIDE) as n:
        body(whole * _WIDE + n, _NARROW)


def emit_add(machine: Machine, f: Any) -> None:
    """VADD: see ``isa.Add``."""
    za, zb = T.bind(signed(f.za, f.a_unsigned)), T.bind(signed(f.zb, f.b_unsigned))
    zo, low, high = (T.bind(signed(x, f.out_unsigned)) for x in (f.zo, f.lo, f.hi))

    def body(first: Expr, lanes: int) -> None:
        a = widened(machine, f.a_addr + first, lanes, f.a_unsigned) - spread(za, lanes)
        b = widened(machine, f.b_addr + first, lanes, f.b_unsigned) - spread(zb, lanes)
        total = a * spread(f.ma << f.sa, lanes) + b * spread(f.mb << f.sb, lanes)
        code = half_up(total, f.shift, lanes) + spread(zo, lanes)
        out = cast("int8", clamp(code, low, high, lanes), lanes)
        store(machine.mem, f.dst_addr + first, out, lanes)

    runs(f.len, body)


def emit_lut(machine: Machine, f: Any) -> None:
    """LUT: see ``isa.Lut``."""
    table = machine.bases[3] + f.lut_addr
    with T.serial(i64(0), f.len) as n:
        index = cast("int64", machine.bytes_at(f.src_addr + n, 1)) & 0xFF
        store(machine.mem, f.dst_addr + n, machine.bytes_at(table + index, 1), 1)


def emit_pool(machine: Machine, f: Any) -> None:
    """POOL: see ``isa.Pool``."""
    with T.If(eq(f.average, 1)):
        with T.Then():
            _windows(machine, f, _average)
        with otherwise():
            _windows(machine, f, _maximum)


def _windows(
    machine: Machine, f: Any, body: Callable[[Machine, Any, Expr, Expr, int], None]
) -> None:
    with T.serial(i64(0), f.oy) as y, T.serial(i64(0), f.ox) as x:
        source = T.bind(f.src_addr + y * f.stride * f.ss_y + x * f.stride * f.ss_x)
        target = T.bind(f.dst_addr + y * f.ds_y + x * f.ds_x)
        runs(f.c, lambda first, lanes: body(machine, f, source + first, target + first, lanes))


def _maximum(machine: Machine, f: Any, source: Expr, target: Expr, lanes: int) -> None:
    """One vector's maximum; the sign bit of unsigned codes is turned so that signed comparison serves both."""
    best = T.alloc_buffer((lanes,), "int8", scope="local")
    flip = T.bind(tirx.Select(eq(f.unsigned, 1), tirx.IntImm("int8", -128), tirx.IntImm("int8", 0)))
    store(best, i64(0), spread(tirx.IntImm("int8", -128), lanes), lanes)
    with T.serial(i64(0), f.kh) as ky, T.serial(i64(0), f.kw) as kx:
        code = machine.bytes_at(source + ky * f.ss_y + kx * f.ss_x, lanes) ^ spread(flip, lanes)
        store(best, i64(0), tirx.max(load(best, i64(0), "int8", lanes), code), lanes)
    store(machine.mem, target, load(best, i64(0), "int8", lanes) ^ spread(flip, lanes), lanes)


def _average(machine: Machine, f: Any, source: Expr, target: Expr, lanes: int) -> None:
    total = T.alloc_buffer((lanes,), "int64", scope="local")
    store(total, i64(0), spread(i64(0), lanes), lanes)
    zero = T.bind(signed(f.zp, f.unsigned))
    low = T.bind(f.unsigned * 128 - 128)
    with T.serial(i64(0), f.kh) as ky, T.serial(i64(0), f.kw) as kx:
        code = widened(machine, source + ky * f.ss_y + kx * f.ss_x, lanes, f.unsigned)
        old = load(total, i64(0), "int64", lanes)
        store(total, i64(0), old + code - spread(zero, lanes), lanes)
    scaled = load(total, i64(0), "int64", lanes) * spread(f.mult, lanes)
    code = half_up(scaled, f.shift, lanes) + spread(zero, lanes)
    out = cast("int8", clamp(code, low, low + 255, lanes), lanes)
    store(machine.mem, target, out, lanes)
