"""Convolutions as register-tiled integer dot products.

Three steps, fused per task (a block of rows of one image, and a chunk of output channels):

    stage   rows read by the task, padded with the zero point, channels padded to the dot's depth
    sums    tiles of pixels × vectors of accumulators that live in registers
    codes   the tile requantized, and written

Where tiles overhang the output (pixels of the last tile, channels of the last block), codes are
written to a scratch buffer first and copied out from there. ``_Definition`` says what is computed,
``_schedule`` how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tvm import s_tir, te, tirx

from targets.cpu.cuts import Cut, CutSpace
from targets.cpu.depthwise import build_depthwise, depthwise_cuts, joins_rows
from targets.cpu.factor import build_factor, matrix_cuts
from targets.cpu.geometry import Dot, Geometry, cut_by_rule, cut_space, stored_weight
from targets.cpu.host import CpuFeatures
from targets.cpu.kernel import Kernel
from targets.cpu.padding import inside, without_padding
from targets.cpu.requantize import Epilogue, Expr
from targets.cpu.winograd import build_winograd, winograd_cuts
from targets.layers import Conv2d, Factor, Pairing

Indices: TypeAlias = tuple[Expr, ...]


def conv2d_cuts(layer: Conv2d, host: CpuFeatures) -> CutSpace | None:
    """What its kernel may be cut like; None where there is no choice."""
    if isinstance(layer.right, Factor):
        return None if layer.right.pairing is Pairing.ELEMENTS else matrix_cuts(layer, host)
    if joins_rows(layer, host):
        return depthwise_cuts(layer, host)
    direct, tiled = cut_space(layer, host), winograd_cuts(layer, host)
    return direct if tiled is None else CutSpace(tiled.rule, (*direct.cuts, *tiled.cuts))


def build_conv2d(layer: Conv2d, host: CpuFeatures, cut: Cut | None = None) -> Kernel:
    """The scheduled kernel and its packed constants; by rule, or with a cut of its space."""
    if isinstance(layer.right, Factor):
        return build_factor(layer, layer.right, host, cut)
    if joins_rows(layer, host):
        return build_depthwise(layer, host, cut)
    if cut is None:
        tiled = winograd_cuts(layer, host)
        cut = cut_by_rule(layer, host) if tiled is None else tiled.rule
    if cut.winograd:
        return build_winograd(layer, host, cut)
    dot = Dot.of(layer, host)
    geometry = Geometry.of(layer, host, dot, cut)
    stored = stored_weight(layer.right)
    bias = layer.bias.astype(np.int64)
    if dot.raised:
        bias = bias - dot.raised * stored.sum(axis=(1, 2, 3), dtype=np.int64)
    epilogue = Epilogue.of(layer, bias.astype(np.int32), geometry.pack_channels)
    weight = geometry.pack_weight(stored, dot)
    tensors = _Definition(layer, geometry, dot, epilogue, weight).tensors()
    func = te.create_prim_func(tensors, index_dtype_override="int64")
    scheduled = _schedule(func, layer, geometry, dot)
    if geometry.view == "image" and dot.padding(layer) == 0:
        whole_rows = geometry.pixels == geometry.width
        scheduled = without_padding(scheduled, layer, whole_rows=whole_rows)
    return Kernel(scheduled, (weight, *epilogue.constants))


@dataclass(frozen=True)
class _Definition:
    """The kernel as tensor expressions over image, row and pixel of its view, in whole tiles."""

    layer: Conv2d
    geometry: Geometry
    dot: Dot
    epilogue: Epilogue
    weight: npt.NDArray[np.signedinteger[Any]]

    @property
    def packed(self) -> tuple[int, ...]:
        """Shape of the weights."""
        return self.weight.shape

    def tensors(self) -> list[te.Tensor]:
        """The kernel's parameters, the output last."""
        layer, geo = self.layer, self.geometry
        n = tirx.Var("n", "int64")
        images, width = n, -(-geo.width // geo.pixels) * geo.pixels
        if geo.view == "batch":
            images, width = 1, tirx.floordiv(n + geo.pixels - 1, geo.pixels) * geo.pixels

        *inputs, weight = [
            *(
                te.placeholder((n, *value.shape), value.dtype, name=f"input{i}")
                for i, value in enumerate(layer.inputs)
            ),
            te.placeholder(self.packed, str(self.weight.dtype), name="weight"),
        ]
        constants = [
            te.placeholder(array.shape, "int32", name=f"constant{i}")
            for i, array in enumerate(self.epilogue.constants)
        ]
        stage = self._stage(inputs[0], images, width)
        sums = self._sums(stage, weight, (images, geo.height, width, geo.blocks, geo.lanes))

        def code(*at: Expr) -> Expr:
            residual = self._residual(inputs[1], at) if len(inputs) > 1 else None
            return self.epilogue(sums[at], [constant[at[3:]] for constant in constants], residual)

        shape = (n, *layer.output.shape)
        if geo.ragged:
            codes = te.compute(sums.shape, code, name="codes")
            out = te.compute(shape, lambda *at: codes[self._tile_index(*at)], name="out")
        else:
            out = te.compute(shape, lambda *at: code(*self._tile_index(*at)), name="out")
        return [*inputs, weight, *constants, out]

    def _stage(self, x: te.Tensor, images: Expr, width: Expr) -> te.Tensor:
        """What the dot products read: [images, rows, pixels, groups, depth]."""
        layer, geo, dot = self.layer, self.geometry, self.dot
        (sy, sx), (dy, dx), (top, left, _, _) = layer.strides, layer.dilation, layer.padding
        h, w, c = layer.input.shape
        each = c // geo.groups
        rows = (geo.height - 1) * sy + (self.packed[1] - 1) * dy + 1
        pixels = (width - 1) * sx + (self.packed[2] - 1) * dx + 1

        def staged(b: Expr, y: Expr, p: Expr, group: Expr, channel: Expr) -> Expr:
            holds = []
            if geo.view == "batch":
                holds.append(p < x.shape[0])
            elif geo.view == "image":
                holds += inside(y, (0, rows - 1), top, h)
                holds += inside(p, (0, pixels - 1), left, w)
            if geo.depth * geo.groups != c:
                holds.append(channel < each)
            at = self._tensor_index(b, y - top, p - left, w)
            value = x[(*at, group * each + channel)]
            if dot.raised:
                value = (value.astype("uint8") ^ tirx.const(128, "uint8")).astype(dot.stage)
            value, zero = value.astype(dot.stage), tirx.const(dot.padding(layer), dot.stage)
            return tirx.if_then_else(tirx.all(*holds), value, zero) if holds else value

        return te.compute((images, rows, pixels, geo.groups, geo.depth), staged, name="stage")

    def _sums(self, stage: te.Tensor, weight: te.Tensor, shape: Indices) -> te.Tensor:
        """Sums of products: int32[images, height, width, blocks, lanes]."""
        layer, geo, dot = self.layer, self.geometry, self.dot
        (sy, sx), (dy, dx) = layer.strides, layer.dilation
        _, *window, deep, _, _ = self.packed
        axes = [
            te.reduce_axis((0, size), name=name)
            for name, size in zip("rscd", (*window, deep, dot.depth), strict=True)
        ]
        r, s, c, d = axes

        def product(b: Expr, y: Expr, p: Expr, block: Expr, lane: Expr) -> Expr:
            group = block // geo.group_blocks if geo.groups > 1 else 0
            channel = block * geo.lanes + lane if layer.depthwise else c * dot.depth + d
            a = stage[b, y * sy + r * dy, p * sx + s * dx, group, channel].astype("int32")
            return te.sum(a * weight[block, r, s, c, lane, d].astype("int32"), axis=axes)

        return te.compute(shape, product, name="sums")

    def _residual(self, residual: te.Tensor, at: Indices) -> Expr:
        """The code that is added at an index of ``sums``; zero in what overhangs."""
        geo = self.geometry
        b, y, p, block, lane = at
        _, w, k = self.layer.output.shape
        each, first = k // geo.groups, block % geo.group_blocks * geo.lanes
        inside = []
        if geo.view == "batch":
            inside.append(p < residual.shape[0])
        elif geo.view == "image" and w % geo.pixels:
            inside.append(p < w)
        if not geo.full:
            inside.append(first + lane < each)
        code = residual[
            (*self._tensor_index(b, y, p, w), block // geo.group_blocks * each + first + lane)
        ]
        if not inside:
            return code
        return tirx.if_then_else(tirx.all(*inside), code, tirx.const(0, residual.dtype))

    def _tensor_index(self, b: Expr, y: Expr, p: Expr, width: int) -> Indices:
        """Image, row and pixel of a tensor of ``width`` that the view's (b, y, p) is."""
        if self.geometry.view == "batch":
            return (p, 0, 0)
        if self.geometry.view == "row":
            return (b, p // width, p % width)
        return (b, y, p)

    def _tile_index(self, n: Expr, y: Expr, p: Expr, channel: Expr) -> Indices:
        """Index of ``sums`` where the output's element comes from."""
        _, w, k = self.layer.output.shape
        geo = self.geometry
        block: Indices = (channel // geo.lanes, channel % geo.lanes)
        if geo.groups > 1:
            each = k // geo.groups
            within = channel % each
            block = (channel // each * geo.group_blocks + within // geo.lanes, within % geo.lanes)
        zero = tirx.const(0, "int64")
        if geo.view == "batch":
            return (zero, zero, n, *block)
        if geo.view == "row":
            return (n, zero, y * w + p, *block)
        return (n, y, p, *block)


def _schedule(func: tirx.PrimFunc, layer: Conv2d, geo: Geometry, dot: Dot) -> tirx.PrimFunc:
    """Tile, fuse, vectorize and tensorize."""
    sch = s_tir.Schedule(func)
    out, sums, stage = (sch.get_sblock(name) for name in ("out", "sums", "stage"))
    if geo.ragged:
        lead = sch.get_sblock("codes")
        b, y, p, block, lane = sch.get_loops(lead)
    else:
        b, y, p, channel = sch.get_loops(out)
        if geo.view == "row":
            p = sch.fuse(y, p)
            y = sch.add_unit_loop(p)
        block, lane = sch.split(channel, [None, geo.lanes])
    tile, p = sch.split(p, [None, geo.pixels])
    if geo.view == "row":
        task_y, tile = sch.split(tile, [geo.parts, None])
    else:
        task_y, y = sch.split(y, [None, geo.rows])
    task_block, block, vector = sch.split(block, [None, geo.chunk // geo.vectors, geo.vectors])
    if geo.view == "batch":
        sch.reorder(tile, b, task_y, task_block, block, y, p, vector, lane)
        task, tile = sch.fuse(tile, b, task_y, task_block), y
    else:
        sch.reorder(b, task_y, task_block, block, y, tile, p, vector, lane)
        task = sch.fuse(b, task_y, task_block)
    sch.parallel(task)
    sch.unroll(p)
    sch.unroll(vector)
    sch.vectorize(lane)

    sch.compute_at(sums, tile, preserve_unit_loops=True)
    c = layer.input.shape[2]
    plain = layer.input.dtype == dot.stage and not any(layer.padding) and not geo.ragged
    if plain and geo.depth * geo.groups == c:
        sch.compute_inline(stage)  # nothing to pad, flip or widen: read the input as it is
    else:
        sch.compute_at(stage, task, preserve_unit_loops=True)
        channel = sch.get_loops(stage)[-1]
        sch.vectorize(sch.split(channel, [None, math.gcd(geo.depth, 64)])[1])
    if geo.groups > 1 and not geo.full:
        # The way from channels back to blocks is no affine map that TVM could fuse along.
        image, row, *_ = sch.get_loops(out)
        sch.parallel(sch.fuse(image, row))
    elif geo.ragged:
        sch.reverse_compute_at(out, task)

    *_, p, vector, lane, r, s, c, d = sch.get_loops(sums)
    if dot.intrinsic:
        sch.reorder(r, s, c, p, vector, lane, d)
        init = sch.decompose_reduction(sums, r)
        sch.vectorize(sch.get_loops(init)[-1])
        sch.tensorize(lane, dot.intrinsic)
    else:
        sch.reorder(r, s, c, d, p, vector, lane)
        sch.vectorize(lane)
        init = sch.decompose_reduction(sums, r)
    for loop in (p, vector, *sch.get_loops(init)[-3:-1]):
        sch.unroll(loop)
    return sch.mod["main"].without_attr("global_symbol")
