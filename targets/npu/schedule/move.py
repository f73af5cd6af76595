"""Schedule of slices, paddings and concatenations: the DMA gathers output stripes in ACT.

for stripe: fill, where no piece covers it; for piece: load its rows of the stripe; store the stripe
"""

from __future__ import annotations

import numpy as np
from tvm import tirx

from targets.errors import CapacityError
from targets.layers import Move, Piece
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.geometry import ceil_div
from targets.npu.schedule.intrinsics import ACT
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
from targets.npu.schedule.tiling import MIN_STRIPES


def schedule_move(layer: Move, spec: NpuSpec) -> Scheduled:
    """Lower a layer that only moves bytes.

    Raises:
        CapacityError: not even one output row fits ACT.
    """
    oh, ow, k = layer.output.shape
    rows = move_rows(layer, spec)
    stripes = ceil_div(oh, rows)
    slot_bytes = rows * ow * k
    dtype = layer.output.dtype
    nest = LoopNest()
    covered = sum(int(np.prod(piece.size)) for piece in layer.pieces)
    with prim_func(layer.name) as builder:
        sources = [
            buffer_argument(f"input{n}", int(np.prod(p.value.shape)), dtype)
            for n, p in enumerate(layer.pieces)
        ]
        output = buffer_argument("output", oh * ow * k, dtype)
        with root():
            act = scratchpad("act", slot_bytes * min(2, stripes), dtype, ACT)
            with nest.serial(stripes) as s:
                now = rows if oh % rows == 0 else smaller(rows, oh - s * rows)
                slot = s % 2 * slot_bytes if stripes > 1 else 0
                if covered < oh * ow * k:
                    with nest.serial(now * (ow * k), slot_bytes) as n, nest.block("fill") as b:
                        store(act, b(slot + n), tirx.const(layer.fill, dtype))
                for piece, source in zip(layer.pieces, sources, strict=True):
                    _load_piece(nest, piece, source, act, slot, s * rows, now, (rows, ow, k))
                with nest.serial(now * (ow * k), slot_bytes) as n, nest.block("store") as b:
                    store(output, b(s * slot_bytes + n), act[b(slot + n)])
    return tensorize(builder.get(), {}, {})


def move_rows(layer: Move, spec: NpuSpec) -> int:
    """Output rows of the tallest stripe that fits ACT twice.

    Raises:
        CapacityError: there is none.
    """
    oh, ow, k = layer.output.shape
    for stripes in range(min(oh, MIN_STRIPES), oh + 1):
        rows = ceil_div(oh, stripes)
        needed = min(2, ceil_div(oh, rows)) * rows * ow * k
        if needed <= spec.sram.act.bytes:
            return rows
    msg = (
        f"{layer.name}: moving one row at a time needs {needed} bytes of ACT, "
        f"the machine has {spec.sram.act.bytes}"
    )
    raise CapacityError(msg)


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
