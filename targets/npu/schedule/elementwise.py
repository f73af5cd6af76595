"""Schedules of what works element by element: the sum of two tensors, and look-up tables.

for run of elements: load; out = f(in)  -> npu.add or npu.lut; store
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import tirx

from targets.errors import CapacityError
from targets.layers import Add, Lut, Value
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule import intrinsics
from targets.npu.schedule.geometry import ceil_div
from targets.npu.schedule.intrinsics import ACT, PAR
from targets.npu.schedule.loops import (
    Expr,
    LoopNest,
    buffer_argument,
    prim_func,
    root,
    scratchpad,
    smaller,
    store,
)
from targets.npu.schedule.meanings import AddFields
from targets.npu.schedule.scheduled import Scheduled, tensorize
from targets.npu.schedule.storage import stored_bytes

RUNS = 4
"""Runs that a tensor is cut into at least, so that loads hide under compute."""
LONGEST_RUN = min(
    *(isa.largest(kind, "len") for kind in (isa.Add, isa.Lut)),
    *(isa.largest(kind, "x_bytes") for kind in (isa.Load, isa.Store)),
)
"""Elements that the length fields of VADD, LUT and one DMA row can all count."""
TABLE_BYTES = 256


def schedule_add(layer: Add, spec: NpuSpec) -> Scheduled:
    """Lower the sum of two tensors of codes.

    Raises:
        CapacityError: not even one byte of each tensor fits ACT twice.
    """
    a, b = layer.a, layer.b
    fields = AddFields(
        a_dtype=a.value.dtype,
        a_zero_point=a.zero_point,
        a_multiplier=a.multiplier,
        a_shift=a.shift,
        b_dtype=b.value.dtype,
        b_zero_point=b.zero_point,
        b_multiplier=b.multiplier,
        b_shift=b.shift,
        shift=layer.shift,
        zero_point=layer.zero_point,
        low=layer.low,
        high=layer.high,
        dtype=layer.output.dtype,
        bits=layer.output.bits,
    )
    with prim_func(layer.name) as builder:
        tensors = _arguments(layer.inputs, layer.output)
        with root():
            _runs(
                tensors,
                run_bytes(layer, spec),
                "add",
                lambda at, x, y, out: store(out, at, fields.byte(x[at], y[at])),
            )
    return tensorize(builder.get(), {"add": (intrinsics.add(fields), 1)}, {})


def schedule_lut(layer: Lut, spec: NpuSpec) -> Scheduled:
    """Lower a table of 256 bytes applied to every element.

    Raises:
        CapacityError: not even one byte of each tensor fits ACT twice, or the table PAR.
    """
    table = np.frombuffer(layer.table, np.uint8)
    return Scheduled(_lut(layer, spec, call=False), _lut(layer, spec, call=True), {"table": table})


def _lut(layer: Lut, spec: NpuSpec, *, call: bool) -> tirx.PrimFunc:
    """The layer with look-ups written out, or as calls of ``npu.lut``."""
    nest = LoopNest()
    with prim_func(layer.name) as builder:
        source = buffer_argument("input", stored_bytes(layer.input), layer.input.dtype)
        constant = buffer_argument("table", TABLE_BYTES, "uint8")
        output = buffer_argument("output", stored_bytes(layer.output), layer.output.dtype)
        with root():
            par = scratchpad("par", TABLE_BYTES, "uint8", PAR)
            with nest.serial(TABLE_BYTES) as n, nest.block("load_table") as b:
                store(par, b(n), constant[b(n)])

            def look_up(at: Expr, act: tirx.Buffer, out: tirx.Buffer) -> None:
                if call:
                    intrinsics.lut_call(act, par, out, at)
                else:
                    store(out, at, intrinsics.lut_value(act[at], par, layer.output.dtype))

            _runs([source, output], run_bytes(layer, spec), "lut", look_up)
    return builder.get()


def run_bytes(layer: Add | Lut, spec: NpuSpec) -> int:
    """Bytes of each tensor that are in ACT at a time, twice where there are more.

    Raises:
        CapacityError: there is no room for one, or PAR has none for the table.
    """
    if isinstance(layer, Lut) and spec.sram.par.bytes < TABLE_BYTES:
        msg = f"{layer.name}: a table needs {TABLE_BYTES} bytes of PAR, the machine has "
        raise CapacityError(f"{msg}{spec.sram.par.bytes}")
    tensors = len(layer.inputs) + 1
    longest = min(spec.sram.act.bytes // (2 * tensors), LONGEST_RUN)
    if longest == 0:
        msg = (
            f"{layer.name}: two bytes of each of {tensors} tensors exceed ACT "
            f"({spec.sram.act.bytes} bytes)"
        )
        raise CapacityError(msg)
    elements = stored_bytes(layer.output)
    return ceil_div(elements, max(min(RUNS, elements), ceil_div(elements, longest)))


def _arguments(inputs: tuple[Value, ...], output: Value) -> list[tirx.Buffer]:
    sources = [buffer_argument(f"input{n}", stored_bytes(v), v.dtype) for n, v in enumerate(inputs)]
    return [*sources, buffer_argument("output", stored_bytes(output), output.dtype)]


def _runs(tensors: list[tirx.Buffer], run: int, name: str, body: Callable[..., None]) -> None:
    """Load, compute and store run by run, in two slots per tensor; the last tensor is the output.

    ``body(index, *near_tensors)`` writes the block of one byte.
    """
    *sources, output = tensors
    elements = int(output.shape[0])
    count = ceil_div(elements, run)
    slots = min(2, count)
    near = [scratchpad(f"act{n}", run * slots, t.dtype, ACT) for n, t in enumerate(sources)]
    out = scratchpad("out", run * slots, output.dtype, ACT)
    nest = LoopNest()
    with nest.serial(count) as r:
        now = run if elements % run == 0 else smaller(run, elements - r * run)
        slot = r % 2 * run if count > 1 else 0
        for far, buffer in zip(sources, near, strict=True):
            with nest.serial(now, run) as n, nest.block("load") as b:
                store(buffer, b(slot + n), far[b(r * run + n)])
        with nest.grid((now, run), 1) as (n, one), nest.block(name) as b:
            body(b(slot + n + one), *near, out)
        with nest.serial(now, run) as n, nest.block("store") as b:
            store(output, b(r * run + n), out[b(slot + n)])
