"""GEMM and DWC in the compiled executor.

Operands of 8 bits are read where they lie. Packed weights are widened to bytes once per
instruction, packed activations as they are read, so that there is one inner loop. It keeps the sums
of ``block_pixels`` pixels in vector registers over all tiles of the instruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from tvm import tirx
from tvm.tirx.script import builder as T

from targets.npu.execute import dot as executor_dot
from targets.npu.execute.memory import Buffer, Expr, State, i32, when
from targets.npu.execute.traps import NOT_HELD
from targets.npu.machine.spec import NpuSpec


def block_pixels(spec: NpuSpec) -> int:
    """Pixels whose sums fit the vector registers together."""
    return max(1, min(8, 128 // spec.array.cols))


def gemm(state: State, i: SimpleNamespace) -> None:
    """GEMM: products of every pixel with all tiles, then the sum's factor, then the accumulator."""
    spec, areas = state.spec, state.areas
    columns = spec.array.cols
    widest = T.bind((i.act_bits * i.wgt_bits + 1) >> 1)
    lanes = T.bind(i32(spec.array.rows) << widest)
    tiles = T.bind(i.k0 * i.k1 * i.k2)
    widths = T.bind(1 + i.act_bits * 4 + i.wgt_bits)
    with when(tirx.all(i.wgt_hold == 1, state.held != widths)):
        state.stop(NOT_HELD)
    with when(state.code == 0):
        packed = tirx.all(i.wgt_bits > 0, i.wgt_hold == 0)
        with when(packed):
            _widen_weights(state, i, tiles, lanes * columns)
        raw = areas.wgt + i.wgt_addr
        unheld = tirx.Select(i.wgt_bits > 0, i32(areas.wide), raw)
        weights = T.bind(tirx.Select(i.wgt_hold == 1, i32(areas.held), unheld))
        _fill_rows(state, i)
        second = tirx.Select(i.alpha_sign == 2, i32(-1), i.alpha_sign) * (
            i32(1) << (i.frac - i.alpha_b)
        )
        factor = T.bind((i32(1) << (i.frac - i.alpha_a)) + second)
        pixels = T.bind(i.m0 * i.m1)
        tile = _Tiles(i, lanes, weights, factor)
        if state.vnni and executor_dot.fits_array(spec):
            with T.If(i.act_bits == 0):
                with T.Then():
                    executor_dot.gemm(state, i, weights, factor, pixels)
                with T.Else():
                    _blocks(state, tile, pixels)
        else:
            _blocks(state, tile, pixels)
        _hold_tile(state, weights + (tiles - 1) * lanes * columns, lanes)
        state.hold(widths)


def _blocks(state: State, tile: _Tiles, pixels: Expr) -> None:
    """All pixels, many at a time while there are enough."""
    block = block_pixels(state.spec)
    full = T.bind(tirx.truncdiv(pixels, i32(block)))
    with T.serial(0, full) as n:
        _block(state, tile, n * block, block)
    with T.serial(0, pixels - full * block) as n:
        _block(state, tile, full * block + n, 1)


@dataclass(frozen=True)
class _Tiles:
    """What GEMM's inner loop reads: fields, lanes of a tile, address of byte weights, factor."""

    i: SimpleNamespace
    lanes: Expr
    weights: Expr
    factor: Expr


def _block(state: State, tile: _Tiles, first: Expr, count: int) -> None:
    """The sums of ``count`` pixels from ``first`` on."""
    i, columns = tile.i, state.spec.array.cols
    sums = T.sblock_alloc_buffer((count * columns,), "int32")
    for j in range(count):
        with T.vectorized(0, columns) as c:
            T.buffer_store(sums, 0, [j * columns + c])
    mask = T.bind(tirx.Select(i.act_unsigned == 1, i32(255), i32(-1)))
    with T.serial(0, i.k2) as k2, T.serial(0, i.k1) as k1, T.serial(0, i.k0) as k0:
        valid = T.bind(tirx.Select(k0 == i.k0 - 1, i.kvalid, tile.lanes))
        number = (k2 * i.k1 + k1) * i.k0 + k0
        weights = T.bind(tile.weights + number * tile.lanes * columns)
        offset = T.bind(i.act_addr + k2 * i.as_k2 + k1 * i.as_k1 + k0 * i.as_k0)
        with when(i.act_bits > 0):
            for j in range(count):
                start = T.bind(state.rows[first + j] + offset)
                _stage(state, i, start, j * 4 * state.spec.array.rows, valid)
        starts = [
            T.bind(
                tirx.Select(
                    i.act_bits > 0,
                    i32(state.areas.stage + j * 4 * state.spec.array.rows),
                    state.rows[first + j] + offset,
                )
            )
            for j in range(count)
        ]
        with T.serial(0, valid) as r:
            for j in range(count):
                act = T.bind(i32(state.mem[starts[j] + r]) & mask)
                with T.vectorized(0, columns) as c:
                    weight = i32(state.mem[weights + r * columns + c])
                    at = j * columns + c
                    T.buffer_store(sums, sums[at] + act * weight, [at])
    for j in range(count):
        _accumulate(state, i, sums, j * columns, (i.acc_row + first + j) * columns, tile.factor)


def _accumulate(
    state: State, i: SimpleNamespace, sums: Buffer, at: int, row: Expr, factor: Expr
) -> None:
    start = T.bind(row)
    with T.vectorized(0, state.spec.array.cols) as c:
        addend = tirx.Select(c < i.nvalid, sums[at + c] * factor, i32(0))
        before = tirx.Select(i.acc_init == 1, i32(0), state.acc[start + c])
        T.buffer_store(state.acc, before + addend, [start + c])


def _fill_rows(state: State, i: SimpleNamespace) -> None:
    """Offset of each pixel's activations."""
    with T.serial(0, i.m1) as m1, T.serial(0, i.m0) as m0:
        T.buffer_store(state.rows, m1 * i.as_m1 + m0 * i.as_m0, [m1 * i.m0 + m0])


def _element(state: State, start: Expr, index: Expr, bits_code: Expr, unsigned: Expr) -> Expr:
    """An element of packed operands, as int32."""
    width = i32(8) >> bits_code
    shift = (index & ((i32(1) << bits_code) - 1)) * width
    value = (i32(state.mem[start + (index >> bits_code)]) >> shift) & ((i32(1) << width) - 1)
    return value - ((value >> (width - 1)) << width) * (1 - unsigned)


def _widen_weights(state: State, i: SimpleNamespace, tiles: Expr, elements: Expr) -> None:
    """Packed weights of all tiles (or taps) to bytes; each tile starts at a whole byte."""
    tile_bytes = T.bind((elements + (i32(1) << i.wgt_bits) - 1) >> i.wgt_bits)
    with T.serial(0, tiles) as t, T.serial(0, elements) as e:
        start = state.areas.wgt + i.wgt_addr + t * tile_bytes
        value = _element(state, start, e, i.wgt_bits, i32(0))
        T.buffer_store(state.mem, tirx.Cast("int8", value), [state.areas.wide + t * elements + e])


def _stage(state: State, i: SimpleNamespace, start: Expr, at: int, count: Expr) -> None:
    """Packed activations to bytes."""
    with T.serial(0, count) as r:
        value = _element(state, start, r, i.act_bits, i.act_unsigned)
        T.buffer_store(state.mem, tirx.Cast("int8", value), [state.areas.stage + at + r])


def _hold_tile(state: State, start: Expr, lanes: Expr) -> None:
    """Keep what the array holds after a GEMM, its last tile, for a GEMM that reuses it."""
    columns = state.spec.array.cols
    begin = T.bind(start)
    with T.serial(0, lanes) as r, T.vectorized(0, columns) as c:
        at = r * columns + c
        T.buffer_store(state.mem, state.mem[begin + at], [state.areas.held + at])


def depthwise(state: State, i: SimpleNamespace) -> None:
    """DWC: one channel per column, taps in the order ky, kx."""
    columns, areas = state.spec.array.cols, state.areas
    with when(i.wgt_bits > 0):
        _widen_weights(state, i, i.kh * i.kw, i32(columns))
    weights = T.bind(tirx.Select(i.wgt_bits > 0, i32(areas.wide), areas.wgt + i.wgt_addr))
    mask = T.bind(tirx.Select(i.act_unsigned == 1, i32(255), i32(-1)))
    _fill_rows(state, i)
    state.hold(i32(0))
    with T.serial(0, i.m0 * i.m1) as pixel:
        sums = T.sblock_alloc_buffer((columns,), "int32")
        with T.vectorized(0, columns) as c:
            T.buffer_store(sums, 0, [c])
        with T.serial(0, i.kh) as ky, T.serial(0, i.kw) as kx:
            start = T.bind(i.act_addr + state.rows[pixel] + ky * i.as_ky + kx * i.as_kx)
            with when(i.act_bits > 0):
                _stage(state, i, start, 0, i32(columns))
            act = T.bind(tirx.Select(i.act_bits > 0, i32(areas.stage), start))
            tap = T.bind(weights + (ky * i.kw + kx) * columns)
            with T.vectorized(0, columns) as c:
                product = (i32(state.mem[act + c]) & mask) * i32(state.mem[tap + c])
                T.buffer_store(sums, sums[c] + product, [c])
        _accumulate(state, i, sums, 0, (i.acc_row + pixel) * columns, i32(1) << i.frac)
