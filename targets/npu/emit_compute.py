"""Calls of compute intrinsics as instructions: the loops around a call become its hardware loops.

Each ``_encode_*`` returns None where the loops are not of the shape that the instruction has; the
outermost loop is
then unrolled and the rest tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from targets.errors import ArithmeticRangeError
from targets.npu import isa
from targets.npu.emitted import ACC, ACT, PAR, WGT, Emitted, Place, reach
from targets.npu.intrinsics import RECORD_WORDS
from targets.npu.loop_tree import Env, Leaf
from targets.npu.spec import NpuSpec
from targets.npu.tokens import Span


@dataclass(frozen=True)
class Axis:
    """A loop around a call: its extent and, per pointer of the call, its stride in elements."""

    extent: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """An intrinsic's call in its loops.

    Attributes:
        starts: byte address of each pointer.
        axes: outermost first; loops of extent 1 left out.
        immediates: the integers of the call.
        initialise: whether the sums start at zero.
    """

    starts: tuple[int, ...]
    axes: tuple[Axis, ...]
    immediates: tuple[int, ...]
    initialise: bool


def emit_call(
    leaf: Leaf, env: Env, places: dict[str, Place], spec: NpuSpec, *, initialise: bool
) -> list[Emitted]:
    """The instructions of one call nest; ``initialise`` says that its accumulators hold nothing yet."""
    folded = leaf.fold(env)
    if 0 in folded.extents:
        return []
    at = [places[offset.buffer] for offset in leaf.offsets]
    starts = tuple(p.address + b * p.itemsize for p, b in zip(at, folded.bases, strict=True))
    axes = tuple(Axis(n, s) for n, s in zip(folded.extents, folded.strides, strict=True) if n > 1)
    itemsizes = tuple(p.itemsize for p in at)
    call = Call(starts, axes, leaf.immediates, initialise)
    return _unroll(_ENCODERS[leaf.kind], call, itemsizes, spec)


_Encoder = Callable[[Call, NpuSpec], Emitted | None]


def _unroll(
    encode: _Encoder, call: Call, itemsizes: tuple[int, ...], spec: NpuSpec
) -> list[Emitted]:
    """Encode the call, or unroll its outermost loop that is no reduction and try again."""
    done = encode(call, spec)
    if done is not None:
        return [done]
    if not call.axes:
        msg = f"{encode.__name__}: a field of the instruction is too narrow for {call}"
        raise ArithmeticRangeError(msg)
    written = len(call.starts) - 1
    spatial = [n for n, axis in enumerate(call.axes) if axis.strides[written]]
    n = spatial[0] if encode is _encode_pool and spatial else 0
    axis, rest = call.axes[n], call.axes[:n] + call.axes[n + 1 :]
    emitted = []
    for i in range(axis.extent):
        starts = tuple(
            start + i * stride * size
            for start, stride, size in zip(call.starts, axis.strides, itemsizes, strict=True)
        )
        reduction = axis.strides[written] == 0
        first = call.initialise and (i == 0 or not reduction)
        emitted += _unroll(encode, Call(starts, rest, call.immediates, first), itemsizes, spec)
    return emitted


def _pad(axes: tuple[Axis, ...], count: int, pointers: int) -> tuple[Axis, ...]:
    """Loops of extent 1 in front, so that there are ``count``."""
    return (*[Axis(1, (0,) * pointers)] * (count - len(axes)), *axes)


def _rows_fit(axes: tuple[Axis, ...], pointer: int, columns: int) -> bool:
    """Whether the pixel loops walk consecutive accumulator rows."""
    outer, inner = axes
    consecutive = inner.extent == 1 or inner.strides[pointer] == columns
    return consecutive and (outer.extent == 1 or outer.strides[pointer] == inner.extent * columns)


def _encode_gemm(call: Call, spec: NpuSpec) -> Emitted | None:
    act, wgt, acc = range(3)
    rows, columns = spec.array.rows, spec.array.cols
    kernel = tuple(a for a in call.axes if a.strides[acc] == 0)
    pixels = tuple(a for a in call.axes if a.strides[acc] != 0)
    if call.axes != kernel + pixels or len(kernel) > 3 or len(pixels) > 2:
        return None
    k2, k1, k0 = _pad(kernel, 3, 3)
    m1, m0 = _pad(pixels, 2, 3)
    tile = rows * columns
    expected = 1
    for axis in (k0, k1, k2):
        if axis.extent > 1 and axis.strides[wgt] != expected * tile:
            return None
        expected *= axis.extent
    if not _rows_fit((m1, m0), acc, columns):
        return None
    fraction, unsigned = call.immediates
    row = columns * 4
    gemm = isa.Gemm(
        acc_init=call.initialise,
        act_unsigned=bool(unsigned),
        act_addr=call.starts[act],
        wgt_addr=call.starts[wgt],
        acc_row=call.starts[acc] // row,
        m0=m0.extent,
        m1=m1.extent,
        as_m0=m0.strides[act],
        as_m1=m1.strides[act],
        k0=k0.extent,
        k1=k1.extent,
        k2=k2.extent,
        as_k0=k0.strides[act],
        as_k1=k1.strides[act],
        as_k2=k2.strides[act],
        kvalid=rows,
        nvalid=columns,
        frac=fraction,
    )
    if not isa.fits(gemm):
        return None
    axes = (k2, k1, k0, m1, m0)
    reads = [
        _span(ACT, call, axes, act, rows),
        _span(WGT, call, axes, wgt, tile),
    ]
    return _accumulating(gemm, call, reads, m0.extent * m1.extent * row)


def _encode_depthwise(call: Call, spec: NpuSpec) -> Emitted | None:
    act, wgt, acc = range(3)
    columns = spec.array.cols
    kernel = tuple(a for a in call.axes if a.strides[acc] == 0)
    pixels = tuple(a for a in call.axes if a.strides[acc] != 0)
    if call.axes != kernel + pixels or len(kernel) > 2 or len(pixels) > 2:
        return None
    ky, kx = _pad(kernel, 2, 3)
    m1, m0 = _pad(pixels, 2, 3)
    taps_in_order = (kx.extent == 1 or kx.strides[wgt] == columns) and (
        ky.extent == 1 or ky.strides[wgt] == kx.extent * columns
    )
    if not taps_in_order or not _rows_fit((m1, m0), acc, columns):
        return None
    fraction, unsigned = call.immediates
    row = columns * 4
    instruction = isa.Depthwise(
        acc_init=call.initialise,
        act_unsigned=bool(unsigned),
        act_addr=call.starts[act],
        wgt_addr=call.starts[wgt],
        acc_row=call.starts[acc] // row,
        m0=m0.extent,
        m1=m1.extent,
        as_m0=m0.strides[act],
        as_m1=m1.strides[act],
        kw=kx.extent,
        kh=ky.extent,
        as_kx=kx.strides[act],
        as_ky=ky.strides[act],
        nvalid=columns,
        frac=fraction,
    )
    if not isa.fits(instruction):
        return None
    axes = (ky, kx, m1, m0)
    reads = [_span(ACT, call, axes, act, columns), _span(WGT, call, axes, wgt, columns)]
    return _accumulating(instruction, call, reads, m0.extent * m1.extent * row)


def _accumulating(
    instruction: isa.Instruction, call: Call, reads: list[Span], acc_bytes: int
) -> Emitted:
    sums = Span(f"mem{ACC}", call.starts[2], call.starts[2] + acc_bytes)
    if not call.initialise:
        reads = [*reads, sums]
    return Emitted(instruction, tuple(reads), (sums,))


def _encode_requantize(call: Call, spec: NpuSpec) -> Emitted | None:
    (
        channels,
        shift,
        multiplier,
        zero,
        low,
        high,
        unsigned,
        res_unsigned,
        res_zero,
        res_multiplier,
    ) = call.immediates
    residual = res_unsigned >= 0
    acc, par, res, out = 0, 1, 2, 2 + residual
    if len(call.axes) > 2:
        return None
    m1, m0 = _pad(call.axes, 2, out + 1)
    columns = spec.array.cols
    if not _rows_fit((m1, m0), acc, columns):
        return None
    instruction = isa.Requantize(
        rounding=isa.HALF_UP,
        multiply=bool(multiplier),
        residual=residual,
        residual_unsigned=res_unsigned == 1,
        out_unsigned=bool(unsigned),
        acc_row=call.starts[acc] // (columns * 4),
        m0=m0.extent,
        m1=m1.extent,
        dst_addr=call.starts[out],
        ds_m0=m0.strides[out],
        ds_m1=m1.strides[out],
        par_addr=call.starts[par] // 4,
        shift=shift,
        zp=zero & 0xFF,
        lo=low & 0xFF,
        hi=high & 0xFF,
        nvalid=channels,
        res_addr=call.starts[res] if residual else 0,
        rs_m0=m0.strides[res] if residual else 0,
        rs_m1=m1.strides[res] if residual else 0,
        res_zp=res_zero & 0xFF,
        res_mult=res_multiplier,
    )
    if not isa.fits(instruction):
        return None
    axes = (m1, m0)
    rows = m0.extent * m1.extent
    reads = [
        Span(f"mem{ACC}", call.starts[acc], call.starts[acc] + rows * columns * 4),
        Span(f"mem{PAR}", call.starts[par], call.starts[par] + channels * RECORD_WORDS * 4),
    ]
    if residual:
        reads.append(_span(ACT, call, axes, res, channels))
    return Emitted(instruction, tuple(reads), (_span(ACT, call, axes, out, channels),))


def _encode_pool(call: Call, _spec: NpuSpec) -> Emitted | None:
    src, dst = 0, 1
    kernel = tuple(a for a in call.axes if a.strides[dst] == 0)
    spatial = [a for a in call.axes if a.strides[dst] != 0]
    channels = spatial.pop().extent if spatial and spatial[-1].strides == (1, 1) else 1
    if len(kernel) > 2 or len(spatial) > 2:
        return None
    y, x = _pad(tuple(spatial), 2, 2)
    ky, kx = _pad(kernel, 2, 2)
    steps = _pool_steps(ky, kx, y, x)
    if steps is None:
        return None
    stride, ss_y, ss_x = steps
    (unsigned,) = call.immediates
    pool = isa.Pool(
        unsigned=bool(unsigned),
        src_addr=call.starts[src],
        dst_addr=call.starts[dst],
        c=channels,
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
    reads = _span(ACT, call, (y, x, ky, kx), src, channels)
    return Emitted(pool, (reads,), (_span(ACT, call, (y, x), dst, channels),))


def _pool_steps(ky: Axis, kx: Axis, y: Axis, x: Axis) -> tuple[int, int, int] | None:
    """(stride, ss_y, ss_x) such that pixel loops step ``stride`` times as far as kernel loops, or None."""
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


def _encode_add(call: Call, _spec: NpuSpec) -> Emitted | None:
    a_unsigned, za, ma, sa, b_unsigned, zb, mb, sb, shift, zero, low, high, unsigned = (
        call.immediates
    )
    length = _run_length(call)
    if length is None:
        return None
    instruction = isa.Add(
        a_unsigned=bool(a_unsigned),
        b_unsigned=bool(b_unsigned),
        out_unsigned=bool(unsigned),
        a_addr=call.starts[0],
        b_addr=call.starts[1],
        dst_addr=call.starts[2],
        len=length,
        za=za & 0xFF,
        zb=zb & 0xFF,
        zo=zero & 0xFF,
        sa=sa,
        sb=sb,
        shift=shift,
        lo=low & 0xFF,
        hi=high & 0xFF,
        ma=ma,
        mb=mb,
    )
    return _elementwise(instruction, call, length)


def _encode_lut(call: Call, _spec: NpuSpec) -> Emitted | None:
    length = _run_length(call)
    if length is None:
        return None
    source, table, target = call.starts
    instruction = isa.Lut(src_addr=source, dst_addr=target, len=length, lut_addr=table)
    run = Call((source, target), call.axes, (), initialise=False)
    emitted = _elementwise(instruction, run, length)
    return Emitted(
        instruction, (*emitted.reads, Span(f"mem{PAR}", table, table + 256)), emitted.writes
    )


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


def _span(memory: int, call: Call, axes: tuple[Axis, ...], pointer: int, last: int) -> Span:
    begin = call.starts[pointer]
    length = reach([a.extent for a in axes], [a.strides[pointer] for a in axes], last)
    return Span(f"mem{memory}", begin, begin + length)


_ENCODERS: dict[str, _Encoder] = {
    "npu.gemm": _encode_gemm,
    "npu.dwconv": _encode_depthwise,
    "npu.requantize": _encode_requantize,
    "npu.max": _encode_pool,
    "npu.add": _encode_add,
    "npu.lut": _encode_lut,
}
