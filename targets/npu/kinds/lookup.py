"""Tables of 256 bytes applied to every element: LUT, run by run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from tvm import tirx

from targets.layers import Lut
from targets.npu.kinds.cost import Cost, Step, bus_cycles, ceil_div, streamed
from targets.npu.kinds.element_runs import no_run_fits, run_lengths, write_runs
from targets.npu.kinds.kind import Kind, Rule, wide
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule import intrinsics
from targets.npu.schedule.intrinsics import PAR
from targets.npu.schedule.job import Job
from targets.npu.schedule.loops import (
    Expr,
    LoopNest,
    buffer_argument,
    prim_func,
    root,
    scratchpad,
    store,
)
from targets.npu.schedule.scheduled import Scheduled

TABLE_BYTES = 256


class Lookup(Kind[Lut, int]):
    """A choice is the bytes of a run."""

    def broken_rules(self, layer: Lut, spec: NpuSpec) -> Iterator[tuple[Rule, str]]:
        """Codes in, codes out."""
        yield from wide((layer.input, layer.output))

    def choices(self, job: Job[Lut]) -> Iterator[int]:
        """Runs, longest first, where PAR holds the table."""
        if job.spec.sram.par.bytes < TABLE_BYTES:
            return iter(())
        return run_lengths(job, job.spec.vu.lut_lanes)

    def too_large(self, job: Job[Lut]) -> str:
        """Not even one byte of each tensor fits ACT twice, or the table PAR."""
        par = job.spec.sram.par.bytes
        if par < TABLE_BYTES:
            needs = f"a table needs {TABLE_BYTES} bytes of PAR"
            return f"{job.layer.name}: {needs}, the machine has {par}"
        return no_run_fits(job)

    def cost(self, job: Job[Lut], choice: int) -> Cost:
        """The table once; one load, one LUT and one store per run."""
        spec = job.spec
        moved = bus_cycles(spec, 1, choice)
        step = Step(loads=(moved,), computes=ceil_div(choice, spec.vu.lut_lanes), stores=moved)
        table = bus_cycles(spec, 1, TABLE_BYTES)
        return streamed(spec, job.output.bytes, choice, step, constants=table)

    def schedule(self, job: Job[Lut], choice: int) -> Scheduled:
        """``npu.lut`` on every byte.

        ``tensorize`` can't match an index that depends on data, so the calls are written here.
        """
        table = np.frombuffer(job.layer.table, np.uint8)
        plain, calls = (_loops(job, choice, call=call) for call in (False, True))
        return Scheduled(plain, calls, {"table": table})

    def bytewise(self, layer: Lut, bits: Mapping[str, int]) -> Iterable[str]:
        """The index of a table is a byte, and so is what it gives."""
        return (layer.input.name, layer.output.name)


def _loops(job: Job[Lut], run: int, *, call: bool) -> tirx.PrimFunc:
    """The layer with look-ups written out, or as calls of ``npu.lut``."""
    nest = LoopNest()
    dtype = job.output.dtype
    with prim_func(job.layer.name) as builder:
        source = buffer_argument("input", job.inputs[0].bytes, job.inputs[0].dtype)
        constant = buffer_argument("table", TABLE_BYTES, "uint8")
        output = buffer_argument("output", job.output.bytes, dtype)
        with root():
            par = scratchpad("par", TABLE_BYTES, "uint8", PAR)
            with nest.serial(TABLE_BYTES) as n, nest.block("load_table") as b:
                store(par, b(n), constant[b(n)])

            def look_up(at: Expr, act: tirx.Buffer, out: tirx.Buffer) -> None:
                if call:
                    intrinsics.lut_call(act, par, out, at)
                else:
                    store(out, at, intrinsics.lut_value(act[at], par, dtype))

            write_runs([source, output], run, "lut", look_up)
    return builder.get()
