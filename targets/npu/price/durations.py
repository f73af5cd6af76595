"""What an instruction costs by itself: cycles of its unit and of the bus; time only, no values.

    LD, ST  bus: bursts * burst / bytes_per_cycle, the latency before (LD) or after (ST) it
    LD transposed   as LD; a burst of each of a line's planes is there before a line per cycle is
            written, while the next ones arrive
    LD fill bytes / line of its memory, the border included
    GEMM    tiles * max(pixels, weights, min_rows), and the first tile's weights
    DWC     pixels * taps, or with sliding registers pixels * kh * min(kw, stride)
    REQ     pixels * ceil(channels / lanes)
    VMUL    as VADD by operands read; with a multiplier also ceil(codes / multiplier lanes)
    SOFTMAX rows * (codes compared, looked up, a reciprocal, codes looked up and multiplied)
    NORM    rows * (codes added, a root and a reciprocal, codes of a part multiplied)
    others  ceil(elements * reads / lanes)

``decode`` cycles come before all of it. ``timing.py`` puts the pieces in order. The border of a
padded LD is written while DRAM answers and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from targets.npu.machine import isa
from targets.npu.machine.legality import norm_part
from targets.npu.machine.spec import NpuSpec
from targets.rows import RECIPROCAL_BITS, ROOT_BITS


@dataclass(frozen=True)
class Duration:
    """Cycles of one instruction.

    Attributes:
        warm_up: loading the first tile's weights; what came in under the instruction before is
            not waited for.
        work: the unit is occupied by it.
        spare: of the last cycles of ``work``, those in which the array's second weight buffer is
            free for the first tile of the next instruction.
        drain: from the end of the work, or of the transfer, to completion; the unit is free.
        latency: from the end of decoding to the request of the bus.
        bus: transfer on the bus; 0 for what does not touch DRAM.
    """

    warm_up: int = 0
    work: int = 0
    spare: int = 0
    drain: int = 0
    latency: int = 0
    bus: int = 0


def duration(instruction: isa.Instruction, spec: NpuSpec) -> Duration:
    """Cycles of an instruction on a machine; ``spec.issue.decode`` is not among them."""
    vu, dma, array = spec.vu, spec.dma, spec.array
    match instruction:
        case isa.Load(fill=1):
            return Duration(work=_fill(instruction, spec))
        case isa.Load(transpose=1):
            bus = _transfer(instruction, spec)
            drain = _transposition(instruction, spec, bus)
            return Duration(latency=dma.read_latency, bus=bus, drain=drain)
        case isa.Load():
            return Duration(latency=dma.read_latency, bus=_transfer(instruction, spec))
        case isa.Store():
            return Duration(bus=_transfer(instruction, spec), drain=dma.write_latency)
        case isa.Gemm():
            return _gemm(instruction, spec)
        case isa.Depthwise():
            work = instruction.m0 * instruction.m1 * _taps(instruction, spec)
            return Duration(work=work, spare=work, drain=array.fill_cycles)
        case isa.Requantize():
            lanes = vu.mult_lanes if instruction.multiply else vu.shift_lanes
            pixels = instruction.m0 * instruction.m1
            return Duration(work=pixels * _ceil(instruction.nvalid, lanes), drain=vu.latency)
        case isa.Add():
            return Duration(work=_ceil(2 * instruction.len, vu.elt_lanes), drain=vu.latency)
        case isa.Multiply():
            return Duration(work=_multiply(instruction, spec), drain=vu.latency)
        case isa.Pool(kw=kw, kh=kh):
            reads = instruction.c * instruction.ox * instruction.oy * kh * kw
            return Duration(work=_ceil(reads, vu.pool_lanes), drain=vu.latency)
        case isa.Lut():
            return Duration(work=_ceil(instruction.len, vu.lut_lanes), drain=vu.latency)
        case isa.Softmax(len=length, m0=m0, m1=m1, mult=mult):
            work = m0 * m1 * softmax_row_cycles(length, spec, scaled=mult != 1)
            return Duration(work=work, drain=vu.latency)
        case isa.Norm(len=length, m0=m0, m1=m1, mult=mult):
            part = norm_part(instruction)
            work = m0 * m1 * norm_row_cycles(length, part, spec, scaled=mult != 1)
            return Duration(work=work, drain=vu.latency)
    return Duration()


def softmax_row_cycles(length: int, spec: NpuSpec, *, scaled: bool) -> int:
    """Cycles of one row of SOFTMAX; each pass needs the last result of the one before.

    The exponentials are looked up twice, as a row of them is longer than what a unit would hold. A
    multiplier takes one product of an element at a time: that with the reciprocal, and where the
    sums are ``scaled`` that with the requantizer's multiplier.
    """
    vu = spec.vu
    largest = _ceil(length, vu.pool_lanes) + vu.latency
    total = _ceil(length, vu.lut_lanes) + vu.latency
    reciprocal = _ceil(RECIPROCAL_BITS + 1, vu.root_bits)
    codes = max(_ceil(length, vu.lut_lanes), _ceil(length * (1 + scaled), vu.mult_lanes))
    return largest + total + reciprocal + codes


def norm_row_cycles(length: int, written: int, spec: NpuSpec, *, scaled: bool) -> int:
    """Cycles of one row of NORM: likewise, with products by the reciprocal and by the factor.

    All codes of the row are read, of which so many are written.
    """
    vu = spec.vu
    sums = _ceil(length, vu.elt_lanes) + vu.latency
    root = _ceil(ROOT_BITS // 2, vu.root_bits)
    reciprocal = _ceil(RECIPROCAL_BITS + 1, vu.root_bits)
    return sums + root + reciprocal + _ceil(written * (2 + scaled), vu.mult_lanes)


def _gemm(i: isa.Gemm, spec: NpuSpec) -> Duration:
    array = spec.array
    pixels, tiles = i.m0 * i.m1, i.k0 * i.k1 * i.k2
    fill, weights = array.fill_cycles, array.weight_cycles
    if i.wgt_hold:
        work = max(pixels, array.min_rows)
        return Duration(work=work, spare=work, drain=fill)
    if array.weight_buffers == 1:
        return Duration(work=tiles * (weights + pixels + fill))
    tile = max(pixels, weights, array.min_rows)
    return Duration(warm_up=weights, work=tiles * tile, spare=tile, drain=fill)


def _multiply(i: isa.Multiply, spec: NpuSpec) -> int:
    codes = i.len * i.rows
    read = _ceil(2 * codes, spec.vu.elt_lanes)
    return read if i.mult == 1 else max(read, _ceil(codes, spec.vu.mult_lanes))


def _taps(i: isa.Depthwise, spec: NpuSpec) -> int:
    """Cycles per pixel; sliding registers keep the columns that the next pixel needs again."""
    slides = i.m0 > 1 and i.as_kx > 0 and i.as_m0 % i.as_kx == 0
    if spec.array.dw == "stream" or not slides:
        return i.kh * i.kw
    return i.kh * min(i.kw, i.as_m0 // i.as_kx)


def _transposition(i: isa.Load, spec: NpuSpec, bus: int) -> int:
    """Cycles from the last byte of a transposed transfer until it is written."""
    lines = i.y * i.x_bytes
    last = min(lines if i.dram_ystride == i.x_bytes else i.x_bytes, spec.dma.burst)
    return max(last, lines * _ceil(i.z, _line(i, spec)) - bus)


def _line(i: isa.Load, spec: NpuSpec) -> int:
    sram = spec.sram
    return (sram.act, sram.wgt, sram.acc, sram.par)[i.mem].line


def _fill(i: isa.Load, spec: NpuSpec) -> int:
    """Cycles of writing a constant, one line of the memory in each."""
    rows, row_bytes = i.pad_y0 + i.y + i.pad_y1, i.pad_x0 + i.x_bytes + i.pad_x1
    if rows == 1 or i.spm_ystride == row_bytes:
        rows, row_bytes = 1, rows * row_bytes
    return i.z * rows * _ceil(row_bytes, _line(i, spec))


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
