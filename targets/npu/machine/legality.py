"""What makes an instruction legal, written once for numbers and for TIR expressions.

A rule is a sentence and a margin; the instruction is legal where every margin is at least 0.
Margins are sums, products and shifts of fields, so the same lines check an instruction in Python
(``check``: the compiler, the NumPy simulator) and, over decoded bits, in the executor that TVM
compiles.

A memory operand is the box of bytes between its first and its last one. Boxes that an instruction
reads and writes in the same memory must not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from tvm import tirx

from targets.arithmetic import MAX_SHIFT
from targets.errors import TrapError
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.rows import LONGEST_ROW, ROOT_BITS

Number: TypeAlias = Any
"""int, or a TIR expression of type int64."""
Rule: TypeAlias = tuple[str, Number]
RECORD_BYTES = 12
"""One channel's bias int32, multiplier uint16, 0, 0, shift, residual shift, 0, 0."""
TABLE_BYTES = 256
EXPONENTIALS_BYTES = 512
"""256 uint16 of a softmax."""
EPSILON_BYTES = 8
EPSILON_BITS = 56
"""Of what is added to a variance; the byte above them is the zero point of the codes."""
SCALE_BYTES = 6
"""Of one channel of a norm: a summand int32 and a factor int16."""


def check(
    instruction: isa.Instruction,
    spec: NpuSpec,
    index: int = 0,
    region_bytes: Sequence[int] | None = None,
) -> None:
    """Raise where an instruction is illegal.

    Args:
        instruction: any.
        spec: the machine.
        index: its position, for the error.
        region_bytes: sizes of the four DRAM regions; None leaves their ends unchecked.

    Raises:
        TrapError: names the violated rule.
    """
    for reason, margin in rules(type(instruction), instruction, spec, region_bytes):
        if margin < 0:
            raise TrapError(index, f"{instruction.mnemonic}: {reason}")


def rules(
    kind: type[isa.Instruction], i: Any, spec: NpuSpec, region_bytes: Sequence[Number] | None = None
) -> Iterator[Rule]:
    """The rules of one instruction; ``i`` has its fields as attributes."""
    unit = i.on if kind is isa.Nop else kind.unit
    yield "a unit can't pop a token from itself", -((i.pop >> unit) & 1)
    yield "a unit can't push a token to itself", -((i.push >> unit) & 1)
    if kind in (isa.Load, isa.Store):
        yield from _transfer(kind, i, spec, region_bytes)
    elif kind in _RULES:
        yield from _RULES[kind](i, spec)


def reach(*axes: tuple[Number, Number]) -> Number:
    """Bytes from the first to the last start in a box of (extent, stride) axes."""
    total: Number = 0
    for extent, stride in axes:
        total = total + (extent - 1) * stride
    return total


def tile_shape(i: Any, spec: NpuSpec) -> tuple[Number, Number, Number]:
    """A GEMM tile's reduction lanes, and the bytes of its activations per pixel and its weights."""
    # The wider operand, whose code is the smaller, sets the rate: the minimum of 0, 1, 2.
    code = (i.act_bits * i.wgt_bits + 1) >> 1
    rows, columns = spec.array.rows, spec.array.cols
    lanes = rows * _power(code)
    return lanes, row_bytes(lanes, i.act_bits), row_bytes(lanes * columns, i.wgt_bits)


def code_range(bits_code: Number, unsigned: Number) -> tuple[Number, Number]:
    """Lowest and highest code of a width (given by its flag) and signedness."""
    top = _power((7 - 4 * bits_code + (bits_code >> 1) * 2) & 7)  # 2^7, 2^3, 2^1
    return -(1 - unsigned) * top, top * (1 + unsigned) - 1


def byte_value(byte: Number, unsigned: Number) -> Number:
    """A byte field read as uint8 or int8."""
    return byte - 256 * (byte >> 7) * (1 - unsigned)


def _power(exponent: Number) -> Number:
    return 1 << exponent if isinstance(exponent, int) else tirx.IntImm("int64", 1) << exponent


def _select(index: Number, values: Sequence[Number]) -> Number:
    """``values[index]``, the last one for anything beyond."""
    if isinstance(index, int):
        return values[min(index, len(values) - 1)]
    chosen = _wide(values[-1])
    for n, value in reversed(list(enumerate(values[:-1]))):
        chosen = tirx.Select(index == n, _wide(value), chosen)
    return chosen


def _wide(value: Number) -> Number:
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


def _at_least_one(i: Any, *names: str) -> Iterator[Rule]:
    for name in names:
        yield f"{name} must be at least 1", getattr(i, name) - 1


def _disjoint(what: str, a: Number, a_bytes: Number, b: Number, b_bytes: Number) -> Rule:
    # One of the two distances is negative where the boxes are apart; both are where they meet.
    return f"{what} overlap", -(b - (a + a_bytes)) * (a - (b + b_bytes))


def _transfer(
    kind: type[isa.Instruction], i: Any, spec: NpuSpec, region_bytes: Sequence[Number] | None
) -> Iterator[Rule]:
    sram = spec.sram
    capacity = _select(i.mem, [sram.act.bytes, sram.wgt.bytes, sram.acc.bytes, sram.par.bytes])
    yield from _at_least_one(i, "x_bytes", "y", "z")
    yield "region must be 0 to 3", 3 - i.region
    planes, rows, width, moves = i.z, i.y, i.x_bytes, 1
    if kind is isa.Load:
        turned, border = i.transpose, (i.pad_x0 + i.pad_x1, i.pad_y0 + i.pad_y1)
        planes = planes + turned * (i.y - i.z)
        rows = rows + turned * (i.x_bytes - i.y) + border[1]
        width = width + turned * (i.z - i.x_bytes) + border[0]
        moves = 1 - i.fill
        added = border[0] + border[1] + i.fill
        yield "a transposed transfer has no border and is no fill", -turned * added
    else:
        yield "only the arena and the outputs (regions 1 and 3) can be written", (i.region & 1) - 1
    last = i.spm_addr + reach((planes, i.spm_zstride), (rows, i.spm_ystride)) + width
    yield "the scratchpad ends before the transfer does", capacity - last
    if region_bytes is not None:
        end = i.dram_off + reach((i.z, i.dram_zstride), (i.y, i.dram_ystride)) + i.x_bytes
        room = _select(i.region, region_bytes) - end
        yield "the DRAM region ends before the transfer does", room * moves


def _pixels(i: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield from _at_least_one(i, "m0", "m1", "nvalid")
    yield "nvalid exceeds the columns of the array", spec.array.cols - i.nvalid
    yield "ACC has fewer rows", spec.acc_rows - (i.acc_row + i.m0 * i.m1)


def _gemm(i: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield from _pixels(i, spec)
    yield from _at_least_one(i, "k0", "k1", "k2", "kvalid")
    yield from _operand_widths(i, spec)
    lanes, act_bytes, wgt_bytes = tile_shape(i, spec)
    yield "kvalid exceeds the lanes of a tile", lanes - i.kvalid
    yield "alpha_a exceeds frac", i.frac - i.alpha_a
    yield "alpha_b exceeds frac", i.frac - i.alpha_b
    yield "alpha_sign must be 0, 1 or 2", 2 - i.alpha_sign
    tiles = i.k0 * i.k1 * i.k2
    yield "held weights are one tile", -i.wgt_hold * (tiles - 1)
    box = reach(
        *((i.m0, i.as_m0), (i.m1, i.as_m1)), *((i.k0, i.as_k0), (i.k1, i.as_k1), (i.k2, i.as_k2))
    )
    yield "ACT ends before the activations do", spec.sram.act.bytes - (i.act_addr + box + act_bytes)
    room = spec.sram.wgt.bytes - (i.wgt_addr + tiles * wgt_bytes)
    yield "WGT ends before the weights do", room * (1 - i.wgt_hold)


def _operand_widths(i: Any, spec: NpuSpec) -> Iterator[Rule]:
    for name in ("act_bits", "wgt_bits"):
        code = getattr(i, name)
        yield f"{name} must be 0, 1 or 2", 2 - code
        supported = [0 if width in spec.array.precisions else -1 for width in isa.WIDTHS]
        yield f"the machine does not compute with this {name}", _select(code, supported)


def _depthwise(i: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield from _pixels(i, spec)
    yield from _at_least_one(i, "kw", "kh")
    yield from _operand_widths(i, spec)
    columns = spec.array.cols
    box = reach((i.m0, i.as_m0), (i.m1, i.as_m1), (i.kw, i.as_kx), (i.kh, i.as_ky))
    end = i.act_addr + box + row_bytes(columns, i.act_bits)
    yield "ACT ends before the activations do", spec.sram.act.bytes - end
    end = i.wgt_addr + i.kw * i.kh * row_bytes(columns, i.wgt_bits)
    yield "WGT ends before the weights do", spec.sram.wgt.bytes - end


def row_bytes(elements: Number, bits_code: Number) -> Number:
    """Bytes of packed elements of a width given by its flag."""
    return (elements + _power(bits_code) - 1) >> bits_code


def record_bytes(i: Any) -> Number:
    """From one channel's record to the next: borders of its own follow it."""
    return RECORD_BYTES + (1 - i.one_row) * _row_of_borders(i)


def parameter_bytes(i: Any) -> Number:
    """All that a REQ reads of PAR: a row of borders for all channels follows the last record."""
    return i.nvalid * record_bytes(i) + i.one_row * _row_of_borders(i)


def _row_of_borders(i: Any) -> Number:
    """Bytes of a row in whole words; 0 where it isn't rounded by borders."""
    low, high = (byte_value(x, i.out_unsigned) for x in (i.lo, i.hi))
    return (i.rounding >> 2) * ((high - low + 3) >> 2) * 4


def _requantize(i: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield from _pixels(i, spec)
    yield "rounding must be 0 to 4", 4 - i.rounding
    yield "out_bits must be 0, 1 or 2", 2 - i.out_bits
    yield "res_bits must be 0, 1 or 2", 2 - i.res_bits
    yield from _code_limits(i, i.out_bits, i.out_unsigned)
    low, high = (byte_value(x, i.out_unsigned) for x in (i.lo, i.hi))
    yield "rounding by border needs two levels", (i.rounding >> 2) * (high - low - 1)
    yield "one_row without rounding by border", (i.rounding >> 2) - i.one_row
    end = i.par_addr * 4 + parameter_bytes(i)
    yield "PAR ends before the records do", spec.sram.par.bytes - end
    size = reach((i.m0, i.ds_m0), (i.m1, i.ds_m1)) + row_bytes(i.nvalid, i.out_bits)
    yield "ACT ends before the output does", spec.sram.act.bytes - (i.dst_addr + size)
    res_size = reach((i.m0, i.rs_m0), (i.m1, i.rs_m1)) + row_bytes(i.nvalid, i.res_bits)
    room = spec.sram.act.bytes - (i.res_addr + res_size)
    yield "ACT ends before the residual does", room * i.residual
    reason, margin = _disjoint("residual and output", i.res_addr, res_size, i.dst_addr, size)
    yield reason, margin * i.residual


def _code_limits(i: Any, bits_code: Number, unsigned: Number) -> Iterator[Rule]:
    low, high = byte_value(i.lo, unsigned), byte_value(i.hi, unsigned)
    lowest, highest = code_range(bits_code, unsigned)
    yield "lo exceeds hi", high - low
    yield "lo does not fit the output's width", low - lowest
    yield "hi does not fit the output's width", highest - high


def _add(i: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield from _at_least_one(i, "len")
    yield f"shift exceeds {MAX_SHIFT}", MAX_SHIFT - i.shift
    yield "elem_bits must be 0, 1 or 2", 2 - i.elem_bits
    yield from _code_limits(i, i.elem_bits, i.out_unsigned)
    size = row_bytes(i.len, i.elem_bits)
    for name in ("a_addr", "b_addr", "dst_addr"):
        yield f"{name}: ACT ends first", spec.sram.act.bytes - (getattr(i, name) + size)
    yield _disjoint("a and the output", i.a_addr, size, i.dst_addr, size)
    yield _disjoint("b and the output", i.b_addr, size, i.dst_addr, size)


def _pool(i: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield from _at_least_one(i, "c", "ox", "oy", "kw", "kh", "stride")
    yield "elem_bits must be 0, 1 or 2", 2 - i.elem_bits
    yield f"shift exceeds {MAX_SHIFT}", MAX_SHIFT - i.shift
    x = (i.ox - 1) * i.stride + i.kw
    y = (i.oy - 1) * i.stride + i.kh
    channels = row_bytes(i.c, i.elem_bits)
    source = reach((x, i.ss_x), (y, i.ss_y)) + channels
    target = reach((i.ox, i.ds_x), (i.oy, i.ds_y)) + channels
    yield "ACT ends before the input does", spec.sram.act.bytes - (i.src_addr + source)
    yield "ACT ends before the output does", spec.sram.act.bytes - (i.dst_addr + target)
    yield _disjoint("input and output", i.src_addr, source, i.dst_addr, target)


def _lut(i: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield from _at_least_one(i, "len")
    for name in ("src_addr", "dst_addr"):
        yield f"{name}: ACT ends first", spec.sram.act.bytes - (getattr(i, name) + i.len)
    yield "PAR ends before the table does", spec.sram.par.bytes - (i.lut_addr + TABLE_BYTES)
    yield _disjoint("input and output", i.src_addr, i.len, i.dst_addr, i.len)


def _multiply(i: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield from _at_least_one(i, "len", "rows")
    yield f"shift exceeds {MAX_SHIFT}", MAX_SHIFT - i.shift
    yield from _code_limits(i, 0, i.out_unsigned)
    size = i.len * i.rows
    b_size = reach((i.rows, i.bs_row), (i.len, 1 - i.b_one)) + 1
    for name, bytes_ in (("a_addr", size), ("b_addr", b_size), ("dst_addr", size)):
        yield f"{name}: ACT ends first", spec.sram.act.bytes - (getattr(i, name) + bytes_)
    yield _disjoint("a and the output", i.a_addr, size, i.dst_addr, size)
    yield _disjoint("b and the output", i.b_addr, b_size, i.dst_addr, size)


def _softmax(i: Any, spec: NpuSpec) -> Iterator[Rule]:
    yield from _rows(i, spec, i.len)
    end = i.par_addr * 4 + EXPONENTIALS_BYTES
    yield "PAR ends before the table does", spec.sram.par.bytes - end


def norm_part(i: Any) -> Number:
    """Codes of a row that a NORM writes."""
    return i.len // (i.cuts + 1)


def _norm(i: Any, spec: NpuSpec) -> Iterator[Rule]:
    part = norm_part(i)
    yield from _rows(i, spec, part)
    yield "the parts of a row are not equal", part * (i.cuts + 1) - i.len
    yield "part exceeds cuts", i.cuts - i.part
    yield f"lift exceeds {ROOT_BITS // 2}", ROOT_BITS // 2 - i.lift
    end = i.par_addr * 4 + EPSILON_BYTES + part * SCALE_BYTES
    yield "PAR ends before the factors do", spec.sram.par.bytes - end


def _rows(i: Any, spec: NpuSpec, written: Number) -> Iterator[Rule]:
    yield from _at_least_one(i, "len", "m0", "m1")
    yield f"len exceeds {LONGEST_ROW}", LONGEST_ROW - i.len
    yield f"shift exceeds {MAX_SHIFT}", MAX_SHIFT - i.shift
    yield from _code_limits(i, 0, i.out_unsigned)
    source = reach((i.m0, i.ss_m0), (i.m1, i.ss_m1)) + i.len
    target = reach((i.m0, i.ds_m0), (i.m1, i.ds_m1)) + written
    yield "ACT ends before the input does", spec.sram.act.bytes - (i.src_addr + source)
    yield "ACT ends before the output does", spec.sram.act.bytes - (i.dst_addr + target)
    yield _disjoint("input and output", i.src_addr, source, i.dst_addr, target)


_RULES: dict[type[isa.Instruction], Callable[[Any, NpuSpec], Iterator[Rule]]] = {
    isa.Gemm: _gemm,
    isa.Depthwise: _depthwise,
    isa.Requantize: _requantize,
    isa.Add: _add,
    isa.Pool: _pool,
    isa.Lut: _lut,
    isa.Multiply: _multiply,
    isa.Softmax: _softmax,
    isa.Norm: _norm,
}
