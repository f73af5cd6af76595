"""GEMM and DWC as TIR.

Sums wrap at 32 bits, so the order of additions does not matter: rows go in blocks whose sums stay in registers over
all tiles, and the product factor, the same for every product of an instruction, multiplies the finished sum.
Weights are repacked once per instruction; with 512-bit dot products four lanes of a column lie side by side.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812

from targets.npu.check import packed_bytes, product_lanes
from targets.npu.execute_base import (
    Buffer,
    Expr,
    Machine,
    cast,
    eq,
    i32,
    i64,
    load,
    memory_bytes,
    pick,
    spread,
    store,
    when,
)
from targets.npu.spec import NpuSpec

_BLOCK_ROWS = 8
_DOT = "llvm.x86.avx512.vpdpbusd.512"
_FLIP = -0x7F7F7F80  # 0x80808080: turns four signed bytes into unsigned ones, 128 higher


def uses_dot_products(spec: NpuSpec, vnni: bool) -> bool:
    """Whether GEMM runs on byte dot products."""
    return vnni and spec.array.cols % 16 == 0 and spec.array.rows % 4 == 0


def block_rows(spec: NpuSpec) -> int:
    """Rows whose sums stay in registers."""
    return max(1, min(_BLOCK_ROWS, 256 // spec.array.cols))


def table_sizes(spec: NpuSpec) -> dict[str, int]:
    """Elements of the int64 tables: where each row's activations begin, and how far into them each step is."""
    area = spec.array.rows * spec.array.cols
    return {"row": spec.acc_rows + _BLOCK_ROWS, "step": 4 * spec.sram.wgt.bytes // area + 4}


def scratch_bytes(spec: NpuSpec) -> int:
    """Bytes behind the memories: wide weights, packed weights, a block of wide activations."""
    wide = _wide_bytes(spec)
    return 2 * wide + block_rows(spec) * (wide // spec.array.cols)


def _wide_bytes(spec: NpuSpec) -> int:
    """Weights of the whole WGT as one byte each, if they are as narrow as the machine allows."""
    return spec.sram.wgt.bytes * 8 // min(spec.array.precisions) + 1024


def emit_gemm(machine: Machine, f: Any) -> None:
    """GEMM: see ``simulator.Simulator.gemm``."""
    spec = machine.spec
    rows, cols = spec.array.rows, spec.array.cols
    wide_at = memory_bytes(spec)
    packed_at = wide_at + _wide_bytes(spec)
    block_at = packed_at + _wide_bytes(spec)
    lanes = T.bind(product_lanes(f, rows))
    parts = T.bind(lanes // rows)
    tiles = T.bind(f.k0 * f.k1 * f.k2)
    steps = T.bind(tiles * parts)
    weights = T.bind(pick(f.wgt_bits, (machine.bases[1] + f.wgt_addr, wide_at, wide_at)))
    with when(f.wgt_bits > 0):
        tile_bytes = packed_bytes(lanes * cols, f.wgt_bits)
        with T.serial(i64(0), tiles) as t:
            source = machine.bases[1] + f.wgt_addr + t * tile_bytes
            _widen(machine, source, wide_at + t * lanes * cols, lanes * cols, f.wgt_bits, i64(0))
    raised = T.alloc_buffer((cols,), "int32", scope="local")
    _pack_weights(machine, f, weights, packed_at, parts, steps, raised)
    _locate(machine, f, parts, steps, wide=f.act_bits > 0, block_at=block_at, lanes=lanes)
    count = T.bind(f.m0 * f.m1)
    size = block_rows(spec)
    with T.serial(i64(0), (count + size - 1) // size) as block:
        with when(f.act_bits > 0):
            _gather_block(machine, f, block * size, count, tiles, lanes, block_at)
        _block(machine, f, block * size, count, steps, packed_at, raised)


def _widen(
    machine: Machine, source: Expr, target: Expr, count: Expr, code: Expr, unsigned: Expr
) -> None:
    """Packed elements of 8 >> code bits as bytes."""
    width = T.bind(i64(8) >> code)
    with T.serial(i64(0), count) as e:
        bit = e * width
        byte = cast("int64", machine.bytes_at(source + (bit >> 3), 1))
        value = (byte >> (bit & 7)) & ((i64(1) << width) - 1)
        value = value - (((value >> (width - 1)) & (1 - unsigned)) << width)
        store(machine.mem, target + e, cast("int8", value), 1)


def _pack_weights(
    machine: Machine,
    f: Any,
    weights: Expr,
    packed_at: int,
    parts: Expr,
    steps: Expr,
    raised: Buffer,
) -> None:
    """Weights [step][lane][column] in the order of use; lanes beyond ``kvalid`` of the last k0 tile become zero.

    ``raised`` becomes what the sums of signed activations are too high by: dot products take them 128 higher.
    """
    rows, cols = machine.spec.array.rows, machine.spec.array.cols
    size, dot = machine.lanes, uses_dot_products(machine.spec, machine.vnni)
    group = 4 if dot else 1
    signed = T.bind(tirx.Select(eq(f.act_unsigned, 1), i32(0), i32(_FLIP)))
    for column in machine.chunks:
        store(raised, i64(column), spread(i32(0), size), size)
    with T.serial(i64(0), steps) as u:
        last = eq((u // parts) % f.k0, f.k0 - 1)
        valid = T.bind(tirx.Select(last, f.kvalid - (u % parts) * rows, i64(rows)))
        with T.serial(i64(0), i64(rows // group)) as q:
            for column in machine.chunks:
                vectors = []
                for lane in range(group):
                    at = weights + (u * rows + q * group + lane) * cols + column
                    keep = spread(q * group + lane < valid, size)
                    raw = machine.bytes_at(at, size)
                    zero = spread(tirx.IntImm("int8", 0), size)
                    vectors.append(tirx.Select(keep, raw, zero))
                to = packed_at + ((u * (rows // group) + q) * cols + column) * group
                if dot:
                    quads = T.bind(_interleave(vectors, size))
                    machine.put_words(to, quads, size)
                    old = load(raised, i64(column), "int32", size)
                    weight_bytes = tirx.reinterpret("int8x64", quads)
                    store(raised, i64(column), _dot(old, spread(signed, 16), weight_bytes), size)
                else:
                    store(machine.mem, to, vectors[0], size)


def _interleave(vectors: list[Expr], size: int) -> Expr:
    """Four byte vectors as the bytes of one int32 vector."""
    word = None
    for n, value in enumerate(vectors):
        part = (cast("int32", value, size) & spread(i32(0xFF), size)) << spread(i32(8 * n), size)
        word = part if word is None else word | part
    return word


def _locate(
    machine: Machine,
    f: Any,
    parts: Expr,
    steps: Expr,
    *,
    wide: Expr,
    block_at: int,
    lanes: Expr,
) -> None:
    """Fill the tables ``row`` and ``step``: byte addresses of activations in ``mem``, offsets of each step in them.

    Wide activations lie in a block of their own, gathered row by row.
    """
    row, step = machine.tables["row"], machine.tables["step"]
    size = block_rows(machine.spec)
    rows = machine.spec.array.rows
    with T.serial(i64(0), f.m1) as i1, T.serial(i64(0), f.m0) as i0:
        n = i1 * f.m0 + i0
        direct = f.act_addr + i1 * f.as_m1 + i0 * f.as_m0
        gathered = block_at + (n % size) * (steps * rows)
        store(row, n, tirx.Select(wide, gathered, direct), 1)
    for extra in range(size):
        # The last block is computed whole: rows beyond the end repeat the last one and are not written.
        end = f.m0 * f.m1
        store(row, end + extra, load(row, end - 1, "int64", 1), 1)
    with T.serial(i64(0), f.k2) as k2, T.serial(i64(0), f.k1) as k1, T.serial(i64(0), f.k0) as k0:
        t = T.bind((k2 * f.k1 + k1) * f.k0 + k0)
        with T.serial(i64(0), parts) as s:
            direct = k2 * f.as_k2 + k1 * f.as_k1 + k0 * f.as_k0
            store(step, t * parts + s, tirx.Select(wide, t * lanes + s * rows, direct), 1)


def _gather_block(
    machine: Machine, f: Any, first: Expr, count: Expr, tiles: Expr, lanes: Expr, block_at: int
) -> None:
    """Narrow activations of a block of rows as bytes [row][tile][lane]."""
    size = block_rows(machine.spec)
    with T.serial(i64(0), tirx.min(i64(size), count - first)) as i:
        n = first + i
        with T.serial(i64(0), tiles) as t:
            at = f.act_addr + (n // f.m0) * f.as_m1 + (n % f.m0) * f.as_m0
            at = at + (t // (f.k0 * f.k1)) * f.as_k2
            at = at + ((t // f.k0) % f.k1) * f.as_k1 + (t % f.k0) * f.as_k0
            to = block_at + (i * tiles + t) * lanes
            _widen(machine, T.bind(at), T.bind(to), lanes, f.act_bits, f.act_unsigned)


def _block(
    machine: Machine,
    f: Any,
    first: Expr,
    count: Expr,
    steps: Expr,
    packed_at: int,
    raised: Buffer,
) -> None:
    """Sums of one block of rows over all steps, then into ACC."""
    spec, size = machine.spec, machine.lanes
    dot = uses_dot_products(spec, machine.vnni)
    height = block_rows(spec)
    sums = [T.alloc_buffer((spec.array.cols,), "int32", scope="local") for _ in range(height)]
    starts = [T.bind(load(machine.tables["row"], first + i, "int64", 1)) for i in range(height)]
    for buffer in sums:
        for column in machine.chunks:
            start = spread(i32(0), size) - load(raised, i64(column), "int32", size)
            store(buffer, i64(column), start, size)
    flip = T.bind(tirx.Select(eq(f.act_unsigned, 1), i32(0), i32(_FLIP)))
    mask = T.bind(tirx.Select(eq(f.act_unsigned, 1), i32(0xFF), i32(-1)))
    with T.serial(i64(0), steps) as u:
        offset = T.bind(load(machine.tables["step"], u, "int64", 1))
        at = [T.bind(start + offset) for start in starts]
        if dot:
            _dot_step(machine, u, at, sums, flip, packed_at)
        else:
            _lane_step(machine, u, at, sums, mask, packed_at)
    factor = T.bind(cast("int32", _factor(f)))
    for i, buffer in enumerate(sums):
        with when(first + i < count):
            _accumulate(machine, f, f.acc_row + first + i, buffer, factor, f.nvalid)


def _factor(f: Any) -> Expr:
    """What each product is multiplied by."""
    sign = (f.alpha_sign & 1) - (f.alpha_sign >> 1)
    return (i64(1) << (f.frac - f.alpha_a)) + sign * (i64(1) << (f.frac - f.alpha_b))


def _dot_step(
    machine: Machine, u: Expr, at: list[Expr], sums: list[Buffer], flip: Expr, packed_at: int
) -> None:
    rows, cols = machine.spec.array.rows, machine.spec.array.cols
    for q in range(rows // 4):
        for column in machine.chunks:
            weights = T.bind(
                machine.bytes_at(packed_at + ((u * (rows // 4) + q) * cols + column) * 4, 64)
            )
            for start, buffer in zip(at, sums, strict=True):
                quad = tirx.reinterpret("int32", machine.bytes_at(start + 4 * q, 4))
                bytes_ = tirx.Broadcast(quad, 16) ^ tirx.Broadcast(flip, 16)
                value = _dot(load(buffer, i64(column), "int32", 16), bytes_, weights)
                store(buffer, i64(column), value, 16)


def _dot(acc: Expr, unsigned_words: Expr, weights: Expr) -> Expr:
    """Per int32 element: add four products of unsigned and signed bytes."""
    unsigned = tirx.reinterpret("uint8x64", unsigned_words)
    return T.call_llvm_pure_intrin(
        "int32x16", T.llvm_lookup_intrinsic_id(_DOT), acc, unsigned, weights
    )


def _lane_step(
    machine: Machine, u: Expr, at: list[Expr], sums: list[Buffer], mask: Expr, packed_at: int
) -> None:
    rows, cols, size = machine.spec.array.rows, machine.spec.array.cols, machine.lanes
    for r in range(rows):
        for column in machine.chunks:
            raw = machine.bytes_at(packed_at + (u * rows + r) * cols + column, size)
            weights = T.bind(cast("int32", raw, size))
            for start, buffer in zip(at, sums, strict=True):
                act = cast("int32", machine.bytes_at(start + r, 1)) & mask
                value = load(buffer, i64(column), "int32", size) + spread(act, size) * weights
                store(buffer, i64(column), value, size)


def _accumulate(
    machine: Machine, f: Any, row: Expr, sums: Buffer, factor: Expr, nvalid: Expr
) -> None:
    """Put one row of sums into ACC; columns from ``nvalid`` on keep what they hold."""
    size = machine.lanes
    for column in machine.chunks:
        at = T.bind(machine.sums_at(row, column))
        old = T.bind(machine.words_at(at, size))
        start = tirx.Select(spread(eq(f.acc_init, 1), size), spread(i32(0), size), old)
        new = start + load(sums, i64(column), "int32", size) * spread(factor, size)
        columns = i64(column) if size == 1 else tirx.Ramp(i64(column), i64(1), size)
        machine.put_words(at, tirx.Select(columns < spread(nvalid, size), new, old), size)


def emit_depthwise(machine: Machine, f: Any) -> None:
    """DWC: see ``simulator.Simulator.depthwise``."""
    spec = machine.spec
    wide_at = memory_bytes(spec)
    row_at = wide_at + _wide_bytes(spec)
    cols = spec.array.cols
    taps = T.bind(f.kh * f.kw)
    weights = T.bind(pick(f.wgt_bits, (machine.bases[1] + f.wgt_addr, wide_at, wide_at)))
    with when(f.wgt_bits > 0):
        _widen(machine, machine.bases[1] + f.wgt_addr, i64(wide_at), taps * cols, f.wgt_bits, i64(0))
    mask = T.bind(tirx.Select(eq(f.act_unsigned, 1), i32(0xFF), i32(-1)))
    factor = T.bind(cast("int32", i64(1) << f.frac))
    sums = T.alloc_buffer((cols,), "int32", scope="local")
    size = machine.lanes
    with T.serial(i64(0), f.m1) as i1, T.serial(i64(0), f.m0) as i0:
        for column in machine.chunks:
            store(sums, i64(column), spread(i32(0), size), size)
        start = T.bind(f.act_addr + i1 * f.as_m1 + i0 * f.as_m0)
        with T.serial(i64(0), f.kh) as ky, T.serial(i64(0), f.kw) as kx:
            direct = T.bind(start + ky * f.as_ky + kx * f.as_kx)
            at = T.bind(pick(f.act_bits, (direct, i64(row_at), i64(row_at))))
            with when(f.act_bits > 0):
                _widen(machine, direct, i64(row_at), f.nvalid, f.act_bits, f.act_unsigned)
            for column in machine.chunks:
                act = cast("int32", machine.bytes_at(at + column, size), size) & spread(mask, size)
                tap = weights + (ky * f.kw + kx) * cols + column
                weight = cast("int32", machine.bytes_at(tap, size), size)
                value = load(sums, i64(column), "int32", size) + act * weight
                store(sums, i64(column), value, size)
        _accumulate(machine, f, f.acc_row + i1 * f.m0 + i0, sums, factor, f.nvalid)
