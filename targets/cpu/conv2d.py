"""Convolutions as register-tiled integer dot products.

Three steps, fused per task (a block of rows of one image, and a chunk of output channels):

    stage   rows read by the task, padded with the zero point, channels padded to the dot product's depth
    sums    tiles of ``pixels × vectors`` accumulators of 16 channels that live in registers
    codes   the tile requantized and written

A dense layer has no rows, so its pixels are the images of the batch; a 1 × 1 convolution sees the image as one
row. Where a tile overhangs the image or the channels, codes go through a scratch buffer and are copied out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import s_tir, te, tirx

from targets.cpu import intrinsics
from targets.cpu.host import CpuFeatures
from targets.cpu.requantize import Epilogue, Expr
from targets.layers import Conv2d

LANES = 16
REGISTERS = 15  # vectors of accumulators: 16 make a buffer of 1024 bytes, which TVM puts on the heap
STAGE_BYTES = 128 * 1024
TASK_MACS = 500_000  # an image is split over threads only where the parts are larger than this


@dataclass(frozen=True)
class Dot:
    """How products are summed: ``depth`` channels at once, of ``stage`` type, ``flip``ped to unsigned."""

    depth: int
    stage: str
    flip: bool
    intrinsic: str | None


def _dot(layer: Conv2d, host: CpuFeatures) -> Dot:
    if layer.depthwise:
        return Dot(1, layer.input.dtype, False, None)
    if host.vnni:
        return Dot(4, "uint8", layer.input.dtype == "int8", intrinsics.VNNI)
    return Dot(1, "int32", False, None)


@dataclass(frozen=True)
class Geometry:
    """Sizes of the kernel.

    Attributes:
        view: ``image``, ``row`` (1 × 1 convolution) or ``batch`` (dense).
        height: rows that a task may be cut from.
        width: pixels of a row; 0 if it is the batch.
        rows: rows of a task.
        pixels: pixels of a tile.
        vectors: channel vectors of a tile.
        blocks: channel vectors in all, over all groups.
        group_blocks: of one group.
        chunk: channel vectors of a task.
        ragged: tiles overhang the output.
    """

    view: str
    height: int
    width: int
    rows: int
    pixels: int
    vectors: int
    blocks: int
    group_blocks: int
    chunk: int
    ragged: bool


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _tile(width: int, blocks: int) -> tuple[int, int]:
    """Pixels and vectors of a tile: fewest cycles per useful multiply, as ports and latency allow."""

    def cycles(tile: tuple[int, int]) -> float:
        pixels, vectors = tile
        work = pixels * vectors
        waste = -(-width // pixels) * pixels / width
        copied = 1.1 if width % pixels else 1.0
        return waste * copied * max(1.0, (pixels + vectors) / work, 6 / work)

    tiles = [
        (pixels, vectors)
        for vectors in _divisors(blocks)
        for pixels in range(1, min(width, REGISTERS) + 1)
        if pixels * vectors < REGISTERS + 1
    ]
    return min(tiles, key=cycles)


def _geometry(layer: Conv2d, host: CpuFeatures) -> Geometry:
    height, width, channels = layer.output.shape
    _, r, s, depth = layer.weight.shape
    plain = (r, s) == (1, 1) and layer.strides == (1, 1) and not any(layer.padding)
    view = "image"
    if plain and height * width == 1:
        view, height, width = "batch", 1, 0
    elif plain and layer.groups == 1 and channels % LANES == 0:
        pixels = _tile(height * width, channels // LANES)[0]
        if height * width % pixels == 0:  # the copy of overhanging codes knows no flattened rows
            view, height, width = "row", 1, height * width
    if layer.depthwise:
        blocks = group_blocks = -(-channels // LANES)
        pixels, vectors = _tile(width or 4, 1)
    else:
        group_blocks = -(-(channels // layer.groups) // LANES)
        blocks = group_blocks * layer.groups
        pixels, vectors = _tile(width or 4, blocks if layer.groups == 1 else group_blocks)
    full = channels % LANES == 0 if layer.depthwise else blocks * LANES == channels
    ragged = width == 0 or width % pixels != 0 or not full

    tasks = 1 if view == "batch" else min(2 * host.cores, max(1, layer.macs // TASK_MACS))
    row_bytes = max(1, layer.strides[0] * layer.input.shape[1] * layer.input.shape[2])
    candidates = [d for d in _divisors(height) if d * row_bytes <= STAGE_BYTES] or [1]
    enough = [d for d in candidates if height // d >= tasks and (d >= r or d == height)]
    rows = max(enough or [d for d in candidates if d >= r] or candidates)
    chunk = blocks
    if full and layer.groups == 1:
        wanted = -(-tasks // (height // rows))
        chunk = max(d for d in _divisors(blocks // vectors) if blocks // vectors // d >= wanted or d == 1)
        chunk *= vectors
    return Geometry(
        view, height, width, rows, pixels, vectors, blocks, group_blocks, chunk, ragged
    )


def _pack_channels(layer: Conv2d, geometry: Geometry) -> Callable[[npt.NDArray[np.int32]], npt.NDArray[np.int32]]:
    groups = 1 if layer.depthwise else layer.groups
    each = layer.output.shape[2] // groups
    lanes = geometry.blocks * LANES // groups

    def pack(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        padded = np.pad(values.astype(np.int32).reshape(groups, each), ((0, 0), (0, lanes - each)))
        return np.ascontiguousarray(padded.reshape(geometry.blocks, LANES))

    return pack


def _pack_weight(layer: Conv2d, geometry: Geometry, dot: Dot) -> npt.NDArray[np.int8]:
    """Weights in the order they are read: int8[blocks, R, S, ceil(C / depth), 16, depth]."""
    k, r, s, c = layer.weight.shape
    groups = 1 if layer.depthwise else layer.groups
    lanes = geometry.blocks * LANES // groups
    deep = -(-c // dot.depth)
    w = layer.weight.reshape(groups, k // groups, r, s, c)
    w = np.pad(w, ((0, 0), (0, lanes - k // groups), (0, 0), (0, 0), (0, deep * dot.depth - c)))
    w = w.reshape(geometry.blocks, LANES, r, s, deep, dot.depth).transpose(0, 2, 3, 4, 1, 5)
    return np.ascontiguousarray(w)


def build_conv2d(
    layer: Conv2d, host: CpuFeatures
) -> tuple[tirx.PrimFunc, tuple[npt.NDArray[np.generic], ...]]:
    """The scheduled kernel and its constants; see ``kernels.Kernel`` for the parameters' order."""
    dot = _dot(layer, host)
    geo = _geometry(layer, host)
    bias = layer.bias.astype(np.int64)
    if dot.flip:
        bias = bias - 128 * layer.weight.sum(axis=(1, 2, 3), dtype=np.int64)
    epilogue = Epilogue.of(layer, bias.astype(np.int32), _pack_channels(layer, geo))
    weight = _pack_weight(layer, geo, dot)
    tensors = _define(layer, geo, dot, epilogue, weight.shape)
    func = te.create_prim_func(tensors, index_dtype_override="int64")
    return _schedule(func, layer, geo, dot), (weight, *epilogue.constants)


def _define(
    layer: Conv2d, geo: Geometry, dot: Dot, epilogue: Epilogue, packed: tuple[int, ...]
) -> list[te.Tensor]:
    """The kernel as plain tensor expressions, in the padded sizes of its tiles."""
    n = tirx.Var("n", "int64")
    hi, wi, ci = layer.input.shape
    ho, wo, k = layer.output.shape
    _, r, s, deep, _, _ = packed
    (sy, sx), (dy, dx), (top, left, _, _) = layer.strides, layer.dilation, layer.padding
    batch = geo.view == "batch"
    images = tirx.const(1, "int64") if batch else n
    tiles = tirx.floordiv(n + geo.pixels - 1, geo.pixels) if batch else -(-geo.width // geo.pixels)
    width = tiles * geo.pixels
    groups = 1 if layer.depthwise else layer.groups
    depth = geo.blocks * LANES if layer.depthwise else deep * dot.depth

    x = te.placeholder((n, hi, wi, ci), layer.input.dtype, name="x")
    res = None
    if len(layer.inputs) == 2:
        res = te.placeholder((n, ho, wo, k), layer.inputs[1].dtype, name="residual")
    weight = te.placeholder(packed, "int8", name="weight")
    constants = [te.placeholder((geo.blocks, LANES), "int32", name=f"constant{i}") for i in range(len(epilogue.constants))]

    def read(b: Expr, y: Expr, p: Expr, c: Expr) -> Expr:
        if geo.view == "batch":
            return x[p, 0, 0, c]
        if geo.view == "row":
            return x[b, p // wi, p % wi, c]
        return x[b, y - top, p - left, c]

    def inside(y: Expr, p: Expr, g: Expr, c: Expr) -> list[Expr]:
        """Conditions under which the staged element exists; those that always hold are left out."""
        conditions = []
        if geo.view == "batch":
            conditions.append(p < n)
        elif geo.view == "row":
            conditions += [p < hi * wi] if width > hi * wi else []
        else:
            conditions += [y >= top] if top else []
            conditions += [y < top + hi] if (geo.height - 1) * sy + (r - 1) * dy >= top + hi else []
            conditions += [p >= left] if left else []
            conditions += [p < left + wi] if (width - 1) * sx + (s - 1) * dx >= left + wi else []
        if depth * groups != ci:
            conditions.append(c < ci // groups)
        return conditions

    def staged(b: Expr, y: Expr, p: Expr, g: Expr, c: Expr) -> Expr:
        value = read(b, y, p, g * (ci // groups) + c)
        zero = layer.input_zero_point
        if dot.flip:
            value = value.astype("uint8") ^ tirx.const(128, "uint8")
            zero += 128
        conditions = inside(y, p, g, c)
        value = value.astype(dot.stage)
        if not conditions:
            return value
        return tirx.if_then_else(tirx.all(*conditions), value, tirx.const(zero, dot.stage))

    if geo.view == "image":
        rows_in, width_in = (geo.height - 1) * sy + (r - 1) * dy + 1, (width - 1) * sx + (s - 1) * dx + 1
    else:
        rows_in, width_in = 1, width
    stage = te.compute((images, rows_in, width_in, groups, depth), staged, name="stage")

    axes = [te.reduce_axis((0, size), name=name) for name, size in (("r", r), ("s", s), ("c", deep), ("d", dot.depth))]
    er, es, ec, ed = axes

    def product(b: Expr, y: Expr, p: Expr, kb: Expr, lane: Expr) -> Expr:
        if layer.depthwise:
            a = stage[b, y * sy + er * dy, p * sx + es * dx, 0, kb * LANES + lane]
        else:
            g = kb // geo.group_blocks if groups > 1 else 0
            a = stage[b, y * sy + er * dy, p * sx + es * dx, g, ec * dot.depth + ed]
        return te.sum(a.astype("int32") * weight[kb, er, es, ec, lane, ed].astype("int32"), axis=axes)

    sums = te.compute((images, geo.height, width, geo.blocks, LANES), product, name="sums")

    def place(b: Expr, y: Expr, p: Expr) -> tuple[Expr, Expr, Expr]:
        """Image, row and pixel of the output as indices of ``sums``."""
        if batch:
            return (tirx.const(0, "int64"), tirx.const(0, "int64"), b)
        return (b, tirx.const(0, "int64"), y * wo + p) if geo.view == "row" else (b, y, p)

    def lane_of(c: Expr) -> tuple[Expr, Expr]:
        if groups == 1:
            return c // LANES, c % LANES
        each = k // groups
        return c // each * geo.group_blocks + c % each // LANES, c % each % LANES

    def residual_of(b: Expr, y: Expr, p: Expr, kb: Expr, lane: Expr) -> Expr | None:
        if res is None:
            return None
        each = k // groups
        c = kb // geo.group_blocks * each + kb % geo.group_blocks * LANES + lane
        ok = [] if k == geo.blocks * LANES else [kb % geo.group_blocks * LANES + lane < each]
        if batch:
            at, ok = (p, 0, 0, c), [*ok, p < n]
        elif geo.view == "row":
            at, ok = (b, p // wo, p % wo, c), [*ok, p < ho * wo]
        else:
            at, ok = (b, y, p, c), [*ok, p < wo]
        return tirx.if_then_else(tirx.all(*ok), res[at], tirx.const(0, res.dtype))

    if geo.ragged:
        codes = te.compute(
            sums.shape,
            lambda *at: epilogue(sums[at], constants, at[3:], residual_of(*at)),
            name="codes",
        )
        out = te.compute((n, ho, wo, k), lambda b, y, p, c: codes[(*place(b, y, p), *lane_of(c))], name="out")
    else:
        out = te.compute(
            (n, ho, wo, k),
            lambda b, y, p, c: epilogue(
                sums[(*place(b, y, p), *lane_of(c))], constants, lane_of(c), res[b, y, p, c] if res is not None else None
            ),
            name="out",
        )
    return [t for t in (x, res, weight, *constants, out) if t is not None]


def _schedule(func: tirx.PrimFunc, layer: Conv2d, geo: Geometry, dot: Dot) -> tirx.PrimFunc:
    """Tile, fuse, vectorise and tensorize."""
    sch = s_tir.Schedule(func)
    # Where nothing is padded, flipped or widened the input is read as it stands.
    h, w, c = layer.input.shape
    direct = (
        layer.input.dtype == dot.stage and not any(layer.padding) and c % (LANES if layer.depthwise else dot.depth) == 0 and not geo.ragged and layer.groups in (1, c)
    )
    out, sums, stage = sch.get_sblock("out"), sch.get_sblock("sums"), sch.get_sblock("stage")
    lead = sch.get_sblock("codes") if geo.ragged else out
    loops = sch.get_loops(lead)
    if geo.ragged:
        b, y, p, kb, lane = loops
    else:
        b, y, p, k = loops
        if geo.view == "row":
            p = sch.fuse(y, p)
            y = sch.add_unit_loop(p)
        kb, lane = sch.split(k, [None, LANES])
    yo, yi = sch.split(y, [None, geo.rows])
    po, pi = sch.split(p, [None, geo.pixels])
    chunk, kb, ki = sch.split(kb, [None, geo.chunk // geo.vectors, geo.vectors])
    if geo.view == "batch":
        sch.reorder(po, b, yo, chunk, kb, yi, pi, ki, lane)
        task = sch.fuse(po, b, yo, chunk)
    else:
        sch.reorder(b, yo, chunk, kb, yi, po, pi, ki, lane)
        task = sch.fuse(b, yo, chunk)
    tile = yi if geo.view == "batch" else po
    sch.parallel(task)
    sch.vectorize(lane)
    sch.unroll(pi)
    sch.unroll(ki)

    sch.compute_at(sums, tile, preserve_unit_loops=True)
    if direct:
        sch.compute_inline(stage)
    else:
        sch.compute_at(stage, task, preserve_unit_loops=True)
        sch.vectorize(sch.get_loops(stage)[-1])
    if geo.ragged:
        sch.reverse_compute_at(out, task)
    *_, ti, tk, lane, r, s, c, d = sch.get_loops(sums)
    sch.reorder(r, s, c, *((ti, tk, lane, d) if dot.intrinsic else (d, ti, tk, lane)))
    if not dot.intrinsic:
        sch.vectorize(lane)
    init = sch.decompose_reduction(sums, r)
    if dot.intrinsic:
        sch.vectorize(sch.get_loops(init)[-1])
        sch.tensorize(lane, dot.intrinsic)
    for loop in (ti, tk, *sch.get_loops(init)[-3:-1]):
        sch.unroll(loop)
    return sch.mod["main"]
