"""Runs of whole pixels, for layers that compute on the channels of each: softmax and layer norm.

    for run of pixels: load; for each row of codes: out = f(act)  -> npu.softmax or npu.norm; store

Where PAR does not hold the parameters of a whole row, all of it comes once for each equal part of a
row, which is written while its parameters are there.

A choice is the pixels of a run. Tensors without a border at their sides lie as one row of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from tvm import tirx

from targets.layers import Norm, Softmax
from targets.npu.kinds.cost import LONGEST_STEP, Cost, Step, bus_cycles, ceil_div, streamed
from targets.npu.kinds.stripes import slots, stripe_heights
from targets.npu.machine import isa
from targets.npu.schedule.intrinsics import ACT, PAR
from targets.npu.schedule.job import Job
from targets.npu.schedule.loops import (
    Expr,
    LoopNest,
    buffer_argument,
    prim_func,
    root,
    scratchpad,
    smaller,
    store,
    tensor_argument,
)
from targets.npu.schedule.row_meanings import Words

RowJob: TypeAlias = Job[Softmax] | Job[Norm]
MOST_PIXELS = isa.largest(isa.Rows, "m1")
LONGEST_TRANSFER = min(isa.largest(kind, "x_bytes") for kind in (isa.Load, isa.Store))


@dataclass(frozen=True)
class Row:
    """Where a row is read and written.

    Attributes:
        nest: the loops around it.
        act: what is read.
        at: its first element there.
        par: the words of the layer's parameters.
        out: what is written.
        to: the first element there, of the part that is written.
        part: which of the equal parts of a row that is.
    """

    nest: LoopNest
    act: tirx.Buffer
    at: Expr
    par: tirx.Buffer
    out: tirx.Buffer
    to: Expr
    part: int

    def code(self, index: Expr) -> Expr:
        """An element that is read, int32."""
        return tirx.Cast("int32", self.act[index])


def run_lengths(job: RowJob, pixel_cycles: int) -> Iterator[int]:
    """Pixels of a run, most first: ACT holds two of each tensor that does not stay there."""
    _, pixels = _image(job)
    transfer = LONGEST_TRANSFER // job.output.pixel_bytes
    most = max(1, min(MOST_PIXELS, transfer, LONGEST_STEP // pixel_cycles))
    for run in stripe_heights(pixels, partial(_run_bytes, job), job.act_bytes):
        if run <= most:
            yield run


def no_run_fits(job: RowJob) -> str:
    """Why there are none."""
    needed = slots(_image(job)[1], 1) * _run_bytes(job, 1)
    return (
        f"{job.layer.name}: runs of one pixel need {needed} bytes of ACT, the machine has "
        f"{job.act_bytes}"
    )


def run_cost(
    job: RowJob, run: int, pixel_cycles: int, parameter_bytes: int, parts: int = 1
) -> Cost:
    """One load, one instruction and one store per run; without those of what stays in ACT.

    Args:
        job: the layer.
        run: pixels of a run.
        pixel_cycles: of the vector unit, for each time that a pixel comes.
        parameter_bytes: of all parts.
        parts: how often all pixels come.
    """
    spec, pixel = job.spec, job.output.pixel_bytes
    loaded = bus_cycles(spec, 1, run * pixel)
    stored = loaded if parts == 1 else bus_cycles(spec, run, pixel // parts)
    step = Step(
        loads=() if job.inputs[0].near else (loaded,),
        computes=run * pixel_cycles,
        stores=0 if job.output.near else stored,
    )
    rows, pixels = _image(job)
    constants = bus_cycles(spec, 1, parameter_bytes)
    return streamed(spec, parts * rows * pixels, run, step, constants=constants)


def write_runs(
    job: RowJob, run: int, words: Words, row_length: int, body: Callable[[Row], None]
) -> tirx.PrimFunc:
    """The layer; ``body`` writes what is done to a row.

    It takes ``words``, int32[parts, words of each], as ``parameters``, flat.
    """
    far, made = job.inputs[0], job.output
    loads, stores = not far.near, not made.near
    height, pixels = _image(job)
    channels, both = made.pixel_bytes, slots(pixels, run)
    nest = LoopNest()
    with prim_func(job.layer.name) as builder:
        source = tensor_argument("input", far, job.spec)
        parts, length = words.shape
        constant = buffer_argument("parameters", words.size, "int32")
        output = tensor_argument("output", made, job.spec)
        with root():
            par = scratchpad("par", length, "int32", PAR)
            size = run * channels
            act = scratchpad("act", size * both, far.dtype, ACT) if loads else source
            out = scratchpad("out", size * both, made.dtype, ACT) if stores else output
            for part in range(parts):
                with nest.serial(length) as n, nest.block("load_parameters") as b:
                    store(par, b(n), constant[b(part * length + n)])
                first_written = part * (row_length // parts)
                written = channels if parts == 1 else row_length // parts
                with nest.grid(height, ceil_div(pixels, run)) as (y, r):
                    now = run if pixels % run == 0 else smaller(run, pixels - r * run)
                    slot = r % 2 * size if both > 1 else 0
                    begin = (y * pixels + r * run) * channels
                    if loads:
                        with nest.grid((now, run), channels) as (p, c), nest.block("load") as b:
                            at = p * channels + c
                            store(act, b(slot + at), source[b(begin + at)])
                    with nest.grid((now, run), channels // row_length) as (p, head):
                        at, to = (
                            slot + p * channels if streams else tensor.pixel_offset(y, r * run + p)
                            for tensor, streams in ((far, loads), (made, stores))
                        )
                        first = head * row_length
                        to = to + first + first_written
                        body(Row(nest, act, at + first, par, out, to, part))
                    if stores:
                        with nest.grid((now, run), written) as (p, c), nest.block("store") as b:
                            at = p * channels + first_written + c
                            store(output, b(begin + at), out[b(slot + at)])
    return builder.get()


def _image(job: RowJob) -> tuple[int, int]:
    """Rows of pixels, and the pixels of each."""
    height, width, _ = job.output.shape
    borders = [tensor.border for tensor in (*job.inputs, job.output) if tensor.border]
    if any(left or right for _, left, _, right in borders):
        return height, width
    return 1, height * width


def _run_bytes(job: RowJob, run: int) -> int:
    streams = sum(not tensor.near for tensor in (*job.inputs, job.output))
    return run * job.output.pixel_bytes * streams
