"""Every even cut of a convolution that the schedule can do: what a search may try.

The rule (``tiling.py``) tries few sizes, since it has to choose for every layer of every build.
Here are all numbers of equal parts: of rows, column tiles, reduction tiles and chunks, in both
orders.
"""

from __future__ import annotations

from collections.abc import Iterator

from targets.npu.convolution.geometry import MAX_K0, MAX_VALID, ConvGeometry
from targets.npu.convolution.tile_cost import ConvTiling, weight_bytes
from targets.npu.convolution.tiling import (
    MAX_ACC_SLOTS,
    acc_rows,
    act_bytes,
    may_be_in_pieces,
    record_bytes,
    row_by_row,
    stripe_rows,
)
from targets.npu.kinds.cost import ceil_div

CHUNKS = 4
"""Numbers of chunks that are tried: the fewest that ACC allows, and the next ones."""


def tiling_space(g: ConvGeometry) -> list[ConvTiling]:
    """All even cuts that fit, in an order that depends on nothing else."""
    return [t for t in dict.fromkeys(_even_cuts(g)) if not misfit(g, t)]


def misfit(g: ConvGeometry, t: ConvTiling) -> str:
    """What of a tiling the layer or the machine doesn't allow, in words; "" if nothing."""
    for allowed, words in _rules(g, t):
        if not allowed:
            return f"{g.layer.name}: {words}"
    return ""


def _rules(g: ConvGeometry, t: ConvTiling) -> Iterator[tuple[bool, str]]:
    """What must hold of a tiling, and the words where it doesn't; later ones rely on earlier."""
    (kh, _, k0), (oh, ow, _) = g.reduction, g.out
    sizes = {
        "rows": (t.rows, oh),
        "tiles": (t.tiles, g.tiles),
        "k0": (t.k0, k0),
        "kernel_rows": (t.kernel_rows, kh),
        "chunk_rows": (t.chunk_rows, t.rows),
        "chunk_columns": (t.chunk_columns, ow),
    }
    for name, (size, most) in sizes.items():
        yield 1 <= size <= most, f"{name} of {size}, there are {most}"
    cut = t.k0 < k0 or t.kernel_rows < kh  # sums wait for the next block of the reduction
    yield (
        t.tiles % g.block_unit == 0,
        f"a block of {t.tiles} column tiles, groups have {g.block_unit}",
    )
    yield t.k0 <= MAX_K0 or g.passes is not None, f"GEMM counts {MAX_K0} reduction tiles"
    yield g.most_valid <= MAX_VALID, f"GEMM counts {MAX_VALID} lanes, {g.most_valid} have work"
    if g.passes is not None:
        yield t.k0 % g.passes.tiles == 0, f"passes have {g.passes.tiles} reduction tiles"
    if g.windowed:
        yield g.window_rows % t.rows == 0, "a stripe is of two windows"
        yield t.rows_outer or cut, "the stripes of a window come one after the other"
    if g.stripe is not None:
        fewest, most = g.stripe
        yield fewest <= t.rows <= most, f"stripes have {fewest} to {most} rows"
        yield row_by_row(g, t), "a stripe has all channels before the next one"
    if t.in_pieces:
        yield g.stripe is None and may_be_in_pieces(g), "it can't be in pieces"
        yield not t.rows_outer, "pieces have blocks of weights as the outer loop"
        yield t.k0 == k0 or not g.by_channel, "its input channels belong to blocks of weights"
    else:
        yield t.kernel_rows == kh, "blocks of kernel rows are pieces"
        yield t.k0 == k0 or g.groups == 1, "the reduction of a group is not cut"
        yield not (cut and t.rows_outer), "a reduction that is cut has blocks as the outer loop"
    yield from _capacities(g, t, cut)


def _capacities(g: ConvGeometry, t: ConvTiling, cut: bool) -> Iterator[tuple[bool, str]]:
    """That the memories hold it."""
    blocks, pixels = ceil_div(g.tiles, t.tiles), t.chunk_rows * t.chunk_columns
    slots = 2 if g.windowed or cut or blocks > 1 else 1
    records = record_bytes(g, t.tiles) * (min(2, blocks) if t.in_pieces else slots)
    weights = slots * weight_bytes(g, t.tiles, t.k0, t.kernel_rows)
    yield weights <= g.spec.sram.wgt.bytes, f"weights need {weights} bytes of WGT"
    yield records <= g.spec.sram.par.bytes, f"records need {records} bytes of PAR"
    needed = act_bytes(g, t)
    yield needed <= g.act_bytes, f"needs {needed} bytes of ACT, there are {g.act_bytes}"
    if not cut:
        yield pixels <= acc_rows(g) // 2, f"half of ACC has fewer than {pixels} rows"
        return
    whole = (t.chunk_rows, t.chunk_columns) == (t.rows, g.out[1])
    yield whole, "sums that wait for the next block are those of a whole stripe"
    times = 2 if t.in_pieces else 1
    yield t.tiles * times <= MAX_ACC_SLOTS, f"sums of {t.tiles} column tiles wait in ACC"
    waiting = max(t.tiles * times, 2) * pixels
    yield waiting <= acc_rows(g), f"sums need {waiting} rows of ACC, which has {acc_rows(g)}"


def _even_cuts(g: ConvGeometry) -> Iterator[ConvTiling]:
    """All equal parts, fitting or not."""
    (kh, _, k0), ow = g.reduction, g.out[1]
    blocks, few, deep = _block_sizes(g)
    for rows in stripe_rows(g):
        for tiles in blocks:
            orders = (False, True) if tiles < g.tiles and rows < g.out[0] else (g.windowed,)
            for rows_outer in orders:
                for chunk in _chunks(g, rows):
                    yield ConvTiling(rows, tiles, k0, *chunk, rows_outer, kh)
        for tiles in few:
            for part in deep[1:]:
                yield ConvTiling(rows, tiles, part, rows, ow, False, kh)
        if may_be_in_pieces(g):
            yield from _pieces(g, rows)


def _pieces(g: ConvGeometry, rows: int) -> Iterator[ConvTiling]:
    """Those of stripes in pieces: of channels, of the reduction, or of both."""
    (kh, _, k0), ow = g.reduction, g.out[1]
    blocks, few, deep = _block_sizes(g)
    if g.by_channel:
        deep = [k0]
        for tiles in blocks[1:]:
            for chunk in _chunks(g, rows):
                yield ConvTiling(rows, tiles, k0, *chunk, False, kh, in_pieces=True)
    for kernel_rows in _parts(kh):
        for part in deep:
            if (kernel_rows, part) != (kh, k0):
                for tiles in few:
                    yield ConvTiling(
                        rows, tiles, part, rows, ow, False, kernel_rows, in_pieces=True
                    )


def _block_sizes(g: ConvGeometry) -> tuple[list[int], list[int], list[int]]:
    """Column tiles of a block, those whose sums may wait in ACC, and reduction tiles of one."""
    blocks = [part * g.block_unit for part in _parts(g.tiles // g.block_unit)]
    passes = g.passes.tiles if g.passes is not None else 1
    deep = [part * passes for part in _parts(g.reduction[2] // passes)]
    return blocks, [tiles for tiles in blocks if tiles <= MAX_ACC_SLOTS], deep


def _parts(length: int) -> list[int]:
    """Sizes of equal parts of a length, the whole first."""
    return list(dict.fromkeys(ceil_div(length, count) for count in range(1, length + 1)))


def _chunks(g: ConvGeometry, rows: int) -> Iterator[tuple[int, int]]:
    """(rows, columns) of chunks of a stripe: equal parts, as few as fit and some more."""
    ow, half = g.out[1], acc_rows(g) // 2
    if half >= ow:
        fitting = [part for part in _parts(rows) if part * ow <= half]
        yield from ((part, ow) for part in fitting[:CHUNKS])
    if half < ow or rows == 1:
        fitting = [part for part in _parts(ow) if part <= half]
        yield from ((1, part) for part in fitting[:CHUNKS])
