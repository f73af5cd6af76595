"""Runs of elements, for layers that work element by element: additions and tables.

for run of elements: load; out = f(in)  -> npu.add or npu.lut; store

A choice is the length of a run in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tvm import tirx

from targets.layers import Add, Lut
from targets.npu.kinds.cost import LONGEST_STEP, ceil_div
from targets.npu.machine import isa
from targets.npu.schedule.intrinsics import ACT
from targets.npu.schedule.job import Job
from targets.npu.schedule.loops import LoopNest, scratchpad, smaller, store

RUNS = 4
"""Runs that a tensor is cut into at least, so that loads hide under compute."""
LONGEST_RUN = min(
    *(isa.largest(kind, "len") for kind in (isa.Add, isa.Lut)),
    *(isa.largest(kind, "x_bytes") for kind in (isa.Load, isa.Store)),
)
"""Elements that the length fields of VADD, LUT and one DMA row can all count."""


def run_lengths(job: Job[Add] | Job[Lut], lanes: int) -> Iterator[int]:
    """Lengths of runs, in bytes, longest first, of which ACT holds two of each tensor.

    Args:
        job: the layer.
        lanes: bytes that the vector unit takes per cycle.
    """
    longest = min(_longest(job), LONGEST_STEP * lanes)
    if longest == 0:
        return
    length = job.output.bytes
    runs = max(min(RUNS, length), ceil_div(length, longest))
    while runs <= length:
        yield ceil_div(length, runs)
        runs *= 2


def no_run_fits(job: Job[Add] | Job[Lut]) -> str:
    """Why there are none."""
    return (
        f"{job.layer.name}: two bytes of each of {len(job.inputs) + 1} tensors exceed ACT "
        f"({job.act_bytes} bytes)"
    )


def _longest(job: Job[Add] | Job[Lut]) -> int:
    return min(job.act_bytes // (2 * (len(job.inputs) + 1)), LONGEST_RUN)


def write_runs(tensors: list[tirx.Buffer], run: int, name: str, body: Callable[..., None]) -> None:
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
