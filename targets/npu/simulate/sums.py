"""What GEMM and DWC do, in NumPy."""

from __future__ import annotations

import numpy as np

from targets.arithmetic import scale_product
from targets.errors import TrapError
from targets.npu.machine import isa
from targets.npu.machine.elements import unpack
from targets.npu.machine.legality import row_bytes, tile_shape
from targets.npu.simulate.state import HeldWeights, Ints, Machine


def gemm(m: Machine, i: isa.Gemm) -> None:
    """GEMM: for each tile (k2, k1, k0) the products of all pixels with the tile's weights."""
    lanes, act_bytes, wgt_bytes = tile_shape(i, m.spec)
    pixels = _pixels(m, i)
    for tile, (k2, k1, k0) in enumerate(np.ndindex(i.k2, i.k1, i.k0)):
        if i.wgt_hold:
            weights = _held_weights(m, i)
        else:
            begin = i.wgt_addr + tile * wgt_bytes
            packed = m.wgt[begin : begin + wgt_bytes]
            flat = unpack(packed, isa.WIDTHS[i.wgt_bits], unsigned=False)[
                : lanes * m.spec.array.cols
            ]
            weights = flat.reshape(lanes, -1)
            m.held = HeldWeights(weights, i.act_bits, i.wgt_bits)
        valid = i.kvalid if k0 == i.k0 - 1 else lanes
        start = i.act_addr + k2 * i.as_k2 + k1 * i.as_k1 + k0 * i.as_k0
        packed = m.act[start + pixels[:, None] + np.arange(act_bytes)]
        act = unpack(packed, isa.WIDTHS[i.act_bits], unsigned=bool(i.act_unsigned))[:, :valid]
        # Sums of at most 512 products of two bytes are exact in float64, and its matmul is fast.
        product = (act.astype(np.float64) @ weights[:valid].astype(np.float64)).astype(np.int64)
        sign = (0, 1, -1)[i.alpha_sign]
        scaled = scale_product(product, i.frac, i.alpha_a, i.alpha_b, sign)
        _accumulate(m, i, scaled, first=tile == 0)
        m.counters.macs += pixels.size * valid * i.nvalid


def depthwise(m: Machine, i: isa.Depthwise) -> None:
    """DWC: one channel per column, taps in the order ky, kx."""
    columns = m.spec.array.cols
    act_bytes, wgt_bytes = (row_bytes(columns, code) for code in (i.act_bits, i.wgt_bits))
    pixels = _pixels(m, i)
    m.held = None
    for tap, (ky, kx) in enumerate(np.ndindex(i.kh, i.kw)):
        begin = i.wgt_addr + tap * wgt_bytes
        weights = unpack(m.wgt[begin : begin + wgt_bytes], isa.WIDTHS[i.wgt_bits], unsigned=False)
        start = i.act_addr + ky * i.as_ky + kx * i.as_kx
        packed = m.act[start + pixels[:, None] + np.arange(act_bytes)]
        act = unpack(packed, isa.WIDTHS[i.act_bits], unsigned=bool(i.act_unsigned))
        product = act[:, :columns] * weights[:columns]
        _accumulate(m, i, product << i.frac, first=tap == 0)
        m.counters.macs += pixels.size * i.nvalid


def _pixels(m: Machine, i: isa.Gemm | isa.Depthwise) -> Ints:
    """Offset of each pixel's activations, in the order of accumulator rows."""
    return (np.arange(i.m1)[:, None] * i.as_m1 + np.arange(i.m0) * i.as_m0).reshape(-1)


def _held_weights(m: Machine, i: isa.Gemm) -> Ints:
    if m.held is None or (m.held.act_bits, m.held.wgt_bits) != (
        i.act_bits,
        i.wgt_bits,
    ):
        raise TrapError(m.index, "GEMM: the array holds no weights of these widths")
    return m.held.tile


def _accumulate(m: Machine, i: isa.Gemm | isa.Depthwise, addend: Ints, *, first: bool) -> None:
    """Add to the accumulator rows; columns from nvalid on get nothing. Sums wrap at 32 bits."""
    addend[:, i.nvalid :] = 0
    rows = slice(i.acc_row, i.acc_row + addend.shape[0])
    before = 0 if first and i.acc_init else m.acc[rows].astype(np.int64)
    m.acc[rows] = (before + addend).astype(np.int32)
