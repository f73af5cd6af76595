"""Slices, paddings, concatenations and other orders: the DMA gathers output stripes in ACT.

for stripe: fill, where no piece covers it; for piece: load its rows of the stripe; store the stripe

Bytes that lie together where they are read and apart where they are written are turned by LD. Codes
of 4 or 2 bits are moved as the bytes in which they are packed, where all pieces are of whole bytes.
A reshape moves nothing: its output has the bytes of its input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tvm import tirx

from targets.layers import Index, Move, Piece, Value
from targets.npu.kinds.cost import NOTHING, Cost, Step, bus_cycles, ceil_div, streamed
from targets.npu.kinds.kind import Kind, Rule, same_width, wide
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
        """Heights of stripes, tallest first; one of a reshape, which does nothing."""
        if job.layer.reshape:
            return iter((1,))
        (oh, ow, k), _ = _upright(_of_bytes(job))
        return stripe_heights(oh, lambda rows: rows * ow * k, job.act_bytes)

    def too_large(self, job: Job[Move]) -> str:
        """Not even one output row fits ACT."""
        (oh, ow, k), _ = _upright(_of_bytes(job))
        return (
            f"{job.layer.name}: moving one row at a time needs {slots(oh, 1) * ow * k} bytes of "
            f"ACT, the machine has {job.act_bytes}"
        )

    def cost(self, job: Job[Move], choice: int) -> Cost:
        """A load per piece and stripe, and one store per stripe; nothing for a reshape."""
        layer, spec = _of_bytes(job), job.spec
        if layer.reshape:
            return NOTHING
        (oh, ow, k), pieces = _upright(layer)
        moved = choice * ow * k
        fill = 0 if _covered(layer) else ceil_div(moved, spec.sram.act.line)
        # Pieces that lie in other rows are loaded in other stripes: their mean is an average step.
        loads = [ceil_div(_load_cycles(spec, piece) * choice, oh) for piece in pieces]
        at_once = ceil_div(sum(piece.size[0] for piece in pieces), oh)
        if at_once < len(loads):
            loads = [ceil_div(sum(loads), at_once)] * at_once
        step = Step(loads=loads, fill=fill, stores=bus_cycles(spec, 1, moved))
        return streamed(spec, oh, choice, step)

    def schedule(self, job: Job[Move], choice: int) -> Scheduled:
        """Copies alone."""
        layer, rows = _of_bytes(job), choice
        (oh, ow, k), pieces = _upright(layer)
        stripes = ceil_div(oh, rows)
        slot_bytes = rows * ow * k
        dtype = layer.output.dtype
        nest = LoopNest()
        with prim_func(layer.name) as builder:
            sources = [
                buffer_argument(f"input{n}", math.prod(p.value.shape), dtype)
                for n, p in enumerate(pieces)
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
                    for piece, source in zip(pieces, sources, strict=True):
                        _load_piece(nest, piece, source, act, slot, s * rows, now, (rows, ow, k))
                    with nest.serial(now * (ow * k), slot_bytes) as n, nest.block("store") as b:
                        store(output, b(s * slot_bytes + n), act[b(slot + n)])
        return tensorize(builder.get(), {}, {})

    def bytewise(self, layer: Move, bits: Mapping[str, int]) -> Iterable[str]:
        """The DMA moves bytes, so codes that are packed with others move with them."""
        values = (*layer.inputs, layer.output)
        if unlike := same_width(values, bits):
            return unlike
        codes = 8 // bits[layer.output.name]
        whole = layer.reshape or all(_in_whole_bytes(piece, codes) for piece in layer.pieces)
        fits = layer.view is None or layer.view[2] % codes == 0
        return [] if whole and fits else [value.name for value in values]

    def same_bytes(self, layer: Move) -> Value | None:
        """A reshape's input."""
        return layer.inputs[0] if layer.reshape else None


def _in_whole_bytes(piece: Piece, codes: int) -> bool:
    """Whether a piece is runs of bytes that hold so many codes each, wherever it is read."""
    pixels = [n for n, size in zip(piece.strides[:2], piece.size[:2], strict=True) if size > 1]
    counts = (piece.offset, *pixels, piece.size[2], piece.at[2])
    return piece.strides[2] == 1 and all(n % codes == 0 for n in counts)


def _of_bytes(job: Job[Move]) -> Move:
    """The layer with bytes for channels, where codes are packed."""
    layer, stored = job.layer, job.output
    codes = 8 // stored.bits
    if codes == 1:
        return layer

    def narrow(index: Index) -> Index:
        return (index[0], index[1], index[2] // codes)

    pieces = [
        replace(
            piece,
            offset=piece.offset // codes,
            strides=(piece.strides[0] // codes, piece.strides[1] // codes, 1),
            size=narrow(piece.size),
            at=narrow(piece.at),
            value=replace(piece.value, shape=narrow(piece.value.shape)),
        )
        for piece in layer.pieces
    ]
    return replace(
        layer,
        pieces=tuple(pieces),
        output=replace(layer.output, shape=narrow(layer.output.shape)),
        fill=stored.repeated(layer.fill),
        view=layer.view and narrow(layer.view),
    )


def _upright(layer: Move) -> tuple[Index, list[Piece]]:
    """The output as it is written, and its pieces: whatever can be cut into rows is rows.

    Stripes are of rows, so a transformer's tensors, which are one row of pixels, could not be cut.
    """
    height, width, channels = layer.view or layer.output.shape
    pieces = list(layer.pieces)
    if height == 1:
        turned = [
            replace(p, strides=_exchanged(p.strides), size=_exchanged(p.size), at=_exchanged(p.at))
            for p in pieces
        ]
        return (width, 1, channels), turned
    if all(p.size[1] == width and p.strides[0] == width * p.strides[1] for p in pieces):
        stood = [
            replace(
                p,
                strides=(p.strides[1], p.strides[0], p.strides[2]),
                size=(p.size[0] * width, 1, p.size[2]),
                at=(p.at[0] * width, 0, p.at[2]),
            )
            for p in pieces
        ]
        return (height * width, 1, channels), stood
    return (height, width, channels), pieces


def _exchanged(index: Index) -> Index:
    h, w, c = index
    return w, h, c


def _covered(layer: Move) -> bool:
    """Whether the pieces leave nothing to fill."""
    return sum(math.prod(piece.size) for piece in layer.pieces) == math.prod(layer.output.shape)


def _load_cycles(spec: NpuSpec, piece: Piece) -> int:
    """Bus cycles of loading a piece; what lies apart in DRAM comes in bursts of its own."""
    axes = sorted(zip(piece.strides, piece.size, strict=True))
    together = 1
    for stride, count in axes:
        together *= count if stride == together or count == 1 else 1
    count = math.prod(piece.size)
    bus = bus_cycles(spec, count // together, together)
    if piece.strides[2] == 1 or piece.size[2] == 1:
        return bus
    lines = count // piece.size[2] * ceil_div(piece.size[2], spec.sram.act.line)
    return max(bus, lines)


def _load_piece(
    nest: LoopNest,
    piece: Piece,
    source: tirx.Buffer,
    act: tirx.Buffer,
    slot: Expr,
    first_row: Expr,
    rows_now: Expr,
    stripe: Index,
) -> None:
    """Load the rows of ``piece`` that fall into the stripe starting at output row ``first_row``."""
    rows, ow, k = stripe
    at_y, at_x, at_c = piece.at
    begin = tirx.max(first_row, at_y)
    end = tirx.min(first_row + rows_now, at_y + piece.size[0])
    extents = ((tirx.max(end - begin, 0), rows), piece.size[1], piece.size[2])
    order = [0, 1, 2]
    if piece.strides[2] != 1 and 1 in piece.strides:  # runs of DRAM are innermost
        order.append(order.pop(piece.strides.index(1)))
    with nest.grid(*(extents[axis] for axis in order)) as loops:
        y, x, ch = (loops[order.index(axis)] for axis in range(3))
        by_row, by_column, by_channel = piece.strides
        far = (begin + y - at_y) * by_row + x * by_column + ch * by_channel + piece.offset
        near = ((begin + y - first_row) * ow + at_x + x) * k + at_c + ch
        with nest.block("load") as b:
            store(act, b(slot + near), source[b(far)])
