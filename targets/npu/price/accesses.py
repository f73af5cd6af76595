"""What an instruction computes and moves: MACs, bytes of DRAM, elements of the scratchpads.

Only lanes and columns with data count; the border that LD writes is no DRAM traffic. A GEMM says of
its last k0 tile alone how many lanes have data: where a kernel of more than 31 rows or columns and
few channels has its taps on k0, all but the last count as full.
"""

from __future__ import annotations

from dataclasses import dataclass

from targets.npu.machine import isa
from targets.npu.machine.legality import (
    EPSILON_BYTES,
    SCALE_BYTES,
    norm_part,
    parameter_bytes,
    row_bytes,
)
from targets.npu.machine.spec import NpuSpec
from targets.rounding import RoundingMode


@dataclass(frozen=True)
class Accesses:
    """Counts of one instruction.

    Attributes:
        macs: products of valid lanes and columns.
        dram_bytes: between DRAM and a memory.
        spm_bytes: read from and written to ACT, WGT and PAR.
        act_elements: activations read by the MAC array.
        wgt_elements: weights read by the MAC array.
        acc_sums: int32 sums written to ACC by the MAC array.
        acc_bytes: read from and written to ACC.
        outputs: codes that the vector unit writes.
    """

    macs: int = 0
    dram_bytes: int = 0
    spm_bytes: int = 0
    act_elements: int = 0
    wgt_elements: int = 0
    acc_sums: int = 0
    acc_bytes: int = 0
    outputs: int = 0


def accesses(instruction: isa.Instruction, spec: NpuSpec) -> Accesses:
    """What an instruction touches on a machine."""
    match instruction:
        case isa.Load() | isa.Store():
            return _transfer(instruction)
        case isa.Gemm():
            return _gemm(instruction, spec)
        case isa.Depthwise(m0=m0, m1=m1, kw=kw, kh=kh, nvalid=channels):
            taps = m0 * m1 * kw * kh * channels
            return _sums(instruction, taps, taps, kw * kh * channels, passes=1)
        case isa.Requantize(m0=m0, m1=m1, nvalid=channels):
            codes = m0 * m1 * channels
            written = m0 * m1 * row_bytes(channels, instruction.out_bits)
            residual = m0 * m1 * row_bytes(channels, instruction.res_bits)
            read = residual if instruction.residual else 0
            borders = codes if instruction.rounding == RoundingMode.BORDER else 0
            return Accesses(
                spm_bytes=written + read + borders + parameter_bytes(instruction),
                acc_bytes=4 * codes,
                outputs=codes,
            )
        case isa.Add(len=length):
            packed = row_bytes(length, instruction.elem_bits)
            return Accesses(spm_bytes=3 * packed, outputs=length)
        case isa.Multiply(len=length, rows=rows):
            right = rows if instruction.b_one else length * rows
            codes = length * rows
            return Accesses(macs=codes, spm_bytes=2 * codes + right, outputs=codes)
        case isa.Pool(c=c, ox=ox, oy=oy, kw=kw, kh=kh):
            pixel = row_bytes(c, instruction.elem_bits)
            return Accesses(spm_bytes=pixel * ox * oy * (kw * kh + 1), outputs=c * ox * oy)
        case isa.Lut(len=length):
            return Accesses(spm_bytes=3 * length, outputs=length)
        case isa.Softmax(len=length, m0=m0, m1=m1):
            # Codes are read by all three passes and written by the last, exponentials read by two.
            codes = m0 * m1 * length
            return Accesses(spm_bytes=(3 + 1 + 2 * 2) * codes, outputs=codes)
        case isa.Norm(len=length, m0=m0, m1=m1):
            # No unit holds the factors of a whole row: they are read anew for each.
            codes = m0 * m1 * norm_part(instruction)
            touched = m0 * m1 * length + (1 + 1 + SCALE_BYTES) * codes + EPSILON_BYTES
            return Accesses(spm_bytes=touched, outputs=codes)
    return Accesses()


def dram_bytes(instruction: isa.Instruction) -> int:
    """Bytes that an instruction moves between DRAM and a memory."""
    if isinstance(instruction, isa.Load | isa.Store):
        return _transfer(instruction).dram_bytes
    return 0


def lanes(instruction: isa.Gemm | isa.Depthwise, spec: NpuSpec) -> int:
    """Elements of a reduction tile: R * 8 / max(operand widths)."""
    widest = max(isa.WIDTHS[instruction.act_bits], isa.WIDTHS[instruction.wgt_bits])
    return spec.array.lanes(widest)


def _transfer(i: isa.Load | isa.Store) -> Accesses:
    payload = i.x_bytes * i.y * i.z
    if isinstance(i, isa.Store):
        return Accesses(dram_bytes=payload, spm_bytes=payload)
    written = (i.pad_x0 + i.x_bytes + i.pad_x1) * (i.pad_y0 + i.y + i.pad_y1) * i.z
    return Accesses(dram_bytes=0 if i.fill else payload, spm_bytes=written)


def _gemm(i: isa.Gemm, spec: NpuSpec) -> Accesses:
    passes = i.k0 * i.k1 * i.k2
    # Only the last of the k0 tiles of a kernel tap may be partly filled.
    depth = i.k1 * i.k2 * ((i.k0 - 1) * lanes(i, spec) + i.kvalid)
    pixels = i.m0 * i.m1
    weights = 0 if i.wgt_hold else depth * i.nvalid
    return _sums(i, pixels * depth * i.nvalid, pixels * depth, weights, passes)


def _sums(
    i: isa.Gemm | isa.Depthwise, products: int, activations: int, weights: int, passes: int
) -> Accesses:
    sums = i.m0 * i.m1 * i.nvalid * passes
    read = sums - (i.m0 * i.m1 * i.nvalid if i.acc_init else 0)
    bits = activations * isa.WIDTHS[i.act_bits] + weights * isa.WIDTHS[i.wgt_bits]
    return Accesses(
        macs=products,
        spm_bytes=bits // 8,
        act_elements=activations,
        wgt_elements=weights,
        acc_sums=sums,
        acc_bytes=4 * (sums + read),
    )
