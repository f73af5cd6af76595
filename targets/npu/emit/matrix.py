"""Products as instructions of MM: GEMM and DWC.

An encoder returns None where the loops are not of the shape that the instruction has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from targets.npu.emit.call_nest import Axis, Call, pad, rows_fit, span
from targets.npu.emit.emitted import ACC, ACT, WGT, Emitted
from targets.npu.emit.touched_bytes import Span
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.meanings import LONGEST_KERNEL, ProductFields

_LONGEST_WINDOW = isa.largest(isa.Depthwise, "kh", "kw")


def encode_gemm(call: Call, spec: NpuSpec) -> Emitted | None:
    """One GEMM: up to three kernel loops around up to two pixel loops, or None."""
    act, wgt, acc = range(3)
    f: ProductFields = call.fields
    kernel = tuple(a for a in call.axes if a.strides[acc] == 0)
    pixels = tuple(a for a in call.axes if a.strides[acc] != 0)
    if call.axes != kernel + pixels or len(kernel) > 3 or len(pixels) > 2:
        return None
    k2, k1, k0 = pad(_with_k0(kernel, f), 3, 3)
    m1, m0 = pad(pixels, 2, 3)
    tile = f.lanes * f.columns * f.wgt_bits // 8
    expected = 1
    for axis in (k0, k1, k2):
        if axis.extent > 1 and axis.strides[wgt] != expected * tile:
            return None
        expected *= axis.extent
    if not rows_fit((m1, m0), acc, f.columns):
        return None
    row = f.columns * 4
    gemm = isa.Gemm(
        acc_init=call.initialise,
        act_unsigned=f.dtype == "uint8",
        act_bits=isa.WIDTHS.index(f.act_bits),
        wgt_bits=isa.WIDTHS.index(f.wgt_bits),
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
        kvalid=f.kvalid,
        nvalid=f.nvalid,
        alpha_a=f.alpha_a,
        alpha_b=f.alpha_b,
        alpha_sign=(0, 1, -1).index(f.alpha_sign),
        frac=f.fraction,
    )
    if not isa.fits(gemm):
        return None
    axes = (k2, k1, k0, m1, m0)
    reads = [
        span(ACT, call, axes, act, f.lanes * f.act_bits // 8),
        span(WGT, call, axes, wgt, tile),
    ]
    return _accumulating(gemm, call, reads, m0.extent * m1.extent * row)


def _with_k0(kernel: tuple[Axis, ...], f: ProductFields) -> tuple[Axis, ...]:
    """The kernel's loops with k0 as the innermost, also where it has one step and is no loop.

    Taps on k1 and k2 have ``kvalid`` lanes each; on k0 only the last would, and the zeros of the
    others would count as work. They go there only if the fields of k1 and k2 are too narrow.
    """
    fit = len(kernel) <= 2 and all(axis.extent <= LONGEST_KERNEL for axis in kernel)
    return (*kernel, Axis(1, (0, 0, 0))) if f.tiles == 1 and fit else kernel


def before_the_last(call: Call) -> Call:
    """A GEMM of which an unrolled kernel loop has more to come: if that was k0, all lanes count."""
    if call.fields.tiles == 1 or any(axis.strides[2] == 0 for axis in call.axes):
        return call  # there is no loop k0, or it is further in
    return replace(call, fields=replace(call.fields, kvalid=call.fields.lanes))


def windows_that_fit(call: Call) -> Iterator[Call]:
    """Calls of DWC whose kernels its fields can count, in place of one whose kernel is larger.

    A window as wide as its image, as in the pooling of all pixels, is one run of taps, which can be
    cut into rows of any length. Another one is left as it is, to be unrolled.
    """
    acc = 2
    kernel = [axis for axis in call.axes if axis.strides[acc] == 0]
    pixels = call.axes[len(kernel) :]
    longest = max((axis.extent for axis in kernel), default=1)
    if longest <= _LONGEST_WINDOW or call.axes != (*kernel, *pixels):
        yield call
        return
    *outer, tap = kernel
    whole = tuple(tap.extent * stride for stride in tap.strides)
    if len(outer) > 1 or any(axis.strides != whole for axis in outer):
        yield call
        return
    taps, begin = tap.extent * (outer[0].extent if outer else 1), 0
    while begin < taps:
        rows, columns = divmod(min(taps - begin, _LONGEST_WINDOW**2), _LONGEST_WINDOW)
        window = [Axis(rows, tuple(_LONGEST_WINDOW * stride for stride in tap.strides))]
        window.append(replace(tap, extent=_LONGEST_WINDOW))
        if rows == 0:
            rows, window = 1, [replace(tap, extent=columns)]
        starts = tuple(
            start + begin * stride * size
            for start, stride, size in zip(call.starts, tap.strides, (1, 1, 4), strict=True)
        )
        axes = tuple(axis for axis in (*window, *pixels) if axis.extent > 1)
        yield replace(call, starts=starts, axes=axes, initialise=call.initialise and begin == 0)
        begin += rows * window[-1].extent


def encode_depthwise(call: Call, spec: NpuSpec) -> Emitted | None:
    """One DWC: up to two kernel loops around up to two pixel loops, or None."""
    act, wgt, acc = range(3)
    f: ProductFields = call.fields
    kernel = tuple(a for a in call.axes if a.strides[acc] == 0)
    pixels = tuple(a for a in call.axes if a.strides[acc] != 0)
    if call.axes != kernel + pixels or len(kernel) > 2 or len(pixels) > 2:
        return None
    ky, kx = pad(kernel, 2, 3)
    m1, m0 = pad(pixels, 2, 3)
    tap = f.columns * f.wgt_bits // 8
    taps_in_order = (kx.extent == 1 or kx.strides[wgt] == tap) and (
        ky.extent == 1 or ky.strides[wgt] == kx.extent * tap
    )
    if not taps_in_order or not rows_fit((m1, m0), acc, f.columns):
        return None
    row = f.columns * 4
    instruction = isa.Depthwise(
        acc_init=call.initialise,
        act_unsigned=f.dtype == "uint8",
        act_bits=isa.WIDTHS.index(f.act_bits),
        wgt_bits=isa.WIDTHS.index(f.wgt_bits),
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
        nvalid=f.nvalid,
        frac=f.fraction,
    )
    if not isa.fits(instruction):
        return None
    axes = (ky, kx, m1, m0)
    reads = [
        span(ACT, call, axes, act, f.columns * f.act_bits // 8),
        span(WGT, call, axes, wgt, tap),
    ]
    return _accumulating(instruction, call, reads, m0.extent * m1.extent * row)


def _accumulating(
    instruction: isa.Instruction, call: Call, reads: list[Span], acc_bytes: int
) -> Emitted:
    sums = Span(f"mem{ACC}", call.starts[2], call.starts[2] + acc_bytes)
    if not call.initialise:
        reads = [*reads, sums]
    return Emitted(instruction, tuple(reads), (sums,))
