"""REQ, VADD, VMUL, POOL and LUT in the compiled executor: sums to codes, and codes to codes."""

from __future__ import annotations

from types import SimpleNamespace

from tvm import tirx
from tvm.tirx.script import builder as T

from targets.arithmetic import MAX_RESIDUAL_SHIFT, MAX_SHIFT, MAX_SHIFT_SPREAD
from targets.npu.execute.memory import (
    Buffer,
    Expr,
    State,
    byte_value,
    chunks,
    i32,
    i64,
    little_endian,
    when,
)
from targets.npu.execute.traps import BAD_RECORD
from targets.npu.machine.legality import RECORD_BYTES, code_range, record_bytes
from targets.rounding import RoundingMode

_LANES = 16


def requantize(state: State, i: SimpleNamespace) -> None:
    """REQ: records first, so that a bad one traps before anything is written; then row by row."""
    low, high, zero = (T.bind(byte_value(x, i.out_unsigned)) for x in (i.lo, i.hi, i.zp))
    limits = SimpleNamespace(low=low, high=high, zero=zero)
    records = _zeroed_records(state.spec.array.cols)
    _read_records(state, i, records)
    with when(state.code == 0), T.serial(0, i.m1) as m1, T.serial(0, i.m0) as m0:
        _row(state, i, limits, records, m1, m0)


def _zeroed_records(columns: int) -> dict[str, Buffer]:
    """The channels' parameters and one row's numbers; channels from nvalid on are zero."""
    dtypes = dict.fromkeys(("bias", "mult", "shift", "half", "res_shl", "t", "code"), "int64")
    dtypes["borders"] = "int32"
    records = {n: T.sblock_alloc_buffer((columns,), dtype) for n, dtype in dtypes.items()}
    for buffer in records.values():
        with T.vectorized(0, columns) as c:
            T.buffer_store(buffer, tirx.IntImm(buffer.dtype, 0), [c])
    return records


def _read_records(state: State, i: SimpleNamespace, records: dict[str, Buffer]) -> None:
    first = T.bind(state.areas.par + i.par_addr * 4)
    behind = T.bind(i32(first + i.nvalid * RECORD_BYTES))
    with T.serial(0, i.nvalid) as c:
        start = T.bind(i32(first + c * record_bytes(i)))
        bias = T.bind(little_endian(state, start, 4))
        mult, zero = (T.bind(little_endian(state, start + n, 2)) for n in (4, 6))
        dshift, res_shl = (T.bind(little_endian(state, start + n, 1)) for n in (8, 9))
        last_zero = T.bind(little_endian(state, start + 10, 2))
        shift = T.bind(i.shift + dshift)
        illegal = [
            dshift > MAX_SHIFT_SPREAD,
            shift > MAX_SHIFT,
            res_shl > MAX_RESIDUAL_SHIFT,
            zero != 0,
            last_zero != 0,
        ]
        with when(tirx.any(*illegal)):
            state.stop(BAD_RECORD)
        half = (i64(1) << i64(shift)) >> i64(1)
        values = {
            "bias": i64(bias),
            "mult": tirx.Select(i.multiply == 1, i64(mult), i64(1)),
            "shift": i64(shift),
            "half": half,
            "res_shl": i64(res_shl),
            "borders": T.bind(tirx.Select(i.one_row == 1, behind, start + RECORD_BYTES)),
        }
        for name, value in values.items():
            T.buffer_store(records[name], value, [c])


def _row(
    state: State,
    i: SimpleNamespace,
    limits: SimpleNamespace,
    records: dict[str, Buffer],
    m1: Expr,
    m0: Expr,
) -> None:
    columns = state.spec.array.cols
    row = T.bind((i.acc_row + m1 * i.m0 + m0) * columns)
    t, code = records["t"], records["code"]
    with T.vectorized(0, columns) as c:
        total = (i64(state.acc[row + c]) + records["bias"][c]) * records["mult"][c]
        T.buffer_store(t, total, [c])
    with when(i.residual == 1):
        start = T.bind(i.res_addr + m1 * i.rs_m1 + m0 * i.rs_m0)
        mask = T.bind(tirx.Select(i.residual_unsigned == 1, i32(255), i32(-1)))
        zero = T.bind(byte_value(i.res_zp, i.residual_unsigned))
        with when(i.res_bits == 0), T.vectorized(0, columns) as c:
            centred = i64((i32(state.mem[start + c]) & mask) - zero) * i64(i.res_mult)
            T.buffer_store(t, t[c] + (centred << records["res_shl"][c]), [c])
        with when(i.res_bits != 0), T.serial(0, i.nvalid) as c:
            added = _packed_code(state, start, c, i.res_bits, i.residual_unsigned)
            centred = i64(added - zero) * i64(i.res_mult)
            T.buffer_store(t, t[c] + (centred << records["res_shl"][c]), [c])
    for mode in RoundingMode:
        with when(i.rounding == int(mode)):
            if mode is RoundingMode.BORDER:
                _round_border(state, i, limits, records)
            else:
                _round(mode, records, columns)
    with T.vectorized(0, columns) as c:
        value = code[c] + i64(limits.zero)
        clamped = tirx.max(tirx.min(value, i64(limits.high)), i64(limits.low))
        T.buffer_store(code, clamped, [c])
    _store_codes(state, i, code, i.dst_addr + m1 * i.ds_m1 + m0 * i.ds_m0)


def _round(mode: RoundingMode, records: dict[str, Buffer], columns: int) -> None:
    """``code = round(t / 2^shift)``, without branches: ``half`` is 0 where the shift is."""
    t, shift, half = records["t"], records["shift"], records["half"]
    with T.vectorized(0, columns) as c:
        zero = tirx.Select(half[c] == 0, i64(0), i64(1))
        if mode is RoundingMode.FLOOR:
            addend = i64(0)
        elif mode is RoundingMode.HALF_UP:
            addend = half[c]
        elif mode is RoundingMode.HALF_AWAY:
            addend = half[c] - zero * tirx.Select(t[c] < 0, i64(1), i64(0))
        else:
            addend = half[c] - zero + zero * ((t[c] >> shift[c]) & i64(1))
        T.buffer_store(records["code"], (t[c] + addend) >> shift[c], [c])


def _round_border(
    state: State, i: SimpleNamespace, limits: SimpleNamespace, records: dict[str, Buffer]
) -> None:
    with T.serial(0, i.nvalid) as c:
        t, shift = T.bind(records["t"][c]), T.bind(records["shift"][c])
        whole = T.bind(t >> shift)
        fraction = t & ((i64(1) << shift) - i64(1))
        down = fraction >> tirx.max(shift - i64(8), i64(0))
        fraction = tirx.Select(shift >= 8, down, fraction << tirx.max(i64(8) - shift, i64(0)))
        last = limits.high - limits.low - 1
        level = whole + i64(limits.zero - limits.low)
        index = i32(tirx.max(tirx.min(level, i64(last)), i64(0)))
        border = i32(state.mem[records["borders"][c] + index]) & 255
        up = tirx.Select(fraction >= i64(border), i64(1), i64(0))
        T.buffer_store(records["code"], whole + up, [c])


def _store_codes(state: State, i: SimpleNamespace, code: Buffer, start: Expr) -> None:
    """One row of codes: as bytes, or packed with element 0 in the low bits."""
    columns = state.spec.array.cols
    target = T.bind(start)
    with when(tirx.all(i.out_bits == 0, i.nvalid == columns)), T.vectorized(0, columns) as c:
        T.buffer_store(state.mem, tirx.Cast("int8", code[c]), [target + c])
    with when(tirx.all(i.out_bits == 0, i.nvalid != columns)), T.serial(0, i.nvalid) as c:
        T.buffer_store(state.mem, tirx.Cast("int8", code[c]), [target + c])
    with when(i.out_bits != 0), T.serial(0, i.nvalid) as c:
        _store_packed(state, target, c, i.out_bits, code[c])


def _packed_code(state: State, start: Expr, n: Expr, bits: Expr, unsigned: Expr) -> Expr:
    """Element ``n`` of packed codes; ``bits`` is the width's code, 1 or 2."""
    width = T.bind(i32(8) >> bits)
    place = n & ((i32(1) << bits) - 1)
    code = T.bind(
        (i32(state.mem[start + (n >> bits)]) >> (place * width)) & ((i32(1) << width) - 1)
    )
    return T.bind(code - ((code >> (width - 1)) << width) * (1 - unsigned))


def _store_packed(state: State, start: Expr, n: Expr, bits: Expr, code: Expr) -> None:
    """Write element ``n``, in ascending order: the first of a byte clears the others."""
    width = T.bind(i32(8) >> bits)
    at = T.bind(start + (n >> bits))
    place = n & ((i32(1) << bits) - 1)
    field = (i32(code) & ((i32(1) << width) - 1)) << (place * width)
    before = tirx.Select(place == 0, i32(0), i32(state.mem[at]))
    T.buffer_store(state.mem, tirx.Cast("int8", before | field), [at])


def add(state: State, i: SimpleNamespace) -> None:
    """VADD: two tensors on a common grid."""
    low, high, zero = (T.bind(i64(byte_value(x, i.out_unsigned))) for x in (i.lo, i.hi, i.zo))
    half = T.bind((i64(1) << i64(i.shift)) >> i64(1))
    sides = []
    for at, unsigned, zp, mult, left in (
        (i.a_addr, i.a_unsigned, i.za, i.ma, i.sa),
        (i.b_addr, i.b_unsigned, i.zb, i.mb, i.sb),
    ):
        mask = T.bind(tirx.Select(unsigned == 1, i32(255), i32(-1)))
        factor = T.bind(i64(mult) << i64(left))
        sides.append((at, unsigned, mask, T.bind(byte_value(zp, unsigned)), factor))

    def code(terms: list[Expr]) -> Expr:
        total = (terms[0] + terms[1] + half) >> i64(i.shift)
        return tirx.max(tirx.min(total + zero, high), low)

    def store(n: Expr) -> None:
        terms = [
            i64((i32(state.mem[at + n]) & mask) - zp) * factor for at, _, mask, zp, factor in sides
        ]
        T.buffer_store(state.mem, tirx.Cast("int8", code(terms)), [i.dst_addr + n])

    with when(i.elem_bits == 0):
        _vectors(i.len, store)
    with when(i.elem_bits != 0), T.serial(0, i.len) as n:
        terms = [
            i64(_packed_code(state, at, n, i.elem_bits, unsigned) - zp) * factor
            for at, unsigned, _, zp, factor in sides
        ]
        _store_packed(state, i.dst_addr, n, i.elem_bits, code(terms))


def multiply(state: State, i: SimpleNamespace) -> None:
    """VMUL: rows of codes times rows of codes, or each times one code."""
    low, high, zero = (T.bind(i64(byte_value(x, i.out_unsigned))) for x in (i.lo, i.hi, i.zo))
    half = T.bind((i64(1) << i64(i.shift)) >> i64(1))
    a_mask, b_mask = (
        T.bind(tirx.Select(unsigned == 1, i32(255), i32(-1)))
        for unsigned in (i.a_unsigned, i.b_unsigned)
    )
    a_zero, b_zero = (
        T.bind(byte_value(z, unsigned))
        for z, unsigned in ((i.za, i.a_unsigned), (i.zb, i.b_unsigned))
    )
    factor = T.bind(i64(i.mult) << i64(i.left))
    with T.serial(0, i.rows) as row:
        a, b = T.bind(i.a_addr + row * i.len), T.bind(i.b_addr + row * i.bs_row)
        target = T.bind(i.dst_addr + row * i.len)

        def store(n: Expr) -> None:
            left = (i32(state.mem[a + n]) & a_mask) - a_zero
            right = (i32(state.mem[b + n * (1 - i.b_one)]) & b_mask) - b_zero
            code = ((i64(left * right) * factor + half) >> i64(i.shift)) + zero
            clamped = tirx.max(tirx.min(code, high), low)
            T.buffer_store(state.mem, tirx.Cast("int8", clamped), [target + n])

        _vectors(i.len, store)


def _vectors(count: Expr, store: object) -> None:
    def body(begin: Expr, width: int) -> None:
        with T.vectorized(0, width) as lane:
            store(begin + lane)  # type: ignore[operator]

    chunks(count, _LANES, body)


def pool(state: State, i: SimpleNamespace) -> None:
    """POOL: maximum or scaled sum over windows; no padding."""
    mask = T.bind(tirx.Select(i.unsigned == 1, i32(255), i32(-1)))
    with T.serial(0, i.oy) as y, T.serial(0, i.ox) as x:
        source = T.bind(i.src_addr + y * i.stride * i.ss_y + x * i.stride * i.ss_x)
        target = T.bind(i.dst_addr + y * i.ds_y + x * i.ds_x)

        def window(begin: Expr, width: int) -> None:
            best = T.sblock_alloc_buffer((width,), "int32")
            total = T.sblock_alloc_buffer((width,), "int64")
            with T.vectorized(0, width) as c:
                T.buffer_store(best, -(1 << 30), [c])
            with T.vectorized(0, width) as c:
                T.buffer_store(total, i64(0), [c])
            with T.serial(0, i.kh) as ky, T.serial(0, i.kw) as kx:
                start = T.bind(source + begin + ky * i.ss_y + kx * i.ss_x)
                with T.vectorized(0, width) as c:
                    value = i32(state.mem[start + c]) & mask
                    T.buffer_store(best, tirx.max(best[c], value), [c])
                with T.vectorized(0, width) as c:
                    value = i32(state.mem[start + c]) & mask
                    T.buffer_store(total, total[c] + i64(value), [c])
            with T.vectorized(0, width) as c:
                code = tirx.Select(i.average == 1, _average(i, total[c]), i64(best[c]))
                T.buffer_store(state.mem, tirx.Cast("int8", code), [target + begin + c])

        with when(i.elem_bits == 0):
            chunks(i.c, _LANES, window)
        with when(i.elem_bits != 0), T.serial(0, i.c) as c:
            _packed_window(state, i, source, target, c)


def _packed_window(state: State, i: SimpleNamespace, source: Expr, target: Expr, c: Expr) -> None:
    """One packed channel of one window."""
    best = T.sblock_alloc_buffer((1,), "int32")
    total = T.sblock_alloc_buffer((1,), "int64")
    T.buffer_store(best, -(1 << 30), [0])
    T.buffer_store(total, i64(0), [0])
    with T.serial(0, i.kh) as ky, T.serial(0, i.kw) as kx:
        start = T.bind(source + ky * i.ss_y + kx * i.ss_x)
        code = _packed_code(state, start, c, i.elem_bits, i.unsigned)
        T.buffer_store(best, tirx.max(best[0], code), [0])
        T.buffer_store(total, total[0] + i64(code), [0])
    code = tirx.Select(i.average == 1, _average(i, total[0]), i64(best[0]))
    _store_packed(state, target, c, i.elem_bits, code)


def _average(i: SimpleNamespace, total: Expr) -> Expr:
    half = (i64(1) << i64(i.shift)) >> i64(1)
    code = ((total * i64(i.mult) + half) >> i64(i.shift)) + i64(byte_value(i.zp, i.unsigned))
    low, high = (i64(limit) for limit in code_range(i.elem_bits, i.unsigned))
    return tirx.max(tirx.min(code, high), low)


def lookup(state: State, i: SimpleNamespace) -> None:
    """LUT: every byte through a table."""
    with T.serial(0, i.len) as n:
        index = i32(state.mem[i.src_addr + n]) & 255
        value = state.mem[state.areas.par + i.lut_addr + index]
        T.buffer_store(state.mem, value, [i.dst_addr + n])
