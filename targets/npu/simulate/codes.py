"""What REQ, VADD, VMUL, POOL and LUT do, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from targets.arithmetic import (
    MAX_RESIDUAL_SHIFT,
    MAX_SHIFT,
    MAX_SHIFT_SPREAD,
    residual_term,
    saturate,
    shift_round,
)
from targets.arithmetic import requantize as requantize_sums
from targets.errors import TrapError
from targets.npu.machine import isa
from targets.npu.machine.elements import pack, unpack
from targets.npu.machine.legality import (
    RECORD_BYTES,
    TABLE_BYTES,
    byte_value,
    code_range,
    parameter_bytes,
    record_bytes,
    row_bytes,
)
from targets.npu.simulate.state import Ints, Machine
from targets.rounding import Rounding, RoundingMode

RECORD = np.dtype(
    [
        ("bias", "<i4"),
        ("mult", "<u2"),
        ("zero", "<u2"),
        ("shift", "u1"),
        ("res_shl", "u1"),
        ("last_zero", "<u2"),
    ]
)
"""A channel's parameters in PAR; its borders follow, if it has some of its own."""


def requantize(m: Machine, i: isa.Requantize) -> None:
    """REQ: the sums of every pixel, with each channel's record, to codes."""
    begin = i.par_addr * 4
    stride = record_bytes(i)
    parameters = m.par[begin : begin + parameter_bytes(i)]
    rows = parameters[: i.nvalid * stride].reshape(i.nvalid, stride)
    records = rows[:, :RECORD_BYTES].copy().view(RECORD)[:, 0]
    _check_records(m, i, records)
    low, high, zero = (byte_value(x, i.out_unsigned) for x in (i.lo, i.hi, i.zp))
    sums = m.acc[i.acc_row : i.acc_row + i.m0 * i.m1, : i.nvalid]
    mode = RoundingMode(i.rounding)
    if mode is RoundingMode.BORDER:
        behind = parameters[None, i.nvalid * stride :] if i.one_row else rows[:, RECORD_BYTES:]
        table = behind[:, : high - low]
        rounding = Rounding(mode, tuple(row.tobytes() for row in table), low)
    else:
        rounding = Rounding(mode)
    residual: Any = 0
    if i.residual:
        codes = _codes(
            m,
            _rows(i.res_addr, i, i.rs_m0, i.rs_m1),
            i.nvalid,
            i.residual_unsigned,
            i.res_bits,
        )
        res_zero = byte_value(i.res_zp, i.residual_unsigned)
        residual = residual_term(codes, res_zero, i.res_mult, records["res_shl"])
    codes = requantize_sums(
        sums,
        records["bias"],
        i.shift + records["shift"].astype(np.int64),
        rounding=rounding,
        zero_point=zero,
        low=low,
        high=high,
        multiplier=records["mult"] if i.multiply else 1,
        residual=residual,
    )
    for target, row in zip(
        _rows(i.dst_addr, i, i.ds_m0, i.ds_m1), pack(codes, isa.WIDTHS[i.out_bits]), strict=True
    ):
        m.act[target : target + row.size] = row


def add(m: Machine, i: isa.Add) -> None:
    """VADD: two tensors on a common grid."""
    a, b = (
        _codes(m, np.array(at), i.len, u, i.elem_bits)
        for at, u in ((i.a_addr, i.a_unsigned), (i.b_addr, i.b_unsigned))
    )
    t = residual_term(a, byte_value(i.za, i.a_unsigned), i.ma, i.sa)
    t = t + residual_term(b, byte_value(i.zb, i.b_unsigned), i.mb, i.sb)
    low, high, zero = (byte_value(x, i.out_unsigned) for x in (i.lo, i.hi, i.zo))
    codes = saturate(shift_round(t, i.shift, RoundingMode.HALF_UP) + zero, low, high)
    packed = pack(codes, isa.WIDTHS[i.elem_bits])
    m.act[i.dst_addr : i.dst_addr + packed.size] = packed


def multiply(m: Machine, i: isa.Multiply) -> None:
    """VMUL: rows of codes times rows of codes, or each times one code."""
    row, code = np.arange(i.rows)[:, None], np.arange(i.len)
    a = _codes(m, np.array(i.a_addr), i.rows * i.len, i.a_unsigned, 0).reshape(i.rows, i.len)
    at = i.b_addr + row * i.bs_row + code * (1 - i.b_one)
    b = _codes(m, at, 1, i.b_unsigned, 0)[..., 0]
    centred = a - byte_value(i.za, i.a_unsigned), b - byte_value(i.zb, i.b_unsigned)
    t = ((centred[0] * centred[1]) << i.left) * i.mult
    low, high, zero = (byte_value(x, i.out_unsigned) for x in (i.lo, i.hi, i.zo))
    codes = saturate(shift_round(t, i.shift, RoundingMode.HALF_UP) + zero, low, high)
    m.act[i.dst_addr : i.dst_addr + codes.size] = pack(codes.reshape(-1), 8)
    m.counters.macs += codes.size


def pool(m: Machine, i: isa.Pool) -> None:
    """POOL: maximum or scaled sum over windows; no padding."""
    low, high = code_range(i.elem_bits, i.unsigned)
    zero = byte_value(i.zp, i.unsigned)
    for y, x in np.ndindex(i.oy, i.ox):
        start = i.src_addr + y * i.stride * i.ss_y + x * i.stride * i.ss_x
        taps = start + np.arange(i.kh)[:, None] * i.ss_y + np.arange(i.kw) * i.ss_x
        window = _codes(m, taps.reshape(-1), i.c, i.unsigned, i.elem_bits)
        if i.average:
            scaled = shift_round(window.sum(axis=0) * i.mult, i.shift, RoundingMode.HALF_UP)
            codes = saturate(scaled + zero, low, high)
        else:
            codes = window.max(axis=0)
        target = i.dst_addr + y * i.ds_y + x * i.ds_x
        packed = pack(codes, isa.WIDTHS[i.elem_bits])
        m.act[target : target + packed.size] = packed


def lookup(m: Machine, i: isa.Lut) -> None:
    """LUT: every byte through a table."""
    table = m.par[i.lut_addr : i.lut_addr + TABLE_BYTES]
    m.act[i.dst_addr : i.dst_addr + i.len] = table[m.act[i.src_addr : i.src_addr + i.len]]


def _check_records(m: Machine, i: isa.Requantize, records: npt.NDArray[np.void]) -> None:
    shift = records["shift"].astype(np.int64)
    illegal = (shift > MAX_SHIFT_SPREAD) | (shift + i.shift > MAX_SHIFT)
    illegal |= records["res_shl"] > MAX_RESIDUAL_SHIFT
    illegal |= (records["zero"] != 0) | (records["last_zero"] != 0)
    if illegal.any():
        channel = int(np.argmax(illegal))
        msg = f"REQ: the record of channel {channel} is illegal: {records[channel]}"
        raise TrapError(m.index, msg)


def _rows(start: int, i: isa.Requantize, m0: int, m1: int) -> Ints:
    return (start + np.arange(i.m1)[:, None] * m1 + np.arange(i.m0) * m0).reshape(-1)


def _codes(m: Machine, starts: Ints, count: int, unsigned: int, bits_code: int) -> Ints:
    packed = m.act[starts[..., None] + np.arange(row_bytes(count, bits_code))]
    return unpack(packed, isa.WIDTHS[bits_code], unsigned=bool(unsigned))[..., :count]
