"""Slices, paddings and concatenations: the DMA gathers output stripes in ACT.

for stripe: fill, where no piece covers it; for piece: load its rows of the stripe; store the stripe

A reshape moves nothing: its output has the bytes of its input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from tvm import tirx

from targets.layers import Move, Piece, Value
from targets.npu.kinds.cost import NOTHING, Cost, Step, bus_cycles, ceil_div, streamed
from targets.npu.kinds.kind import Kind, Rule, wide
from targets.npu.kinds.stripes import slots, stripe_heights
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.intrinsics import ACT
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
)
from targets.npu.schedule.scheduled import Scheduled, tensorize


class Moving(Kind[Move, int]):
    """A choice is the output rows of a stripe."""

    def broken_rules(self, layer: Move, spec: NpuSpec) -> Iterator[tuple[Rule, str]]:
        """Codes in, codes out."""
        yield from wide((*layer.inputs, layer.output))

    def choices(self, job: Job[Move]) -> Iterator[int]:
        """Heights of stripes, tallest first."""
        oh, ow, k = job.output.shape
        return stripe_heights(oh, lambda rows: rows * ow * k, job.act_bytes)

    def too_large(self, job: Job[Move]) -> str:
        """Not even one output row fits ACT."""
        oh, ow, k = job.output.shape
        return (
            f"{job.layer.name}: moving one row at a time needs {slots(oh, 1) * ow * k} bytes of "
            f"ACT, the machine has {job.act_bytes}"
        )

    def cost(self, job: Job[Move], choice: int) -> Cost:
        """A load per piece and stripe, and one store per stripe; nothing for a reshape."""
        layer, spec = job.layer, job.spec
        if layer.reshape:
            return NOTHING
        oh, ow, k = job.output.shape
        moved = choice * ow * k
        fill = 0 if _covered(layer) else ceil_div(moved, spec.sram.act.line)
        # Pieces that lie in other rows are loaded in other stripes: their mean is an average step.
        loads = [ceil_div(_load_cycles(spec, piece) * choice, oh) for piece in layer.pieces]
        at_once = ceil_div(sum(piece.size[0] for piece in layer.pieces), oh)
        if at_once < len(loads):
            loads = [ceil_div(sum(loads), at_once)] * at_once
        step = Step(loads=loads, fill=fill, stores=bus_cycles(spec, 1, moved))
        return streamed(spec, oh, choice, step)

    def schedule(self, job: Job[Move], choice: int) -> Scheduled:
        """Copies alone."""
        layer, rows = job.layer, choice
        oh, ow, k = job.output.shape
        stripes = ceil_div(oh, rows)
        slot_bytes = rows * ow * k
        dtype = layer.output.dtype
        nest = LoopNest()
        with prim_func(layer.name) as builder:
            sources = [
                buffer_argument(f"input{n}", math.prod(p.value.shape), dtype)
                for n, p in enumerate(layer.pieces)
            ]
            output = buffer_argument("output", oh * ow * k, dtype)
            with root():
                act = scratchpad("act", slot_bytes * slots(oh, rows), dtype, ACT)
                with nest.serial(stripes) as s:
                    now = rows if oh % rows == 0 else smaller(rows, oh - s * rows)
                    slot = s % 2 * slot_bytes if stripes > 1 else 0
                    if not _covered(layer):
                        with nest.serial(now * (ow * k), slot_bytes) as n, nest.block("fill") as b:
                            store(act, b(slot + n), tirx.const(layer.fill, dtype))
                    for piece, source in zip(layer.pieces, sources, strict=True):
                        _load_piece(nest, piece, source, act, slot, s * rows, now, (rows, ow, k))
                    with nest.serial(now * (ow * k), slot_bytes) as n, nest.block("store") as b:
                        store(output, b(s * slot_bytes + n), act[b(slot + n)])
        return tensorize(builder.get(), {}, {})

    def bytewise(self, layer: Move, bits: Mapping[str, int]) -> Iterable[str]:
        """The DMA moves bytes."""
        return [value.name for value in (*layer.inputs, layer.output)]

    def same_bytes(self, layer: Move) -> Value | None:
        """A reshape's input."""
        return layer.inputs[0] if layer.reshape else None


def _covered(layer: Move) -> bool:
    """Whether the pieces leave nothing to fill."""
    return sum(math.prod(piece.size) for piece in layer.pieces) == math.prod(layer.output.shape)


def _load_cycles(spec: NpuSpec, piece: Piece) -> int:
    """Bus cycles of loading a piece; what lies apart in DRAM comes in bursts of its own."""
    _, width, channels = piece.value.shape
    rows, columns, deep = piece.size
    if piece.step[2] > 1:
        return bus_cycles(spec, rows * columns * deep, 1)
    if piece.step[1] > 1 or deep < channels:
        return bus_cycles(spec, rows * columns, deep)
    if piece.step[0] > 1 or columns < width:
        return bus_cycles(spec, rows, columns * deep)
    return bus_cycles(spec, 1, rows * columns * deep)


def _load_piece(
    nest: LoopNest,
    piece: Piece,
    source: tirx.Buffer,
    act: tirx.Buffer,
    slot: Expr,
    first_row: Expr,
    rows_now: Expr,
    stripe: tuple[int, int, int],
) -> None:
    """Load the rows of ``piece`` that fall into the stripe starting at output row ``first_row``."""
    rows, ow, k = stripe
    _, w, c = piece.value.shape
    at_y, at_x, at_c = piece.at
    begin = tirx.max(first_row, at_y)
    end = tirx.min(first_row + rows_now, at_y + piece.size[0])
    extent = tirx.max(end - begin, 0)
    with nest.grid((extent, rows), piece.size[1], piece.size[2]) as (y, x, ch):
        from_y = piece.start[0] + (begin + y - at_y) * piece.step[0]
        from_x = piece.start[1] + x * piece.step[1]
        far = (from_y * w + from_x) * c + piece.start[2] + ch * piece.step[2]
        near = ((begin + y - first_row) * ow + at_x + x) * k + at_c + ch
        with nest.block("load") as b:
            store(act, b(slot + near), source[b(far)])
