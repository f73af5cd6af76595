"""Codes as instructions of VU: REQ, POOL, VADD, VMUL, LUT, SOFTMAX and NORM.

An encoder returns None where the loops are not of the shape that the instruction has.
"""

from __future__ import annotations

from targets.npu.emit.call_nest import Axis, Call, pad, rows_fit, span
from targets.npu.emit.emitted import ACC, ACT, PAR, Emitted
from targets.npu.emit.touched_bytes import Span
from targets.npu.machine import isa
from targets.npu.machine.legality import EPSILON_BYTES, EXPONENTIALS_BYTES, SCALE_BYTES
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.meanings import AddFields, MaxFields, MultiplyFields, RequantizeRow
from targets.npu.schedule.row_meanings import NormFields, RowFields


def encode_requantize(call: Call, spec: NpuSpec) -> Emitted | None:
    """One REQ: up to two pixel loops, or None."""
    f: RequantizeRow = call.fields
    residual = bool(f.residual_dtype)
    acc, par, res, out = 0, 1, 2, 2 + residual
    if len(call.axes) > 2:
        return None
    m1, m0 = pad(call.axes, 2, out + 1)
    columns = spec.array.cols
    # pixels of one column tile: those of another have other records
    if m0.strides[par] or m1.strides[par] or not rows_fit((m1, m0), acc, columns):
        return None
    instruction = isa.Requantize(
        rounding=f.rounding,
        multiply=f.multiplier,
        residual=residual,
        residual_unsigned=f.residual_dtype == "uint8",
        out_unsigned=f.dtype == "uint8",
        out_bits=isa.WIDTHS.index(f.bits),
        res_bits=isa.WIDTHS.index(f.bits) if residual else 0,
        one_row=f.one_row,
        acc_row=call.starts[acc] // (columns * 4),
        m0=m0.extent,
        m1=m1.extent,
        dst_addr=call.starts[out],
        ds_m0=m0.strides[out],
        ds_m1=m1.strides[out],
        par_addr=call.starts[par] // 4,
        shift=f.shift,
        zp=f.zero_point & 0xFF,
        lo=f.low & 0xFF,
        hi=f.high & 0xFF,
        nvalid=f.channels,
        res_addr=call.starts[res] if residual else 0,
        rs_m0=m0.strides[res] if residual else 0,
        rs_m1=m1.strides[res] if residual else 0,
        res_zp=f.residual_zero_point & 0xFF,
        res_mult=f.residual_multiplier,
    )
    if not isa.fits(instruction):
        return None
    axes = (m1, m0)
    rows = m0.extent * m1.extent
    reads = [
        Span(f"mem{ACC}", call.starts[acc], call.starts[acc] + rows * columns * 4),
        Span(f"mem{PAR}", call.starts[par], call.starts[par] + f.parameter_words(f.channels) * 4),
    ]
    row = f.channels * f.bits // 8
    if residual:
        reads.append(span(ACT, call, axes, res, row))
    return Emitted(instruction, tuple(reads), (span(ACT, call, axes, out, row),))


def encode_pool(call: Call, _spec: NpuSpec) -> Emitted | None:
    """One POOL: up to two kernel loops and two pixel loops, channels innermost, or None."""
    src, dst = 0, 1
    kernel = tuple(a for a in call.axes if a.strides[dst] == 0)
    spatial = [a for a in call.axes if a.strides[dst] != 0]
    channels = spatial.pop().extent if spatial and spatial[-1].strides == (1, 1) else 1
    if len(kernel) > 2 or len(spatial) > 2:
        return None
    y, x = pad(tuple(spatial), 2, 2)
    ky, kx = pad(kernel, 2, 2)
    steps = _pool_steps(ky, kx, y, x)
    if steps is None:
        return None
    stride, ss_y, ss_x = steps
    f: MaxFields = call.fields
    pool = isa.Pool(
        unsigned=f.dtype == "uint8",
        elem_bits=isa.WIDTHS.index(f.bits),
        src_addr=call.starts[src],
        dst_addr=call.starts[dst],
        c=channels * 8 // f.bits,
        ox=x.extent,
        oy=y.extent,
        ss_x=ss_x,
        ss_y=ss_y,
        ds_x=x.strides[dst],
        ds_y=y.strides[dst],
        kw=kx.extent,
        kh=ky.extent,
        stride=stride,
    )
    if not isa.fits(pool):
        return None
    reads = span(ACT, call, (y, x, ky, kx), src, channels)
    return Emitted(pool, (reads,), (span(ACT, call, (y, x), dst, channels),))


def _pool_steps(ky: Axis, kx: Axis, y: Axis, x: Axis) -> tuple[int, int, int] | None:
    """(stride, ss_y, ss_x): pixel loops step ``stride`` times as far as kernel loops; or None."""
    for stride in range(1, 16):
        steps = []
        for kernel, pixel in ((ky, y), (kx, x)):
            tap = kernel.strides[0] if kernel.extent > 1 else None
            far = pixel.strides[0] if pixel.extent > 1 else None
            if tap is None:
                tap = (far or 0) // stride
            if far is not None and far != tap * stride:
                break
            steps.append(tap)
        if len(steps) == 2:
            return stride, steps[0], steps[1]
    return None


def encode_add(call: Call, _spec: NpuSpec) -> Emitted | None:
    """One VADD: a dense run, or None."""
    f: AddFields = call.fields
    length = _run_length(call)
    if length is None:
        return None
    instruction = isa.Add(
        a_unsigned=f.a_dtype == "uint8",
        b_unsigned=f.b_dtype == "uint8",
        out_unsigned=f.dtype == "uint8",
        elem_bits=isa.WIDTHS.index(f.bits),
        a_addr=call.starts[0],
        b_addr=call.starts[1],
        dst_addr=call.starts[2],
        len=length * 8 // f.bits,
        za=f.a_zero_point & 0xFF,
        zb=f.b_zero_point & 0xFF,
        zo=f.zero_point & 0xFF,
        sa=f.a_shift,
        sb=f.b_shift,
        shift=f.shift,
        lo=f.low & 0xFF,
        hi=f.high & 0xFF,
        ma=f.a_multiplier,
        mb=f.b_multiplier,
    )
    return _elementwise(instruction, call, length)


def encode_multiply(call: Call, _spec: NpuSpec) -> Emitted | None:
    """One VMUL: rows, dense but for the right operand, or None."""
    f: MultiplyFields = call.fields
    if len(call.axes) > 2:
        return None
    row, code = pad(call.axes, 2, 3) if call.axes else (Axis(1, (0, 0, 0)), Axis(1, (1, 1, 1)))
    (a_row, b_row, out_row), (a_code, b_code, out_code) = row.strides, code.strides
    dense = a_code == out_code == 1 and (row.extent == 1 or a_row == out_row == code.extent)
    if not dense or b_code not in (0, 1):
        return None
    a, b, target = call.starts
    instruction = isa.Multiply(
        a_unsigned=f.a_dtype == "uint8",
        b_unsigned=f.b_dtype == "uint8",
        out_unsigned=f.dtype == "uint8",
        b_one=b_code == 0,
        a_addr=a,
        b_addr=b,
        dst_addr=target,
        len=code.extent,
        rows=row.extent,
        bs_row=b_row,
        za=f.a_zero_point & 0xFF,
        zb=f.b_zero_point & 0xFF,
        zo=f.zero_point & 0xFF,
        left=f.left,
        shift=f.shift,
        lo=f.low & 0xFF,
        hi=f.high & 0xFF,
        mult=f.multiplier,
    )
    if not isa.fits(instruction):
        return None
    reads = tuple(span(ACT, call, (row, code), pointer, 1) for pointer in (0, 1))
    return Emitted(instruction, reads, (span(ACT, call, (row, code), 2, 1),))


def encode_lut(call: Call, _spec: NpuSpec) -> Emitted | None:
    """One LUT: a dense run, or None."""
    length = _run_length(call)
    if length is None:
        return None
    source, table, target = call.starts
    instruction = isa.Lut(src_addr=source, dst_addr=target, len=length, lut_addr=table)
    run = Call((source, target), call.axes, None, initialise=False)
    emitted = _elementwise(instruction, run, length)
    return Emitted(
        instruction, (*emitted.reads, Span(f"mem{PAR}", table, table + 256)), emitted.writes
    )


def encode_softmax(call: Call, _spec: NpuSpec) -> Emitted | None:
    """One SOFTMAX: up to two loops over rows, or None."""
    return _encode_rows(isa.Softmax, call, EXPONENTIALS_BYTES, call.fields.length)


def encode_norm(call: Call, _spec: NpuSpec) -> Emitted | None:
    """One NORM: likewise."""
    f: NormFields = call.fields
    return _encode_rows(
        isa.Norm,
        call,
        EPSILON_BYTES + f.written * SCALE_BYTES,
        f.written,
        cuts=f.cuts,
        part=f.part,
        lift=f.lift,
        fraction=f.normed_fraction,
        whole=not f.centred,
    )


def _encode_rows(
    kind: type[isa.Rows], call: Call, parameter_bytes: int, written: int, **own: int
) -> Emitted | None:
    f: RowFields = call.fields
    src, par, dst = range(3)
    if len(call.axes) > 2:
        return None
    axes = m1, m0 = pad(call.axes, 2, 3)
    instruction = kind(
        in_unsigned=f.input_dtype == "uint8",
        out_unsigned=f.dtype == "uint8",
        rounding=int(f.rounding),
        src_addr=call.starts[src],
        dst_addr=call.starts[dst],
        len=f.length,
        m0=m0.extent,
        m1=m1.extent,
        ss_m0=m0.strides[src],
        ss_m1=m1.strides[src],
        ds_m0=m0.strides[dst],
        ds_m1=m1.strides[dst],
        par_addr=call.starts[par] // 4,
        frac=f.fraction,
        mult=f.multiplier,
        shift=f.shift,
        zp=f.zero_point & 0xFF,
        lo=f.low & 0xFF,
        hi=f.high & 0xFF,
        **own,
    )
    if not isa.fits(instruction):
        return None
    table = call.starts[par]
    reads = (
        span(ACT, call, axes, src, f.length),
        Span(f"mem{PAR}", table, table + parameter_bytes),
    )
    return Emitted(instruction, reads, (span(ACT, call, axes, dst, written),))


def _run_length(call: Call) -> int | None:
    """Elements of a run that is dense in every tensor (a table does not move), or None."""
    if not call.axes:
        return 1
    if len(call.axes) > 1 or not set(call.axes[0].strides) <= {0, 1}:
        return None
    return call.axes[0].extent


def _elementwise(instruction: isa.Instruction, call: Call, length: int) -> Emitted:
    *sources, target = call.starts
    reads = tuple(Span(f"mem{ACT}", s, s + length) for s in sources)
    return Emitted(instruction, reads, (Span(f"mem{ACT}", target, target + length),))
