"""How many cycles a tiling of a convolution takes, roughly: to choose between tilings.

    first loads + sum over steps of max(compute, loads of the next step, what two slots allow)
                + the last store

Not the timing model: that prices programs. This looks at a tiling before there is one, so it leaves
out who waits for whose tokens, and for the bus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from targets.layers import Pairing
from targets.npu.convolution.geometry import ConvGeometry
from targets.npu.kinds.cost import Cost, ceil_div

INTERFERENCE = 16
"""The part of the bus's cycles that is in the way of other layers, as its reciprocal."""


@dataclass(frozen=True)
class ConvTiling:
    """Sizes of the tiles; see the head of ``tiling.py``.

    Attributes:
        rows: output rows of a stripe.
        tiles: column tiles of a weight block.
        k0: reduction tiles (along k0) of a weight block.
        chunk_rows: output rows whose sums one GEMM makes.
        chunk_columns: output columns of the same.
        rows_outer: whether stripes are the outer loop and weight blocks the inner one.
        kernel_rows: rows of the kernel of a weight block.
        in_pieces: whether only what a weight block multiplies is loaded of a stripe: the rows that
            its kernel rows read, and its input channels.
    """

    rows: int
    tiles: int
    k0: int
    chunk_rows: int
    chunk_columns: int
    rows_outer: bool
    kernel_rows: int
    in_pieces: bool = False


def k_blocks(g: ConvGeometry, t: ConvTiling) -> tuple[int, int]:
    """Into how many parts kernel rows, and the reduction tiles along k0, are cut."""
    return ceil_div(g.reduction[0], t.kernel_rows), ceil_div(g.reduction[2], t.k0)


def piece_bytes(g: ConvGeometry, t: ConvTiling) -> int:
    """Most bytes of a pixel that are loaded with a weight block."""
    if not t.in_pieces or g.input.near:
        return g.pixel_bytes
    if g.groups > 1:
        channels = t.tiles // g.tiles_per_group * g.group_channels_in
    else:
        channels = t.tiles * g.columns if g.depthwise else t.k0 * g.lanes
    return min(channels * g.act_bits // 8, g.pixel_bytes)


def block_channels(g: ConvGeometry, tiles: int) -> int:
    """Most output channels of a block of ``tiles`` column tiles."""
    if g.groups > 1:
        return tiles // g.tiles_per_group * g.group_channels_out
    return min(tiles * g.columns, g.out[2])


def weight_bytes(g: ConvGeometry, tiles: int, k0: int, kernel_rows: int) -> int:
    """Bytes of WGT that a block of weights takes."""
    return tiles * kernel_rows * g.reduction[1] * k0 * g.tile_bytes


def loaded_first(g: ConvGeometry, t: ConvTiling) -> int:
    """Column tiles of a block whose weights are loaded first: those of the others are another load.

    It waits for the GEMMs whose weights it takes the place of, and no GEMM but its own for it.
    """
    once = t.tiles >= g.tiles and math.prod(k_blocks(g, t)) == 1
    whole = once or t.in_pieces or g.depthwise or g.factor is not None
    return t.tiles if whole else ceil_div(t.tiles, 2)


def estimate(g: ConvGeometry, t: ConvTiling) -> Cost:
    """The cost of a layer with a tiling, on a machine that has nothing else to do."""
    stripes, blocks = ceil_div(g.out[0], t.rows), ceil_div(g.tiles, t.tiles)
    steps = stripes * blocks
    parts = math.prod(k_blocks(g, t))
    in_pieces = t.in_pieces and not g.input.near
    stripe_in = _input_bus(g, t)
    block_in = _block_bus(g, t)
    moves = _output_bus(g, t)
    loads = moves if g.residual is not None and not g.residual.near else 0
    stores = 0 if g.output.near else moves
    moved = loads + stores
    outer, each_outer, each_inner = (
        (stripes, stripe_in, block_in) if t.rows_outer else (blocks, block_in, stripe_in)
    )
    if parts > 1:  # k blocks come and go in every step
        each_outer, each_inner = 0, block_in + (stripe_in if stripes > 1 or in_pieces else 0)
    elif steps == outer and not g.windowed and not in_pieces:  # what the inner loop loads stays
        each_inner = 0
    array, instructions = _array(g, t)
    decode = instructions * g.spec.issue.decode
    vector = g.tiles * _requantize(g, g.out[0] * g.out[1])
    compute = (max(array, vector) + decode) // steps
    # Each GEMM or DWC comes with a REQ, and both come over the bus.
    fetch = _bus(g, 1, 2 * instructions * g.spec.issue.insn_bytes // steps)
    inner = steps // outer
    first, awaited = compute, block_in  # of a step whose loads are there; before its first GEMM
    if in_pieces:
        filled = parts * _fill(g, t)
        # two slots: a piece is loaded once the one before the last is multiplied
        turn = parts * g.spec.dma.read_latency + each_inner + filled + compute
        least = max(compute, ceil_div(turn, 2))
        at_inner = max(least, each_inner + filled + moved + fetch)
        at_outer = max(least, each_outer + each_inner + filled + moved + fetch)
        around = (inner - 1) * at_inner + at_outer
        before = (block_in + stripe_in + filled) // parts
    else:
        halves = 1 if loaded_first(g, t) == t.tiles else 2
        by_block = halves if parts > 1 or t.rows_outer else 1
        at_inner = _pace(g, compute, each_inner + loads, stores, fetch, parts, by_block)
        if parts > 1:  # stripes are loaded behind the last k block, for which two GEMMs are left
            late = each_inner - block_in + loads + 2 * block_in // parts + g.spec.dma.read_latency
            at_inner = max(at_inner, compute * (parts - 2) // parts + late)
            first = _pace(g, compute, block_in, 0, 0, parts, halves)
        around = (inner - 1) * at_inner + max(at_inner, each_outer + each_inner + moved + fetch)
        if each_outer:
            by_block = 1 if inner > 1 or t.rows_outer else halves
            loaded = each_outer + each_inner + loads
            around = max(around, _pace(g, inner * compute, loaded, 0, 0, 1, by_block))
        awaited = block_in // (parts * halves)
        before = awaited + stripe_in
    before += 2 * g.spec.dma.read_latency + loads
    known = 0 if g.factor else awaited  # before the layers before are done
    latency = g.spec.dma.write_latency if stores else 0
    after = latency + stores + _requantize(g, t.chunk_rows * t.chunk_columns)
    data = outer * each_outer + steps * (each_inner + moved)
    cycles = before + first + (inner - 1) * at_inner + (outer - 1) * around + after
    pixels_pass = cycles // (1 if t.rows_outer else blocks)  # once for each block
    return Cost(
        cycles=cycles,
        ahead=g.spec.dma.read_latency * (2 if g.input.near else 1) + known,
        part=cycles - pixels_pass + pixels_pass // stripes,
        array=array,
        data=data,
        fetch=steps * fetch,
        vector=vector,
        decode=decode,
        requantizes=True,
    )


def _pace(
    g: ConvGeometry, compute: int, loads: int, stores: int, fetch: int, k_blocks: int, parts: int
) -> int:
    """Cycles from one step to the next, of steps that compute, load and store for so many.

    LD works in order, so loads hide under the step before it, and no further. There are two slots:
    a load waits until the step before last is done, and the step that it is for until the load is,
    so that two steps take no less than the one's work, the latency and the load; less where the
    load and the work come in parts. Likewise a store.
    """
    dma, handing = g.spec.dma, g.spec.array.fill_cycles + 2 * g.spec.issue.decode
    pace = max(compute, loads + stores + fetch)
    if loads:
        turn = (compute + loads) // parts + k_blocks * (dma.read_latency + handing)
        pace = max(pace, turn // 2)
    if stores:
        pace = max(pace, (compute + stores + dma.write_latency + handing) // 2)
    return pace


def price_of(g: ConvGeometry, t: ConvTiling) -> int:
    """Cycles that a tiling costs its program: its own, and those of others that it holds up.

    Of those that could lie under other layers, half do: what these hold may be in the way. One that
    nothing comes before has only those that it works beside.
    """
    cost = estimate(g, t)
    hidden = cost.ahead // 2 if g.beside or g.follows else 0
    return cost.cycles - hidden + exposed(g, t) + (cost.data + cost.fetch) // INTERFERENCE


def exposed(g: ConvGeometry, t: ConvTiling) -> int:
    """Cycles of the layers beside it on the vector unit that do not overlap with it.

    They wait for its first stripe, or it for theirs. Where blocks of weights are the outer loop,
    only the first of them meets pixels on their way in, and the last one those on their way out.
    """
    if not g.beside:
        return 0
    blocks = 1 if t.rows_outer else ceil_div(g.tiles, t.tiles)
    overlapping = estimate(g, t).cycles // blocks
    return max(g.beside * t.rows // g.out[0], g.beside - overlapping)


def _block_bus(g: ConvGeometry, t: ConvTiling) -> int:
    """Cycles of loading one block's weights and records."""
    parts = math.prod(k_blocks(g, t))
    words = g.parameter_words(block_channels(g, t.tiles), t.tiles)
    records = 0 if g.one_record else _bus(g, 1, words * 4)
    if g.factor:
        return _factor_bus(g, t) + records
    loaded = t.tiles * t.kernel_rows * g.reduction[1] * t.k0 * g.stored_bytes
    return parts * _bus(g, 1, loaded) + records


def _factor_bus(g: ConvGeometry, t: ConvTiling) -> int:
    """Cycles of loading one block's weights from a tensor, in the runs of ``factor_loads``."""
    channels, deep = block_channels(g, t.tiles), g.group_channels_in
    if g.pairing is Pairing.ROWS:
        if g.groups == 1 or channels == g.out[2]:
            return _bus(g, 1, channels * deep)
        heads = channels // g.group_channels_out
        return _bus(g, g.group_channels_out, heads * deep)
    if g.tail != g.columns and g.tiles_per_group > 1:  # the last tile of a group comes by itself
        groups = ceil_div(channels, g.group_channels_out)
        whole = channels - groups * g.tail
        return groups * (_bus(g, deep, whole // groups) + _bus(g, deep, g.tail))
    return _bus(g, 1, deep * channels) if channels == g.out[2] else _bus(g, deep, channels)


def _array(g: ConvGeometry, t: ConvTiling) -> tuple[int, int]:
    """Cycles of all GEMMs or DWCs without decoding, and how many there are."""
    oh, ow, _ = g.out
    widths = _parts(ow, t.chunk_columns)
    work = count = 0
    for rows, stripes in _parts(oh, t.rows):
        for height, times in _parts(rows, t.chunk_rows):
            for width, beside in widths:
                chunks = stripes * times * beside
                work += chunks * _chunk(g, height * width)
                count += chunks
    each = g.passes.count if g.passes else math.prod(k_blocks(g, t))
    return work * g.tiles, count * each * g.tiles


def _parts(length: int, part: int) -> list[tuple[int, int]]:
    """(size, how many of it) of the parts of a length: whole ones, and what is left."""
    whole, rest = divmod(length, part)
    return [(size, times) for size, times in ((part, whole), (rest, 1)) if size and times]


def _chunk(g: ConvGeometry, pixels: int) -> int:
    """Cycles of one chunk's sums in one column tile."""
    if g.depthwise:
        return pixels * g.taps
    kh, kw, k0 = g.reduction
    array = g.spec.array
    return kh * kw * k0 * max(pixels, array.weight_cycles, array.min_rows)


def _requantize(g: ConvGeometry, pixels: int) -> int:
    """Cycles of REQ for one column tile."""
    return pixels * g.requantize_cycles


def _input_bus(g: ConvGeometry, t: ConvTiling) -> int:
    """Cycles of loading a stripe's input once, or all pieces of it that a weight block needs."""
    if g.input.near:
        return 0
    height, width, _ = g.input.shape
    loaded, across = min(g.rows_in(t.rows, t.kernel_rows), height), min(g.width_in, width)
    pixel, pieces = piece_bytes(g, t), math.prod(k_blocks(g, t)) if t.in_pieces else 1
    if g.column_step > 1 or pixel < g.pixel_bytes:
        return pieces * _bus(g, loaded * across, pixel)
    row = across * pixel
    contiguous = g.row_step == 1 and g.width_in >= width
    return pieces * (_bus(g, 1, loaded * row) if contiguous else _bus(g, loaded, row))


def _fill(g: ConvGeometry, t: ConvTiling) -> int:
    """Cycles of filling a piece with the zero point, where its border needs that.

    Nothing is loaded meanwhile: the border of a piece fits no field of LD.
    """
    if not any(g.layer.padding) or piece_bytes(g, t) == g.pixel_bytes:
        return 0
    pixels = g.rows_in(t.rows, t.kernel_rows) * g.width_in
    return ceil_div(pixels * piece_bytes(g, t), g.spec.sram.act.line)


def _output_bus(g: ConvGeometry, t: ConvTiling) -> int:
    """Cycles of moving one block of one stripe of the output, or of the residual."""
    pixels, channels = t.rows * g.out[1], block_channels(g, t.tiles)
    bits = 32 if g.layer.requantize is None else g.output.bits
    if channels >= g.out[2]:
        return _bus(g, 1, pixels * g.out[2] * bits // 8)
    return _bus(g, pixels, channels * bits // 8)


def _bus(g: ConvGeometry, rows: int, row_bytes: int) -> int:
    dma = g.spec.dma
    return rows * ceil_div(row_bytes, dma.burst) * dma.burst // dma.bytes_per_cycle
