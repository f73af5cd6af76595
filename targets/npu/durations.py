"""What an instruction costs by itself: cycles of its unit and of the bus; time only, no values.

    LD, ST  bus: bursts * burst / bytes_per_cycle, the latency before (LD) or after (ST) it
    LD fill bytes / line of its memory
    GEMM    tiles * max(pixels, weights, min_rows); the first tile's weights where the array idled
    DWC     pixels * taps, or with sliding registers pixels * kh * min(kw, stride)
    REQ     pixels * ceil(channels / lanes)
    others  ceil(elements * reads / lanes)

``decode`` cycles come before all of it. ``timing.py`` puts the pieces in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from targets.npu import isa
from targets.npu.spec import NpuSpec


@dataclass(frozen=True)
class Duration:
    """Cycles of one instruction.

    Attributes:
        warm_up: loading the first tile's weights, unless they came in under the instruction before.
        work: the unit is occupied by it.
        drain: from the end of the work, or of the transfer, to completion; the unit is free.
        latency: from the end of decoding to the request of the bus.
        bus: transfer on the bus; 0 for what does not touch DRAM.
    """

    warm_up: int = 0
    work: int = 0
    drain: int = 0
    latency: int = 0
    bus: int = 0


def duration(instruction: isa.Instruction, spec: NpuSpec) -> Duration:
    """Cycles of an instruction on a machine; ``spec.issue.decode`` is not among them."""
    vu, dma, array = spec.vu, spec.dma, spec.array
    match instruction:
        case isa.Load(fill=1):
            return Duration(work=_fill(instruction, spec))
        case isa.Load():
            return Duration(latency=dma.read_latency, bus=_transfer(instruction, spec))
        case isa.Store():
            return Duration(bus=_transfer(instruction, spec), drain=dma.write_latency)
        case isa.Gemm():
            return _gemm(instruction, spec)
        case isa.Depthwise():
            work = instruction.m0 * instruction.m1 * _taps(instruction, spec)
            return Duration(work=work, drain=array.fill_cycles)
        case isa.Requantize():
            lanes = vu.mult_lanes if instruction.multiply else vu.shift_lanes
            pixels = instruction.m0 * instruction.m1
            return Duration(work=pixels * _ceil(instruction.nvalid, lanes), drain=vu.latency)
        case isa.Add():
            return Duration(work=_ceil(2 * instruction.len, vu.elt_lanes), drain=vu.latency)
        case isa.Pool(kw=kw, kh=kh):
            reads = instruction.c * instruction.ox * instruction.oy * kh * kw
            return Duration(work=_ceil(reads, vu.pool_lanes), drain=vu.latency)
        case isa.Lut():
            return Duration(work=_ceil(instruction.len, vu.lut_lanes), drain=vu.latency)
    return Duration()


def dram_bytes(instruction: isa.Instruction) -> int:
    """Bytes that an instruction moves between DRAM and a memory."""
    if isinstance(instruction, isa.Store) or (
        isinstance(instruction, isa.Load) and not instruction.fill
    ):
        return instruction.x_bytes * instruction.y * instruction.z
    return 0


def macs(instruction: isa.Instruction, spec: NpuSpec) -> int:
    """Products of valid lanes and columns."""
    match instruction:
        case isa.Gemm(m0=m0, m1=m1, k0=k0, k1=k1, k2=k2):
            valid = (k0 - 1) * lanes(instruction, spec) + instruction.kvalid
            return m0 * m1 * k2 * k1 * valid * instruction.nvalid
        case isa.Depthwise(m0=m0, m1=m1, kw=kw, kh=kh):
            return m0 * m1 * kw * kh * instruction.nvalid
    return 0


def lanes(instruction: isa.Gemm | isa.Depthwise, spec: NpuSpec) -> int:
    """Elements of a reduction tile: R * 8 / max(operand widths)."""
    widest = max(isa.WIDTHS[instruction.act_bits], isa.WIDTHS[instruction.wgt_bits])
    return spec.array.rows * 8 // widest


def _gemm(i: isa.Gemm, spec: NpuSpec) -> Duration:
    array = spec.array
    pixels, tiles = i.m0 * i.m1, i.k0 * i.k1 * i.k2
    fill, weights = array.fill_cycles, array.weight_cycles
    if i.wgt_hold:
        return Duration(work=max(pixels, array.min_rows), drain=fill)
    if array.weight_buffers == 1:
        return Duration(work=tiles * (weights + pixels + fill))
    work = tiles * max(pixels, weights, array.min_rows)
    return Duration(warm_up=weights, work=work, drain=fill)


def _taps(i: isa.Depthwise, spec: NpuSpec) -> int:
    """Cycles per pixel; sliding registers keep the columns that the next pixel needs again."""
    if spec.array.dw == "stream" or i.as_kx == 0 or i.as_m0 % i.as_kx:
        return i.kh * i.kw
    return i.kh * min(i.kw, i.as_m0 // i.as_kx)


def _fill(i: isa.Load, spec: NpuSpec) -> int:
    sram = spec.sram
    memory = (sram.act, sram.wgt, sram.acc, sram.par)[i.mem]
    return i.z * i.y * _ceil(i.x_bytes, memory.line)


def _transfer(i: isa.Load | isa.Store, spec: NpuSpec) -> int:
    """Bus cycles; rows that touch are one transfer, and a partial burst costs a whole one."""
    rows, row_bytes = i.y * i.z, i.x_bytes
    if i.y == 1 or i.dram_ystride == row_bytes:
        rows, row_bytes = i.z, row_bytes * i.y
        if i.z == 1 or i.dram_zstride == row_bytes:
            rows, row_bytes = 1, row_bytes * i.z
    bursts = rows * _ceil(row_bytes, spec.dma.burst)
    return _ceil(bursts * spec.dma.burst, spec.dma.bytes_per_cycle)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
