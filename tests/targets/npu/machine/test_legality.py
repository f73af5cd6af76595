"""Memories may be used to their last byte; one further, and the rule is named.

The executor and the simulator check by the same rules, so that comparing the two says nothing about
the rules.
"""

from dataclasses import replace

import pytest

from targets.errors import TrapError
from targets.npu.machine import isa
from targets.npu.machine.legality import check
from targets.npu.machine.spec import load_spec

SPEC = load_spec("e256")
ACT, WGT, PAR = SPEC.sram.act.bytes, SPEC.sram.wgt.bytes, SPEC.sram.par.bytes
R, C = SPEC.array.rows, SPEC.array.cols
GEMM = isa.Gemm(m0=1, m1=1, k0=1, k1=1, k2=1, kvalid=R, nvalid=C)
DWC = isa.Depthwise(m0=1, m1=1, kw=1, kh=1, nvalid=C)
REQ = isa.Requantize(m0=1, m1=1, nvalid=C, lo=0, hi=255, out_unsigned=1, dst_addr=64)
OWN = replace(REQ, rounding=4, hi=13)
SHARED = replace(OWN, one_row=1)
ADD = isa.Add(len=64, lo=0, hi=255, out_unsigned=1, b_addr=64, dst_addr=128)
POOL = isa.Pool(c=64, ox=1, oy=1, kw=1, kh=1, stride=1, dst_addr=64)
LUT = isa.Lut(len=64, dst_addr=64)
SOFTMAX = isa.Softmax(len=64, m0=2, ss_m0=64, ds_m0=64, dst_addr=128, hi=100)
NORM = isa.Norm(len=64, m1=2, ss_m1=64, ds_m1=64, dst_addr=128, hi=100)
MUL = isa.Multiply(len=16, rows=4, lo=0, hi=255, out_unsigned=1, b_addr=64, dst_addr=128)
TURNED = isa.Load(transpose=1, x_bytes=10, y=3, z=4, spm_ystride=7, spm_zstride=100)
LD = isa.Load(x_bytes=64, y=1, z=1)
ST = isa.Store(x_bytes=64, y=1, z=1, region=1)


@pytest.mark.parametrize(
    ("instruction", "field", "last", "words"),
    [
        (replace(GEMM, m0=4, m1=2), "acc_row", SPEC.acc_rows - 8, "ACC has fewer rows"),
        (GEMM, "kvalid", R, "kvalid exceeds the lanes"),
        (replace(GEMM, act_bits=1, wgt_bits=1), "kvalid", 2 * R, "kvalid exceeds the lanes"),
        (GEMM, "nvalid", C, "nvalid exceeds the columns"),
        (replace(GEMM, frac=3), "alpha_a", 3, "alpha_a exceeds frac"),
        (GEMM, "act_addr", ACT - R, "ACT ends before the activations"),
        (replace(GEMM, k0=2), "wgt_addr", WGT - 2 * R * C, "WGT ends before the weights"),
        (DWC, "act_addr", ACT - C, "ACT ends before the activations"),
        (replace(DWC, kw=3, kh=3), "wgt_addr", WGT - 9 * C, "WGT ends before the weights"),
        (REQ, "par_addr", (PAR - 12 * C) // 4, "PAR ends before the records"),
        (OWN, "par_addr", (PAR - (12 + 16) * C) // 4, "PAR ends before the records"),
        (SHARED, "par_addr", (PAR - 12 * C - 16) // 4, "PAR ends before the records"),
        (replace(OWN, rounding=1), "one_row", 0, "one_row without rounding by border"),
        (REQ, "dst_addr", ACT - C, "ACT ends before the output"),
        (replace(REQ, residual=1), "res_addr", 64 - C, "residual and output overlap"),
        (ADD, "shift", 47, "shift exceeds 47"),
        (ADD, "a_addr", 64, "a and the output overlap"),
        (ADD, "dst_addr", ACT - 64, "dst_addr: ACT ends first"),
        (MUL, "shift", 47, "shift exceeds 47"),
        (MUL, "a_addr", 64, "a and the output overlap"),
        (replace(MUL, bs_row=16), "b_addr", 64, "b and the output overlap"),
        (replace(MUL, b_one=1, bs_row=3), "b_addr", 128 - 10, "b and the output overlap"),
        (MUL, "dst_addr", ACT - 64, "dst_addr: ACT ends first"),
        (TURNED, "spm_addr", ACT - 2 * 100 - 9 * 7 - 4, "the scratchpad ends"),
        (replace(TURNED, dram_ystride=20), "dram_off", 50, "the DRAM region ends"),
        (TURNED, "pad_x0", 0, "no border"),
        (TURNED, "fill", 0, "no border and is no fill"),
        (POOL, "src_addr", 0, "input and output overlap"),
        (POOL, "dst_addr", ACT - 64, "ACT ends before the output"),
        (LUT, "src_addr", 0, "input and output overlap"),
        (LUT, "lut_addr", PAR - 256, "PAR ends before the table"),
        (SOFTMAX, "src_addr", 0, "input and output overlap"),
        (SOFTMAX, "dst_addr", ACT - 128, "ACT ends before the output"),
        (replace(SOFTMAX, dst_addr=0), "src_addr", ACT - 128, "ACT ends before the input"),
        (SOFTMAX, "par_addr", (PAR - 512) // 4, "PAR ends before the table"),
        (SOFTMAX, "shift", 47, "shift exceeds 47"),
        (replace(SOFTMAX, m0=1, dst_addr=1 << 16), "len", 1 << 15, "len exceeds 32768"),
        (NORM, "src_addr", 0, "input and output overlap"),
        (NORM, "dst_addr", ACT - 128, "ACT ends before the output"),
        (NORM, "par_addr", (PAR - 8 - 6 * 64) // 4, "PAR ends before the factors"),
        (replace(NORM, cuts=3), "par_addr", (PAR - 8 - 6 * 16) // 4, "PAR ends before the factors"),
        (replace(NORM, cuts=3), "dst_addr", ACT - 64 - 16, "ACT ends before the output"),
        (replace(NORM, cuts=3), "part", 3, "part exceeds cuts"),
        (replace(NORM, len=15), "cuts", 0, "the parts of a row are not equal"),
        (NORM, "lift", 26, "lift exceeds 26"),
        (NORM, "hi", 127, "lo exceeds hi"),
        (LD, "spm_addr", ACT - 64, "the scratchpad ends"),
        (replace(LD, pad_x0=3, pad_x1=5), "spm_addr", ACT - 72, "the scratchpad ends"),
        (replace(LD, region=2), "dram_off", 36, "the DRAM region ends"),
        (ST, "dram_off", 36, "the DRAM region ends"),
    ],
)
def test_a_memory_is_used_to_its_end_and_no_further(instruction, field, last, words):
    regions = (100, 100, 100, 100)
    check(replace(instruction, **{field: last}), SPEC, region_bytes=regions)
    with pytest.raises(TrapError, match=words):
        check(replace(instruction, **{field: last + 1}), SPEC, region_bytes=regions)


def test_boxes_that_meet_from_the_other_side_overlap():
    check(replace(LUT, src_addr=64, dst_addr=0), SPEC)
    with pytest.raises(TrapError, match="input and output overlap"):
        check(replace(LUT, src_addr=63, dst_addr=0), SPEC)
    with pytest.raises(TrapError, match="input and output overlap"):
        check(replace(LUT, len=1, src_addr=0, dst_addr=0), SPEC)
