"""GEMM of 8-bit activations on 512-bit dot products of bytes, faster than ``sums.py``.

One instruction of the host multiplies four lanes of sixteen columns. Sums wrap at 32 bits, so the
order of additions does not matter: a block of pixels stays in vector registers over all tiles, and
the product factor, which all products of an instruction share, multiplies the finished sums.

The host takes activations as unsigned. Signed ones become unsigned, 128 higher, by turning their
sign bits; what that adds to a column's sum is computed once, while its weights are packed.
"""

from __future__ import annotations

from types import SimpleNamespace

from tvm import tirx
from tvm.tirx.script import builder as T

from targets.npu.execute.memory import Buffer, Expr, State, i32, when
from targets.npu.machine.spec import NpuSpec

_LANES = 16
_QUAD = 4
_DOT = "llvm.x86.avx512.vpdpbusd.512"
_SIGN_BITS = -0x7F7F7F80  # 0x80808080


def fits_array(spec: NpuSpec) -> bool:
    """Whether tiles are whole vectors of columns and whole quads of lanes."""
    return spec.array.cols % _LANES == 0 and spec.array.rows % _QUAD == 0


def gemm(state: State, i: SimpleNamespace, weights: Expr, factor: Expr, pixels: Expr) -> None:
    """Add the products of all pixels with all tiles to ACC.

    Args:
        state: with the offsets of the pixels in ``rows``.
        i: fields; ``act_bits`` is 0.
        weights: where tiles of byte weights [lane][column] begin in ``mem``.
        factor: of every product, int32.
        pixels: how many there are.
    """
    columns = state.spec.array.cols
    signs = T.bind(tirx.Select(i.act_unsigned == 1, i32(0), i32(_SIGN_BITS)))
    raised = T.alloc_buffer((columns,), "int32")
    _pack_weights(state, i, weights, signs, raised)
    block = max(1, min(8, 256 // columns))
    with T.serial(0, tirx.truncdiv(pixels + (block - 1), i32(block))) as n:
        first = T.bind(n * block)
        sums = _block(
            state, i, [tirx.min(first + j, pixels - 1) for j in range(block)], signs, raised
        )
        for j, buffer in enumerate(sums):
            with when(first + j < pixels):
                _accumulate(state, i, buffer, i.acc_row + first + j, factor)


def _pack_weights(
    state: State, i: SimpleNamespace, weights: Expr, signs: Expr, raised: Buffer
) -> None:
    """Weights as [tile][quad][column][lane of the quad], zero beyond the last tile's ``kvalid``."""
    rows, columns = state.spec.array.rows, state.spec.array.cols
    for column in range(0, columns, _LANES):
        _store(raised, column, tirx.Broadcast(i32(0), _LANES))
    with T.serial(0, i.k0 * i.k1 * i.k2) as t:
        last = tirx.truncmod(t, i.k0) == i.k0 - 1
        valid = T.bind(tirx.Select(last, i.kvalid, i32(rows)))
        with T.serial(0, rows // _QUAD) as q:
            for column in range(0, columns, _LANES):
                start = T.bind(weights + (t * rows + q * _QUAD) * columns + column)
                parts = []
                for lane in range(_QUAD):
                    row = _load(state.mem, start + lane * columns, "int8", _LANES)
                    byte = tirx.Cast(f"int32x{_LANES}", row) & tirx.Broadcast(i32(0xFF), _LANES)
                    keep = tirx.Select(q * _QUAD + lane < valid, i32(-1), i32(0))
                    place = tirx.Broadcast(i32(8 * lane), _LANES)
                    parts.append((byte & tirx.Broadcast(keep, _LANES)) << place)
                quads = T.bind(parts[0] | parts[1] | parts[2] | parts[3])
                packed = tirx.reinterpret("int8x64", quads)
                _store(state.mem, _quad_start(state, t, q, column), packed)
                old = _load(raised, column, "int32", _LANES)
                _store(raised, column, _dot(old, tirx.Broadcast(signs, _LANES), packed))


def _block(
    state: State, i: SimpleNamespace, pixels: list[Expr], signs: Expr, raised: Buffer
) -> list[Buffer]:
    """The sums of some pixels, before the factor."""
    rows, columns = state.spec.array.rows, state.spec.array.cols
    sums = [T.alloc_buffer((columns,), "int32") for _ in pixels]
    starts = [T.bind(state.rows[pixel] + i.act_addr) for pixel in pixels]
    for buffer in sums:
        for column in range(0, columns, _LANES):
            zero = tirx.Broadcast(i32(0), _LANES)
            _store(buffer, column, zero - _load(raised, column, "int32", _LANES))
    with T.serial(0, i.k2) as k2, T.serial(0, i.k1) as k1, T.serial(0, i.k0) as k0:
        t = T.bind((k2 * i.k1 + k1) * i.k0 + k0)
        offset = T.bind(k2 * i.as_k2 + k1 * i.as_k1 + k0 * i.as_k0)
        at = [T.bind(start + offset) for start in starts]
        for q in range(rows // _QUAD):
            for column in range(0, columns, _LANES):
                weights = T.bind(_load(state.mem, _quad_start(state, t, q, column), "int8", 64))
                for start, buffer in zip(at, sums, strict=True):
                    quad = _load(state.mem, start + q * _QUAD, "int8", _QUAD)
                    word = tirx.Broadcast(tirx.reinterpret("int32", quad), _LANES)
                    acts = word ^ tirx.Broadcast(signs, _LANES)
                    _store(
                        buffer, column, _dot(_load(buffer, column, "int32", _LANES), acts, weights)
                    )
    return sums


def _quad_start(state: State, t: Expr, q: Expr, column: int) -> Expr:
    quads, columns = state.spec.array.rows // _QUAD, state.spec.array.cols
    return state.areas.quads + ((t * quads + q) * columns + column) * _QUAD


def _dot(acc: Expr, acts: Expr, weights: Expr) -> Expr:
    """Each int32 plus four products; ``acts``: int32x16 of unsigned bytes, ``weights``: int8x64."""
    acts = tirx.reinterpret("uint8x64", acts)
    name = T.llvm_lookup_intrinsic_id(_DOT)
    return T.call_llvm_pure_intrin(f"int32x{_LANES}", name, acc, acts, weights)


def _accumulate(state: State, i: SimpleNamespace, sums: Buffer, row: Expr, factor: Expr) -> None:
    """Columns from ``nvalid`` on get nothing."""
    for column in range(0, state.spec.array.cols, _LANES):
        at = T.bind(row * state.spec.array.cols + column)
        addend = _load(sums, column, "int32", _LANES) * tirx.Broadcast(factor, _LANES)
        zero = tirx.Broadcast(i32(0), _LANES)
        index = tirx.Ramp(i32(column), i32(1), _LANES)
        addend = tirx.Select(index < tirx.Broadcast(i.nvalid, _LANES), addend, zero)
        init = tirx.Broadcast(i.acc_init == 1, _LANES)
        before = tirx.Select(init, zero, _load(state.acc, at, "int32", _LANES))
        _store(state.acc, at, before + addend)


def _load(buffer: Buffer, at: Expr, dtype: str, lanes: int) -> Expr:
    return buffer.vload([at], dtype=f"{dtype}x{lanes}")


def _store(buffer: Buffer, at: Expr, value: Expr) -> None:
    lanes = 16 if buffer.dtype == "int32" else 64
    start = i32(at) if isinstance(at, int) else at
    T.buffer_store(buffer, value, [tirx.Ramp(start, i32(1), lanes)])
