"""What an instruction must satisfy before it runs, stated once for the compiler, the simulator and the executor.

The rules are arithmetic on field values, so that the same lines serve Python integers and TIR expressions: a rule that
depends on a flag multiplies by it. What depends on the contents of PAR is checked by whoever reads the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from targets.npu import isa
from targets.npu.spec import NpuSpec

MAX_SHIFT = 47
MAX_RECORD_SHIFT = 15
MAX_RESIDUAL_SHIFT = 31
RECORD_BYTES = 12

Number: TypeAlias = Any
"""A Python integer or a TIR expression."""
Rule: TypeAlias = tuple[Any, str]
"""Whether it holds, and what to say if not."""
Pick: TypeAlias = Callable[[Number, Sequence[Number]], Number]
"""Element ``index`` of a sequence; the last one where the index lies beyond."""


def check(
    instruction: isa.Instruction, spec: NpuSpec, regions: Sequence[int] | None = None
) -> str | None:
    """Why the machine would trap on an instruction, or None.

    Args:
        instruction: fields as numbers; each fits its width.
        spec: the machine.
        regions: bytes of constants, arena, inputs, outputs; without them DRAM offsets are not checked.
    """
    for holds, reason in rules(type(instruction), instruction, spec, regions, _pick):
        if not holds:
            return f"{instruction.mnemonic}: {reason}"
    return None


def _pick(index: int, values: Sequence[int]) -> int:
    return values[min(index, len(values) - 1)]


def rules(
    kind: type[isa.Instruction],
    f: Any,
    spec: NpuSpec,
    regions: Sequence[Number] | None,
    pick: Pick,
) -> Iterator[Rule]:
    """The rules of one kind of instruction; ``f`` has a field per attribute."""
    if kind in (isa.Load, isa.Store):
        yield from _dma(kind, f, spec, regions, pick)
    elif kind is isa.Gemm:
        yield from _gemm(f, spec)
    elif kind is isa.Depthwise:
        yield from _depthwise(f, spec)
    elif kind is isa.Requantize:
        yield from _requantize(f, spec)
    elif kind is isa.Pool:
        yield from _pool(f, spec)
    elif kind is isa.Add:
        yield f.len >= 1, "no elements"
        for address in (f.a_addr, f.b_addr, f.dst_addr):
            yield address + f.len <= spec.sram.act.bytes, "an operand lies outside ACT"
        yield f.shift <= MAX_SHIFT, f"shift beyond {MAX_SHIFT}"
    elif kind is isa.Lut:
        yield f.len >= 1, "no elements"
        for address in (f.src_addr, f.dst_addr):
            yield address + f.len <= spec.sram.act.bytes, "an operand lies outside ACT"
        yield f.lut_addr + 256 <= spec.sram.par.bytes, "the table lies outside PAR"


def product_lanes(f: Any, rows: int) -> Number:
    """Lanes of a tile: ``rows``, twice or four times as many if both operands have 4 or 2 bits."""
    return rows << ((f.act_bits * f.wgt_bits + 1) >> 1)  # the smaller code, of 0, 1, 2


def packed_bytes(elements: Number, code: Number) -> Number:
    """Bytes of packed elements of a width given by its code."""
    return ((elements << 3 >> code) + 7) >> 3


def _dma(
    kind: type[isa.Instruction],
    f: Any,
    spec: NpuSpec,
    regions: Sequence[Number] | None,
    pick: Pick,
) -> Iterator[Rule]:
    yield f.x_bytes >= 1, "x_bytes is zero"
    yield f.y >= 1, "y is zero"
    yield f.z >= 1, "z is zero"
    width, height, fill = f.x_bytes, f.y, 0
    if kind is isa.Load:
        width, height, fill = f.pad_x0 + width + f.pad_x1, f.pad_y0 + height + f.pad_y1, f.fill
    sram = spec.sram
    memories = [m.bytes for m in (sram.act, sram.wgt, sram.acc, sram.par)]
    end = f.spm_addr + (f.z - 1) * f.spm_zstride + (height - 1) * f.spm_ystride + width
    yield end <= pick(f.mem, memories), "the box lies outside the memory"
    yield f.region <= 3, "unknown region"
    if kind is isa.Store:
        yield pick(f.region, (0, 1, 0, 1)) == 1, "the region is read-only"
    if regions is not None:
        end = f.dram_off + (f.z - 1) * f.dram_zstride + (f.y - 1) * f.dram_ystride + f.x_bytes
        yield (1 - fill) * end <= pick(f.region, regions), "the box lies outside the region"


def _pixels(f: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield f.m0 >= 1, "m0 is zero"
    yield f.m1 >= 1, "m1 is zero"
    yield f.acc_row + f.m0 * f.m1 <= spec.acc_rows, "accumulator rows lie outside ACC"
    yield f.nvalid >= 1, "nvalid is zero"
    yield f.nvalid <= spec.array.cols, "nvalid exceeds the columns"


def _operands(f: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield f.act_bits <= 2, "unknown operand width"
    yield f.wgt_bits <= 2, "unknown operand width"
    for code, width in enumerate(isa.WIDTHS):
        if width not in spec.array.precisions:
            for operand in (f.act_bits, f.wgt_bits):
                yield operand != code, f"the machine has no {width}-bit operands"


def _gemm(f: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield from _pixels(f, spec)
    yield from _operands(f, spec)
    yield f.wgt_hold == 0, "wgt_hold is reserved"
    yield f.k0 >= 1, "k0 is zero"
    yield f.k1 >= 1, "k1 is zero"
    yield f.k2 >= 1, "k2 is zero"
    lanes = product_lanes(f, spec.array.rows)
    yield f.kvalid >= 1, "kvalid is zero"
    yield f.kvalid <= lanes, "kvalid exceeds the lanes"
    reach = (f.m1 - 1) * f.as_m1 + (f.m0 - 1) * f.as_m0
    reach = reach + (f.k2 - 1) * f.as_k2 + (f.k1 - 1) * f.as_k1 + (f.k0 - 1) * f.as_k0
    yield (
        f.act_addr + reach + packed_bytes(lanes, f.act_bits) <= spec.sram.act.bytes,
        "activations lie outside ACT",
    )
    tile = packed_bytes(lanes * spec.array.cols, f.wgt_bits)
    yield f.wgt_addr + f.k0 * f.k1 * f.k2 * tile <= spec.sram.wgt.bytes, "weights lie outside WGT"
    yield f.alpha_a <= f.frac, "alpha_a exceeds frac"
    yield f.alpha_b <= f.frac, "alpha_b exceeds frac"
    yield f.alpha_sign <= 2, "unknown alpha_sign"


def _depthwise(f: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield from _pixels(f, spec)
    yield from _operands(f, spec)
    yield f.kw >= 1, "kw is zero"
    yield f.kh >= 1, "kh is zero"
    reach = (f.m1 - 1) * f.as_m1 + (f.m0 - 1) * f.as_m0
    reach = reach + (f.kh - 1) * f.as_ky + (f.kw - 1) * f.as_kx
    row = packed_bytes(f.nvalid, f.act_bits)
    yield f.act_addr + reach + row <= spec.sram.act.bytes, "activations lie outside ACT"
    weights = packed_bytes(f.kh * f.kw * spec.array.cols, f.wgt_bits)
    yield f.wgt_addr + weights <= spec.sram.wgt.bytes, "weights lie outside WGT"


def _requantize(f: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield from _pixels(f, spec)
    yield f.rounding <= isa.BORDER, "unknown rounding"
    yield f.out_bits <= 2, "unknown output width"
    yield f.shift <= MAX_SHIFT, f"shift beyond {MAX_SHIFT}"
    yield f.par_addr * 4 + f.nvalid * RECORD_BYTES <= spec.sram.par.bytes, "records lie outside PAR"
    row = packed_bytes(f.nvalid, f.out_bits)
    act = spec.sram.act.bytes
    reach = (f.m1 - 1) * f.ds_m1 + (f.m0 - 1) * f.ds_m0
    yield f.dst_addr + reach + row <= act, "the destination lies outside ACT"
    reach = (f.m1 - 1) * f.rs_m1 + (f.m0 - 1) * f.rs_m0
    yield f.residual * (f.res_addr + reach + f.nvalid) <= act, "the residual lies outside ACT"


def _pool(f: Any, spec: NpuSpec) -> Iterator[Rule]:
    for name in ("c", "ox", "oy", "kw", "kh", "stride"):
        yield getattr(f, name) >= 1, f"{name} is zero"
    yield f.shift <= MAX_SHIFT, f"shift beyond {MAX_SHIFT}"
    x = (f.ox - 1) * f.stride + f.kw - 1
    y = (f.oy - 1) * f.stride + f.kh - 1
    act = spec.sram.act.bytes
    yield f.src_addr + y * f.ss_y + x * f.ss_x + f.c <= act, "the source lies outside ACT"
    reach = (f.oy - 1) * f.ds_y + (f.ox - 1) * f.ds_x
    yield f.dst_addr + reach + f.c <= act, "the destination lies outside ACT"
