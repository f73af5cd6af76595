"""Each instruction of the executor; the readable definitions stand in ``simulator.py``.

Loops over columns are vectorized, weights of a tile are widened once, and everything else is left
to LLVM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from targets.npu import isa
from targets.npu.executor_state import (
    Expr,
    Fields,
    Machine,
    byte_field,
    code,
    i32,
    i64,
    join_bytes,
    select,
    unsigned,
    wide,
)

ACT, WGT, ACC, PAR = range(4)
RECORD_BYTES = 12
MAX_SHIFT, MAX_CHANNEL_SHIFT, MAX_LEFT_SHIFT = 47, 15, 31


def load(machine: Machine, f: Fields) -> None:
    """LD: rows of a box, with their border; into ACC as int32 without one."""
    fill_byte = T.Bind(tirx.Cast("int8", f.padval))
    width = T.Bind(f.pad_x0 + f.x_bytes + f.pad_x1)
    region, memory, fill = f.region, f.mem, f.fill
    far = f.dram_off, f.dram_zstride, f.dram_ystride
    near = f.spm_addr, f.spm_zstride, f.spm_ystride
    y, z, x, top, bottom, left, right = (
        *(f.y, f.z, f.x_bytes),
        *(f.pad_y0, f.pad_y1, f.pad_x0, f.pad_x1),
    )
    with T.If(memory == ACC):
        with T.Then(), T.serial(0, z) as p, T.serial(0, y) as r:
            to = T.Bind((near[0] + p * near[1] + r * near[2]) // 4)
            source = T.Bind(far[0] + p * far[1] + r * far[2])

            def copy_words(buffer: Any, index: Callable[[Expr], list[Expr]]) -> None:
                with T.serial(0, x // 4) as k:
                    word = join_bytes(buffer[tuple(index(source + k * 4 + n))] for n in range(4))
                    T.buffer_store(machine.acc, word, [to + k])

            machine.for_region(region, copy_words)
        with T.Else():
            start = machine.start(memory)
            with T.serial(0, z) as p, T.serial(0, top + y + bottom) as r:
                row = T.Bind(start + near[0] + p * near[1] + r * near[2])
                with T.If(tirx.any(fill != 0, r < top, r >= top + y)):
                    with T.Then():
                        _fill(machine, row, width, fill_byte)
                    with T.Else():
                        _fill(machine, row, left, fill_byte)
                        source = T.Bind(far[0] + p * far[1] + (r - top) * far[2])

                        def copy(buffer: Any, index: Callable[[Expr], list[Expr]]) -> None:
                            with T.serial(0, x) as k:
                                byte = buffer[tuple(index(source + k))]
                                T.buffer_store(machine.bytes, byte, [row + left + k])

                        machine.for_region(region, copy)
                        _fill(machine, row + left + x, right, fill_byte)


def _fill(machine: Machine, start: Expr, length: Expr, byte: Expr) -> None:
    with T.serial(0, length) as k:
        T.buffer_store(machine.bytes, byte, [start + k])


def store(machine: Machine, f: Fields) -> None:
    """ST: rows of a box."""
    region, memory, x = f.region, f.mem, f.x_bytes
    far = f.dram_off, f.dram_zstride, f.dram_ystride
    near = f.spm_addr, f.spm_zstride, f.spm_ystride
    start = machine.start(memory)
    with T.serial(0, f.z) as p, T.serial(0, f.y) as r:
        to = T.Bind(far[0] + p * far[1] + r * far[2])
        source = T.Bind(near[0] + p * near[1] + r * near[2])

        def copy(buffer: Any, index: Callable[[Expr], list[Expr]]) -> None:
            with T.If(memory == ACC):
                with T.Then(), T.serial(0, x) as k:
                    word = machine.acc[(source + k) // 4] >> ((source + k) % 4 * 8)
                    T.buffer_store(buffer, tirx.Cast("int8", word), index(to + k))
                with T.Else(), T.serial(0, x) as k:
                    T.buffer_store(buffer, machine.bytes[start + source + k], index(to + k))

        machine.for_region(region, copy)


def gemm(machine: Machine, f: Fields) -> None:
    """GEMM: for each tile widen its weights, then one row of sums per pixel."""
    rows, columns = machine.rows, machine.columns
    weights = T.sblock_alloc_buffer((rows * columns,), "int32")
    k0, k1, k2 = f.k0, f.k1, f.k2
    steps, base = (f.as_k0, f.as_k1, f.as_k2), (f.act_addr, f.wgt_addr)
    last_valid, is_unsigned, init = f.kvalid, f.act_unsigned, f.acc_init
    pixels = _Pixels(f)
    with T.serial(0, k2) as c, T.serial(0, k1) as b, T.serial(0, k0) as a:
        tile = T.Bind((c * k1 + b) * k0 + a)
        at = T.Bind(machine.wgt + base[1] + tile * (rows * columns))
        valid = T.Bind(select(a == k0 - 1, last_valid, i32(rows)))
        with T.serial(0, rows) as r, T.vectorized(0, columns) as j:
            weight = tirx.Cast("int32", machine.bytes[at + r * columns + j])
            weight = select(r < valid, weight, i32(0))
            T.buffer_store(weights, weight, [r * columns + j])
        fresh = T.Bind(tirx.Cast("int32", tirx.all(tile == 0, init != 0)))
        tile_at = T.Bind(base[0] + c * steps[2] + b * steps[1] + a * steps[0])

        def products(sums: Any, act: Expr, operand: Callable[[Expr], Expr]) -> None:
            with T.unroll(0, rows) as r, T.vectorized(0, columns) as j:
                product = operand(machine.bytes[act + r]) * weights[r * columns + j]
                T.buffer_store(sums, sums[j] + product, [j])

        _accumulate(machine, pixels, tile_at, fresh, is_unsigned, products)


def depthwise(machine: Machine, f: Fields) -> None:
    """DWC: one row of sums per pixel, a channel per column."""
    columns = machine.columns
    kh, kw, steps, weights_at = f.kh, f.kw, (f.as_ky, f.as_kx), f.wgt_addr

    def products(sums: Any, act: Expr, operand: Callable[[Expr], Expr]) -> None:
        with T.serial(0, kh) as ky, T.serial(0, kw) as kx:
            tap = T.Bind(act + ky * steps[0] + kx * steps[1])
            at = T.Bind(machine.wgt + weights_at + (ky * kw + kx) * columns)
            with T.vectorized(0, columns) as j:
                weight = tirx.Cast("int32", machine.bytes[at + j])
                product = operand(machine.bytes[tap + j]) * weight
                T.buffer_store(sums, sums[j] + product, [j])

    _accumulate(machine, _Pixels(f), f.act_addr, f.acc_init, f.act_unsigned, products)


class _Pixels:
    """The pixel loops of GEMM and DWC, bound outside of the loops over tiles."""

    def __init__(self, f: Fields) -> None:
        self.m0, self.m1 = f.m0, f.m1
        self.as_m0, self.as_m1 = f.as_m0, f.as_m1
        self.acc_row, self.frac = f.acc_row, f.frac


def _accumulate(
    machine: Machine,
    pixels: _Pixels,
    act: Expr,
    fresh: Expr,
    is_unsigned: Expr,
    products: Callable[[Any, Expr, Callable[[Expr], Expr]], None],
) -> None:
    """acc = (fresh ? 0 : acc) + factor(products), for each pixel."""
    columns = machine.columns
    for flag, operand in ((1, unsigned), (0, lambda byte: tirx.Cast("int32", byte))):
        with (
            T.If(is_unsigned == flag),
            T.Then(),
            T.serial(0, pixels.m1) as y,
            T.serial(0, pixels.m0) as x,
        ):
            at = T.Bind(machine.act + act + y * pixels.as_m1 + x * pixels.as_m0)
            row = T.Bind((pixels.acc_row + y * pixels.m0 + x) * columns)
            sums = T.sblock_alloc_buffer((columns,), "int32", scope="local")
            with T.vectorized(0, columns) as j:
                T.buffer_store(sums, i32(0), [j])
            products(sums, at, operand)
            with T.vectorized(0, columns) as j:
                before = select(fresh != 0, i32(0), machine.acc[row + j])
                T.buffer_store(machine.acc, before + (sums[j] << pixels.frac), [row + j])


class _Record:
    """The parameter records of a REQ, widened once: int64 per column."""

    def __init__(self, machine: Machine, f: Fields) -> None:
        columns = machine.columns
        names = ("bias", "multiplier", "half", "right", "left")
        arrays = [T.sblock_alloc_buffer((columns,), "int64") for _ in names]
        self.bias, self.multiplier, self.half, self.right, self.left = arrays
        first, multiply, shift, valid = f.par_addr, f.multiply, f.shift, f.nvalid
        with T.serial(0, columns) as j:
            at = T.Bind(machine.par + first * 4 + tirx.min(j, valid - 1) * RECORD_BYTES)
            scale, shifts = T.Bind(machine.word(at + 4)), T.Bind(machine.word(at + 8))
            right = T.Bind(wide(shift + (shifts & i32(0xFF))))
            values = (
                wide(machine.word(at)),
                wide(select(multiply != 0, scale & i32(0xFFFF), i32(1))),
                (i64(1) << right) >> i64(1),
                right,
                wide((shifts >> 8) & i32(0xFF)),
            )
            for array, value in zip(arrays, values, strict=True):
                T.buffer_store(array, value, [j])


def requantize(machine: Machine, f: Fields) -> None:
    """REQ: sums and records to codes, all columns at a time."""
    columns = machine.columns
    record = _Record(machine, f)
    low, high, zero = (byte_field(v, f.out_unsigned) for v in (f.lo, f.hi, f.zp))
    res_zero = byte_field(f.res_zp, f.residual_unsigned)
    res_unsigned, residual, res_multiplier = f.residual_unsigned, f.residual, f.res_mult
    near = f.dst_addr, f.ds_m1, f.ds_m0
    res = f.res_addr, f.rs_m1, f.rs_m0
    row, m0, valid = f.acc_row, f.m0, f.nvalid
    t = T.sblock_alloc_buffer((columns,), "int64", scope="local")
    codes = T.sblock_alloc_buffer((columns,), "int8", scope="local")
    with T.serial(0, f.m1) as y, T.serial(0, m0) as x:
        sums = T.Bind((row + y * m0 + x) * columns)
        with T.vectorized(0, columns) as j:
            sum_j = wide(machine.acc[sums + j]) + record.bias[j]
            T.buffer_store(t, sum_j * record.multiplier[j], [j])
        with T.If(residual != 0), T.Then():
            at = T.Bind(machine.act + res[0] + y * res[1] + x * res[2])
            with T.vectorized(0, columns) as j:
                centred = wide(code(machine.bytes[at + j], res_unsigned) - res_zero)
                added = (centred * wide(res_multiplier)) << record.left[j]
                T.buffer_store(t, t[j] + added, [j])
        with T.vectorized(0, columns) as j:
            rounded = ((t[j] + record.half[j]) >> record.right[j]) + wide(zero)
            clamped = tirx.max(tirx.min(rounded, wide(high)), wide(low))
            T.buffer_store(codes, tirx.Cast("int8", clamped), [j])
        to = T.Bind(machine.act + near[0] + y * near[1] + x * near[2])
        with T.If(valid == columns):
            with T.Then(), T.vectorized(0, columns) as j:
                T.buffer_store(machine.bytes, codes[j], [to + j])
            with T.Else(), T.serial(0, valid) as j:
                T.buffer_store(machine.bytes, codes[j], [to + j])


def add(machine: Machine, f: Fields) -> None:
    """VADD: two runs of codes."""
    a_unsigned, b_unsigned, a_at, b_at, to = (
        *(f.a_unsigned, f.b_unsigned),
        *(f.a_addr, f.b_addr, f.dst_addr),
    )
    a_zero, b_zero = byte_field(f.za, a_unsigned), byte_field(f.zb, b_unsigned)
    zero, low, high = (byte_field(v, f.out_unsigned) for v in (f.zo, f.lo, f.hi))
    factors = [T.Bind(wide(v)) for v in (f.ma, f.sa, f.mb, f.sb)]
    right = T.Bind(wide(f.shift))
    half = T.Bind((i64(1) << right) >> i64(1))
    with T.serial(0, f.len) as k:
        a = wide(code(machine.bytes[machine.act + a_at + k], a_unsigned) - a_zero)
        b = wide(code(machine.bytes[machine.act + b_at + k], b_unsigned) - b_zero)
        total = ((a * factors[0]) << factors[1]) + ((b * factors[2]) << factors[3])
        rounded = ((total + half) >> right) + wide(zero)
        clamped = tirx.max(tirx.min(rounded, wide(high)), wide(low))
        T.buffer_store(machine.bytes, tirx.Cast("int8", clamped), [machine.act + to + k])


def pool(machine: Machine, f: Fields) -> None:
    """POOL: maximum over windows, a run of channels at a time."""
    is_unsigned, channels, stride = f.unsigned, f.c, f.stride
    source, to = (f.src_addr, f.ss_y, f.ss_x), (f.dst_addr, f.ds_y, f.ds_x)
    kh, kw = f.kh, f.kw
    with T.serial(0, f.oy) as y, T.serial(0, f.ox) as x:
        best = T.Bind(machine.act + to[0] + y * to[1] + x * to[2])
        with T.serial(0, kh) as ky, T.serial(0, kw) as kx:
            row, column = y * stride + ky, x * stride + kx
            at = T.Bind(machine.act + source[0] + row * source[1] + column * source[2])
            first = T.Bind(ky + kx)
            with T.serial(0, channels) as k:
                new, old = machine.bytes[at + k], machine.bytes[best + k]
                larger = code(new, is_unsigned) > code(old, is_unsigned)
                value = select(tirx.any(first == 0, larger), new, old)
                T.buffer_store(machine.bytes, value, [best + k])


def lut(machine: Machine, f: Fields) -> None:
    """LUT: bytes through a table."""
    source, to, table = f.src_addr, f.dst_addr, f.lut_addr
    with T.serial(0, f.len) as k:
        index = unsigned(machine.bytes[machine.act + source + k])
        entry = machine.bytes[machine.par + table + index]
        T.buffer_store(machine.bytes, entry, [machine.act + to + k])


def legal(machine: Machine, kind: type[isa.Instruction], f: Fields) -> Expr:
    """Whether the instruction stays inside memories and regions and its shifts inside their ranges."""
    act, wgt, acc, par = machine.memory_bytes
    rows, columns = machine.rows, machine.columns
    if kind in (isa.Load, isa.Store):
        return _legal_transfer(machine, kind, f)
    if kind is isa.Gemm:
        steps = ((f.m1, f.as_m1), (f.m0, f.as_m0), (f.k2, f.as_k2), (f.k1, f.as_k1), (f.k0, f.as_k0))
        tiles = wide(f.k0) * wide(f.k1) * wide(f.k2) * i64(rows * columns)
        reads = [_reach(f.act_addr, steps, rows) <= act + rows, wide(f.wgt_addr) + tiles <= wgt]
        plain = [f.act_bits == 0, f.wgt_bits == 0, f.alpha_a + f.alpha_b + f.alpha_sign == 0]
        return tirx.all(*reads, *plain, _acc_reach(f, columns) <= acc)
    if kind is isa.Depthwise:
        steps = ((f.m1, f.as_m1), (f.m0, f.as_m0), (f.kh, f.as_ky), (f.kw, f.as_kx))
        taps = wide(f.kh) * wide(f.kw) * i64(columns)
        reads = [_reach(f.act_addr, steps, columns) <= act + columns, wide(f.wgt_addr) + taps <= wgt]
        plain = [f.act_bits == 0, f.wgt_bits == 0]
        return tirx.all(*reads, *plain, _acc_reach(f, columns) <= acc)
    if kind is isa.Requantize:
        return _legal_requantize(machine, f)
    if kind is isa.Add:
        ends = [wide(at) + wide(f.len) <= act for at in (f.a_addr, f.b_addr, f.dst_addr)]
        return tirx.all(*ends, f.shift <= MAX_SHIFT)
    if kind is isa.Pool:
        reads = ((f.oy, f.stride * f.ss_y), (f.ox, f.stride * f.ss_x), (f.kh, f.ss_y), (f.kw, f.ss_x))
        writes = ((f.oy, f.ds_y), (f.ox, f.ds_x))
        inside = [_reach(f.src_addr, reads, f.c) <= act, _reach(f.dst_addr, writes, f.c) <= act]
        return tirx.all(*inside, f.average == 0)
    ends = [wide(at) + wide(f.len) <= act for at in (f.src_addr, f.dst_addr)]
    return tirx.all(*ends, f.lut_addr + 256 <= par)


def _reach(start: Expr, steps: Sequence[tuple[Expr, Expr]], last: Expr) -> Expr:
    """Behind the last byte of a strided walk, as int64."""
    end = wide(start) + wide(last if not isinstance(last, int) else i32(last))
    for count, stride in steps:
        end = end + (wide(count) - i64(1)) * wide(stride)
    return end


def _acc_reach(f: Fields, columns: int) -> Expr:
    return (wide(f.acc_row) + wide(f.m0) * wide(f.m1)) * i64(4 * columns)


def _legal_transfer(machine: Machine, kind: type[isa.Instruction], f: Fields) -> Expr:
    sizes = machine.memory_bytes
    size = T.Bind(i64(sizes[PAR]))
    for memory in (ACT, WGT, ACC):
        size = select(f.mem == memory, i64(sizes[memory]), size)
    limit = wide(machine.region_bytes[0])
    for region in range(1, 4):
        limit = select(f.region == region, wide(machine.region_bytes[region]), limit)
    far = _reach(f.dram_off, ((f.z, f.dram_zstride), (f.y, f.dram_ystride)), f.x_bytes)
    if kind is isa.Store:
        near = _reach(f.spm_addr, ((f.z, f.spm_zstride), (f.y, f.spm_ystride)), f.x_bytes)
        return tirx.all(near <= size, far <= limit, f.region <= 3)
    rows = f.pad_y0 + f.y + f.pad_y1
    width = f.pad_x0 + f.x_bytes + f.pad_x1
    near = _reach(f.spm_addr, ((f.z, f.spm_zstride), (rows, f.spm_ystride)), width)
    return tirx.all(near <= size, tirx.any(f.fill != 0, far <= limit), f.region <= 3)


def _legal_requantize(machine: Machine, f: Fields) -> Expr:
    act, _, acc, par = machine.memory_bytes
    writes = _reach(f.dst_addr, ((f.m1, f.ds_m1), (f.m0, f.ds_m0)), f.nvalid) <= act
    reads = _reach(f.res_addr, ((f.m1, f.rs_m1), (f.m0, f.rs_m0)), f.nvalid) <= act
    records = f.par_addr * 4 + f.nvalid * RECORD_BYTES <= par
    plain = [f.rounding == isa.HALF_UP, f.out_bits == 0, f.nvalid >= 1, f.nvalid <= machine.columns]
    return tirx.all(
        *plain,
        writes,
        tirx.any(f.residual == 0, reads),
        records,
        _acc_reach(f, machine.columns) <= acc,
        f.shift <= MAX_SHIFT,
    )
