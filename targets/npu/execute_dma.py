"""LD and ST as TIR: rows of bytes between DRAM regions and memories."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812

from targets.npu.execute_base import (
    Buffer,
    Expr,
    Machine,
    eq,
    i64,
    otherwise,
    pick,
    spread,
    store,
    vector,
    when,
)

_BLOCKS = (64, 16, 1)
"""Bytes copied at once: most of a row, what is left of it, what is left of that."""


def emit_load(machine: Machine, f: Any) -> None:
    """LD: see ``isa.Load``."""
    base = T.bind(pick(f.mem, machine.bases) + f.spm_addr)
    value = T.bind(tirx.Cast("int8", f.padval))
    with T.If(eq(f.fill, 1)):
        with T.Then():
            _border(machine, f, base, value, f.pad_y0 + f.y + f.pad_y1, i64(0))
        with otherwise():
            _border(machine, f, base, value, f.pad_y0, i64(0))
            _border(machine, f, base, value, f.pad_y1, f.pad_y0 + f.y)
            _copy_in(machine, f, base, value)


def _border(machine: Machine, f: Any, base: Expr, value: Expr, rows: Expr, first: Expr) -> None:
    """Whole rows of padding in every plane."""
    width = f.pad_x0 + f.x_bytes + f.pad_x1
    with T.serial(i64(0), f.z) as p, T.serial(i64(0), rows) as r:
        fill_row(machine, base + p * f.spm_zstride + (first + r) * f.spm_ystride, value, width)


def _copy_in(machine: Machine, f: Any, base: Expr, value: Expr) -> None:
    with T.serial(i64(0), f.z) as p, T.serial(i64(0), f.y) as r:
        at = T.bind(base + p * f.spm_zstride + (f.pad_y0 + r) * f.spm_ystride)
        source = T.bind(f.dram_off + p * f.dram_zstride + r * f.dram_ystride)
        fill_row(machine, at, value, f.pad_x0)
        fill_row(machine, at + f.pad_x0 + f.x_bytes, value, f.pad_x1)
        for number, (buffer, lead) in enumerate(machine.regions):
            with when(eq(f.region, number)):
                _copy_row(machine.mem, (), at + f.pad_x0, buffer, lead, source, f.x_bytes)


def emit_store(machine: Machine, f: Any) -> None:
    """ST: see ``isa.Store``."""
    base = T.bind(pick(f.mem, machine.bases) + f.spm_addr)
    with T.serial(i64(0), f.z) as p, T.serial(i64(0), f.y) as r:
        at = T.bind(base + p * f.spm_zstride + r * f.spm_ystride)
        target = T.bind(f.dram_off + p * f.dram_zstride + r * f.dram_ystride)
        for number in (1, 3):
            buffer, lead = machine.regions[number]
            with when(eq(f.region, number)):
                _copy_row(buffer, lead, target, machine.mem, (), at, f.x_bytes)


def _copy_row(
    target: Buffer,
    target_lead: tuple[Expr, ...],
    to: Expr,
    source: Buffer,
    source_lead: tuple[Expr, ...],
    at: Expr,
    length: Expr,
) -> None:
    done: Expr = i64(0)
    for block in _BLOCKS:
        count = (length - done) // block
        with T.serial(i64(0), count) as n:
            here = done + n * block
            value = source.vload([*source_lead, at + here], dtype=vector("int8", block))
            index = to + here if block == 1 else tirx.Ramp(to + here, i64(1), block)
            T.buffer_store(target, value, [*target_lead, index])
        done = T.bind(done + count * block)


def fill_row(machine: Machine, at: Expr, value: Expr, length: Expr) -> None:
    """Write one byte ``length`` times."""
    done: Expr = i64(0)
    for block in _BLOCKS:
        count = (length - done) // block
        with T.serial(i64(0), count) as n:
            store(machine.mem, at + done + n * block, spread(value, block), block)
        done = T.bind(done + count * block)
