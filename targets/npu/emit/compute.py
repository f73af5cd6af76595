"""Calls of compute intrinsics as instructions: the loops around a call become its hardware loops.

Where the loops are not of the shape that the instruction has, or a number is too large for its
field, the outermost one is unrolled and the rest tried again: one instruction becomes several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from targets.errors import ArithmeticRangeError
from targets.npu.emit.call_nest import Axis, Call
from targets.npu.emit.emitted import Emitted, Place
from targets.npu.emit.matrix import (
    before_the_last,
    encode_depthwise,
    encode_gemm,
    windows_that_fit,
)
from targets.npu.emit.numbers import Table
from targets.npu.emit.rolling import rolled
from targets.npu.emit.vector import (
    encode_add,
    encode_lut,
    encode_multiply,
    encode_norm,
    encode_pool,
    encode_requantize,
    encode_softmax,
)
from targets.npu.emit.visits import Visits
from targets.npu.machine.spec import NpuSpec

_Encoder = Callable[[Call, NpuSpec], Emitted | None]
_ENCODERS: dict[str, _Encoder] = {
    "npu.gemm": encode_gemm,
    "npu.dwconv": encode_depthwise,
    "npu.requantize": encode_requantize,
    "npu.max": encode_pool,
    "npu.add": encode_add,
    "npu.multiply": encode_multiply,
    "npu.lut": encode_lut,
    "npu.softmax": encode_softmax,
    "npu.norm": encode_norm,
}


def emit_call(
    visits: Visits, places: Mapping[str, Place], spec: NpuSpec, *, initialise: bool
) -> Iterator[tuple[Table, list[Emitted]]]:
    """The instructions of one call nest; with ``initialise`` its accumulators hold nothing yet.

    Yields:
        Visits whose instructions differ in addresses alone, and these.
    """
    leaf = visits.leaf
    at = [places[offset.buffer] for offset in leaf.offsets]
    itemsizes = tuple(p.itemsize for p in at)
    for which, folded in leaf.fold(visits.env, len(visits)):
        if 0 in folded.extents:
            continue
        starts = tuple(p.address + b * p.itemsize for p, b in zip(at, folded.bases, strict=True))
        loops = zip(folded.extents, folded.strides, strict=True)
        axes = tuple(Axis(extent, strides) for extent, strides in loops if extent > 1)
        call = Call(starts, axes, leaf.fields, initialise)
        for mine, parts in rolled(call, at, itemsizes, len(which)):
            emitted = []
            for part in parts:
                made = _unroll(_ENCODERS[leaf.kind], part.call, itemsizes, spec)
                if part.takes or part.makes:
                    made = [replace(each, takes=part.takes, makes=part.makes) for each in made]
                emitted += made
            yield which[mine], emitted


def _unroll(
    encode: _Encoder, call: Call, itemsizes: tuple[int, ...], spec: NpuSpec
) -> list[Emitted]:
    """Encode the call, or unroll its outermost loop (POOL: the outermost of pixels) and retry."""
    if encode is encode_depthwise:
        windows = list(windows_that_fit(call))
        if len(windows) > 1:
            return [e for window in windows for e in _unroll(encode, window, itemsizes, spec)]
    done = encode(call, spec)
    if done is not None:
        return [done]
    if not call.axes:
        msg = (
            f"{encode.__name__}: a field of the instruction is too narrow for {call}. Make the "
            "layer smaller."
        )
        raise ArithmeticRangeError(msg)
    # POOL has its kernel loops inside its pixel loops, but a maximum that is cut along the kernel
    # would forget what came before: pixels first.
    written = len(call.starts) - 1
    spatial = [n for n, axis in enumerate(call.axes) if axis.strides[written]]
    if encode is encode_pool and not spatial:
        raise ArithmeticRangeError(
            f"a window is too large for the fields of POOL: {call}. Pool twice, by smaller windows."
        )
    n = spatial[0] if encode is encode_pool else 0
    axis, rest = call.axes[n], call.axes[:n] + call.axes[n + 1 :]
    emitted = []
    for i in range(axis.extent):
        starts = tuple(
            start + i * stride * size
            for start, stride, size in zip(call.starts, axis.strides, itemsizes, strict=True)
        )
        # A loop that does not move the output is a sum over it: only its first part may start from
        # nothing, the others add to what is there. Any other loop starts a new output each time.
        reduction = axis.strides[written] == 0
        first = call.initialise and (i == 0 or not reduction)
        part = Call(starts, rest, call.fields, first)
        if encode is encode_gemm and reduction and i + 1 < axis.extent:
            part = before_the_last(part)
        emitted += _unroll(encode, part, itemsizes, spec)
    return emitted
