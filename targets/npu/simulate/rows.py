"""What SOFTMAX and NORM do, in NumPy; the sums of a row are those of ``targets/rows.py``."""

from __future__ import annotations

import numpy as np

from targets.arithmetic import requantize
from targets.errors import TrapError
from targets.npu.machine import isa
from targets.npu.machine.legality import (
    EPSILON_BITS,
    EPSILON_BYTES,
    EXPONENTIALS_BYTES,
    SCALE_BYTES,
    byte_value,
    norm_part,
)
from targets.npu.simulate.state import Ints, Machine
from targets.rounding import Rounding, RoundingMode
from targets.rows import (
    EXPONENTIAL_BITS,
    RECIPROCAL_BITS,
    ROOT_BITS,
    NormScale,
    largest_variance,
    normalized,
    softmax_sums,
)


def softmax(m: Machine, i: isa.Softmax) -> None:
    """SOFTMAX: every row by itself."""
    begin = i.par_addr * 4
    table = m.par[begin : begin + EXPONENTIALS_BYTES].view("<u2")
    if table[0] < 1 << EXPONENTIAL_BITS:
        raise TrapError(m.index, f"SOFTMAX: the largest of a row counts {table[0]}, less than 2^15")
    _store(m, i, softmax_sums(_codes(m, i), table))


def norm(m: Machine, i: isa.Norm) -> None:
    """NORM: every row by itself."""
    begin = i.par_addr * 4
    bias_at = begin + EPSILON_BYTES
    size = norm_part(i)
    gain_at, end = bias_at + 4 * size, bias_at + SCALE_BYTES * size
    head = int(m.par[begin:bias_at].view("<u8")[0])
    epsilon, z = head & (1 << EPSILON_BITS) - 1, head >> EPSILON_BITS
    least = 1 << 2 * max(0, i.lift + i.fraction - RECIPROCAL_BITS)
    most = (1 << ROOT_BITS) - 1 - (largest_variance(i.len, centred=not i.whole) << 2 * i.lift)
    if not least <= epsilon <= most:
        raise TrapError(m.index, f"NORM: epsilon must be in [{least}, {most}], got {epsilon}")
    gain = m.par[gain_at:end].view("<i2").astype(np.int32)
    bias = m.par[bias_at:gain_at].view("<i4")
    zero_point = byte_value(z, i.in_unsigned)
    scale = NormScale(epsilon, i.lift, i.fraction, gain, bias, not i.whole, zero_point)
    part = slice(i.part * size, (i.part + 1) * size)
    _store(m, i, normalized(_codes(m, i), scale)[:, part] * gain + bias)


def _codes(m: Machine, i: isa.Rows) -> Ints:
    """int64[m1 * m0, len]."""
    rows = _starts(i.src_addr, i, i.ss_m0, i.ss_m1)
    codes = m.act[rows[:, None] + np.arange(i.len)]
    return codes.view(np.uint8 if i.in_unsigned else np.int8).astype(np.int64)


def _store(m: Machine, i: isa.Rows, sums: Ints) -> None:
    codes = requantize(
        (sums << i.frac).astype(np.int32),
        0,
        i.shift,
        rounding=Rounding(RoundingMode(i.rounding)),
        zero_point=byte_value(i.zp, i.out_unsigned),
        low=byte_value(i.lo, i.out_unsigned),
        high=byte_value(i.hi, i.out_unsigned),
        multiplier=i.mult,
    ).astype(np.uint8)
    for target, row in zip(_starts(i.dst_addr, i, i.ds_m0, i.ds_m1), codes, strict=True):
        m.act[target : target + len(row)] = row


def _starts(start: int, i: isa.Rows, m0: int, m1: int) -> Ints:
    return (start + np.arange(i.m1)[:, None] * m1 + np.arange(i.m0) * m0).reshape(-1)
