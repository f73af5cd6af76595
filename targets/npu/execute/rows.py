"""SOFTMAX and NORM in the compiled executor: passes over each row of bytes.

Parameters are widened first, so that illegal ones trap before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from tvm import tirx
from tvm.tirx.script import builder as T

from targets.npu.execute.memory import (
    Expr,
    State,
    byte_value,
    each,
    i32,
    i64,
    little_endian,
    when,
)
from targets.npu.execute.traps import BAD_ROWS
from targets.npu.machine.legality import EPSILON_BYTES, SCALE_BYTES, norm_part
from targets.rows import (
    DIVISOR_BITS,
    EXPONENTIAL_BITS,
    LARGEST_SQUARE,
    LARGEST_VARIANCE,
    RECIPROCAL_BITS,
    ROOT_BITS,
)


def softmax(state: State, i: SimpleNamespace) -> None:
    """SOFTMAX: the largest code, the sum of exponentials, then each one's share of it."""
    table = T.sblock_alloc_buffer((256,), "int32")
    start = T.bind(state.areas.par + i.par_addr * 4)
    with T.serial(0, 256) as n:
        T.buffer_store(table, little_endian(state, start + 2 * n, 2), [n])
    with when(table[0] < 1 << EXPONENTIAL_BITS):
        state.stop(BAD_ROWS)

    def row(source: Expr, mask: Expr) -> Callable[[Expr], Expr]:
        largest = T.sblock_alloc_buffer((1,), "int32")
        total = T.sblock_alloc_buffer((1,), "int32")
        T.buffer_store(largest, -256, [0])
        with T.serial(0, i.len) as n:
            T.buffer_store(largest, tirx.max(largest[0], _code(state, source + n, mask)), [0])
        top = T.bind(largest[0])
        T.buffer_store(total, 0, [0])
        with T.serial(0, i.len) as n:
            T.buffer_store(total, total[0] + table[top - _code(state, source + n, mask)], [0])
        bits = T.bind(_bits(total[0]))
        reciprocal = T.bind(_reciprocal(total[0], bits))
        shift = T.bind(_places(bits - EXPONENTIAL_BITS))

        def share(n: Expr) -> Expr:
            count = i64(table[top - _code(state, source + n, mask)])
            return (count * reciprocal) >> shift

        return share

    _each_row(state, i, i.len, row)


def norm(state: State, i: SimpleNamespace) -> None:
    """NORM: sums of codes and of squares, their root, then each code's distance by it."""
    longest = max(1, (state.spec.sram.par.bytes - EPSILON_BYTES) // SCALE_BYTES)
    gain, bias = (T.sblock_alloc_buffer((longest,), "int32") for _ in range(2))
    start = T.bind(state.areas.par + i.par_addr * 4)
    low = i64(little_endian(state, start, 4)) & i64(0xFFFFFFFF)
    high = i64(little_endian(state, start + 4, 3) & 0xFFFFFF)
    epsilon = T.bind(low | (high << i64(32)))
    count = T.bind(i64(i.len))
    whole = i64(1 << ROOT_BITS)
    largest = tirx.Select(i.whole == 1, i64(LARGEST_SQUARE), i64(LARGEST_VARIANCE))
    variance = T.bind(count * count * largest)
    centred = T.bind(i64(1 - i.whole))
    z = little_endian(state, start + EPSILON_BYTES - 1, 1) & 0xFF
    zero = T.bind(byte_value(z, i.in_unsigned))
    least = i64(1) << _places(2 * tirx.max(i32(0), i.lift + i.fraction - RECIPROCAL_BITS))
    bad = [epsilon < least, epsilon >= whole, variance >= whole >> _places(2 * i.lift)]
    # Where the shift overflows, the variance alone is too large already.
    bad.append((variance << _places(2 * i.lift)) + epsilon >= whole)
    with when(tirx.any(*bad)):
        state.stop(BAD_ROWS)
    summands = T.bind(start + EPSILON_BYTES)
    size = T.bind(norm_part(i))
    first = T.bind(i.part * size)
    factors = T.bind(summands + 4 * size)
    with T.serial(0, size) as n:
        T.buffer_store(bias, little_endian(state, summands + 4 * n, 4), [n])
        factor = tirx.Cast("int16", little_endian(state, factors + 2 * n, 2))
        T.buffer_store(gain, i32(factor), [n])

    def row(source: Expr, mask: Expr) -> Callable[[Expr], Expr]:
        sums, squares = (T.sblock_alloc_buffer((1,), kind) for kind in ("int32", "int64"))
        T.buffer_store(sums, 0, [0])
        T.buffer_store(squares, i64(0), [0])
        with T.serial(0, i.len) as n:
            code = T.bind(_code(state, source + n, mask) - zero)
            T.buffer_store(sums, sums[0] + code, [0])
            T.buffer_store(squares, squares[0] + i64(code * code), [0])
        total = T.bind(i64(sums[0]) * centred)
        variance = count * squares[0] - total * total
        square = tirx.Cast("float64", (variance << _places(2 * i.lift)) + epsilon)
        root = T.bind(i32(tirx.floor(tirx.sqrt(square))))
        bits = T.bind(_bits(root))
        reciprocal = T.bind(_reciprocal(root, bits))
        shift = T.bind(_places(bits + RECIPROCAL_BITS - i.lift - i.fraction))
        half = T.bind(i64(1) << (shift - i64(1)))

        def scaled(n: Expr) -> Expr:
            distance = count * i64(_code(state, source + first + n, mask) - zero) - total
            normed = (distance * reciprocal + half) >> shift
            return normed * i64(gain[n]) + i64(bias[n])

        return scaled

    _each_row(state, i, size, row)


def _each_row(
    state: State,
    i: SimpleNamespace,
    written: Expr,
    row: Callable[[Expr, Expr], Callable[[Expr], Expr]],
) -> None:
    """Write so many codes of each row.

    ``row`` does what comes before its last pass and gives the sum of each element, int64.
    """
    mask = T.bind(tirx.Select(i.in_unsigned == 1, i32(255), i32(-1)))
    low, high, zero = (T.bind(i64(byte_value(x, i.out_unsigned))) for x in (i.lo, i.hi, i.zp))
    half = T.bind(((i64(1) << i64(i.shift)) >> i64(1)) * i64(i.rounding))
    with when(state.code == 0), T.serial(0, i.m1) as m1, T.serial(0, i.m0) as m0:
        source = T.bind(i.src_addr + m1 * i.ss_m1 + m0 * i.ss_m0)
        target = T.bind(i.dst_addr + m1 * i.ds_m1 + m0 * i.ds_m0)
        sums = row(source, mask)

        def store(n: Expr) -> None:
            held = i64(i32(sums(n) << i64(i.frac)))
            code = ((held * i64(i.mult) + half) >> i64(i.shift)) + zero
            code = tirx.max(tirx.min(code, high), low)
            T.buffer_store(state.mem, tirx.Cast("int8", code), [target + n])

        each(written, store)


def _code(state: State, at: Expr, mask: Expr) -> Expr:
    return i32(state.mem[at]) & mask


def _bits(divisor: Expr) -> Expr:
    """How many bits a positive int32 has."""
    return i32(DIVISOR_BITS) - i32(tirx.clz(divisor))


def _places(shift: Expr) -> Expr:
    """A shift as int64, its range in plain sight: of a shift by anything TVM thinks it gives 0."""
    return i64(shift) & i64(63)


def _reciprocal(divisor: Expr, bits: Expr) -> Expr:
    power = i64(1) << _places(bits + RECIPROCAL_BITS)
    return tirx.truncdiv(power - i64(1), i64(divisor))
