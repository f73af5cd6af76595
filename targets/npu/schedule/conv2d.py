"""Schedule of convolutions: dense, grouped, depthwise, and dense layers as 1 x 1 on 1 x 1.

    for block, stripe:                     (or stripe, block: whichever moves fewer bytes)
        load weights, parameters, input stripe with its zero-point border, residual stripe
        for tile in block:
            for chunk in stripe:
                acc = 0; for ky, kx, k0: acc += act * wgt        -> npu.gemm   (or npu.dwconv)
                out = requantize(acc)                            -> npu.requantize
        store the stripe

Before ``tensorize`` the function is plain TIR that runs on a CPU; a test holds the two against
each other.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
from tvm import tirx

from targets.layers import Conv2d
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule import intrinsics
from targets.npu.schedule.geometry import ConvGeometry, ceil_div
from targets.npu.schedule.intrinsics import RECORD_WORDS
from targets.npu.schedule.loops import Expr, prim_func, root, smaller, store, when
from targets.npu.schedule.meanings import packed_byte
from targets.npu.schedule.scheduled import Scheduled, tensorize
from targets.npu.schedule.stages import ConvStages, Position
from targets.npu.schedule.tile_cost import ConvTiling
from targets.npu.schedule.tiling import tile_conv
from targets.npu.schedule.variants import Variant, product_variants


def schedule_conv2d(layer: Conv2d, spec: NpuSpec, tiling: ConvTiling | None = None) -> Scheduled:
    """Lower one convolution to tensorized TIR.

    Args:
        layer: any convolution that ``constraints`` accepts.
        spec: the machine.
        tiling: sizes of the tiles; chosen by ``tile_conv`` if not given.

    Raises:
        CapacityError: no tile of the layer fits the scratchpads.
    """
    geometry = ConvGeometry(layer, spec)
    return _ConvSchedule(geometry, tiling or tile_conv(geometry)).build()


class _ConvSchedule(ConvStages):
    """One layer's loop nest and its compute."""

    def build(self) -> Scheduled:
        g, layer = self.g, self.layer
        self.variants = product_variants(g, self.k_blocks, self.fraction)
        base_shift = self.fields.shift if self.fields else 0
        weights = g.packed_weights(self.t.tiles, self.t.k0)
        params = g.records(base_shift) if self.fields else self._padded_bias()
        with prim_func(layer.name) as builder:
            self._declare_arguments(weights.size, params.size)
            with root():
                self._allocate()
                self._outer_loops()
        constants = {"weights": weights, "parameters": params}
        return tensorize(builder.get(), self._intrinsics(), constants)

    def _padded_bias(self) -> np.ndarray:
        """Biases of whole column tiles, for layers whose sums are the output."""
        g = self.g
        padded = np.zeros(g.tiles * g.columns, np.int32)
        for tile in range(g.tiles):
            valid = g.tail if (tile + 1) % g.tiles_per_group == 0 else g.columns
            first = g.channel(tile)
            padded[tile * g.columns : tile * g.columns + valid] = self.layer.bias[
                first : first + valid
            ]
        return padded

    def _intrinsics(self) -> dict[str, tuple[str, int]]:
        """Block name -> the intrinsic that takes its place, and how many loops that stands for."""
        g = self.g
        names = {
            v.name: (intrinsics.product(v.fields), len(v.fields.loops())) for v in self.variants
        }
        if self.fields is not None:
            names["requantize"] = (intrinsics.requantize(g.columns, self.fields), 1)
            if g.tail != g.columns:
                names["requantize_tail"] = (intrinsics.requantize(g.tail, self.fields), 1)
        return names

    def _outer_loops(self) -> None:
        outer, inner = (self.blocks, self.stripes)
        if self.t.rows_outer:
            outer, inner = inner, outer
        with self.nest.grid(outer, inner) as (o, i):
            step = o * inner + i
            inner_is_new = o == 0 if inner == 1 else tirx.IntImm("bool", 1)
            if self.t.rows_outer:
                at = Position(i, o, step, inner_is_new, i == 0)
            else:
                at = Position(o, i, step, i == 0, inner_is_new)
            # What does not depend on the layer before comes first: it is loaded under that layer.
            if self.k_blocks == 1:
                with when(at.new_block):
                    self._load_weights(at, 0)
            if self.fields is not None:
                with when(at.new_block):
                    self._load_parameters(at)
            self._load_stripe(at)
            if self.fields is not None:
                self._move_output(at, load=True)
            self._compute(at)
            if self.fields is not None:
                self._move_output(at, load=False)

    def _compute(self, at: Position) -> None:
        if self.k_blocks > 1:
            with self.nest.serial(self.k_blocks) as k_block:
                self._load_weights(at, k_block)
                with self.nest.serial(self._tiles(at), self.t.tiles) as tile:
                    self._multiply(at, tile, 0, 0, k_block)
            with self.nest.serial(self._tiles(at), self.t.tiles) as tile:
                self._finish(at, tile, 0, 0)
            return
        chunks = (
            ceil_div(self.t.rows, self.t.chunk_rows),
            ceil_div(self.g.out[1], self.t.chunk_columns),
        )
        rows_now = self._rows(at)
        chunks_now = (rows_now + self.t.chunk_rows - 1) // self.t.chunk_rows
        with self.nest.grid(
            (self._tiles(at), self.t.tiles), (chunks_now, chunks[0]), chunks[1]
        ) as (
            tile,
            cy,
            cx,
        ):
            self._multiply(at, tile, cy, cx, 0)
            self._finish(at, tile, cy, cx)

    def _chunk(self, at: Position, cy: Expr, cx: Expr) -> tuple[Expr, Expr]:
        """Rows and columns of a chunk at this position."""
        t, ow = self.t, self.g.out[1]
        rows = self._rows(at)
        whole = isinstance(rows, int) and rows % t.chunk_rows == 0
        chunk_rows = t.chunk_rows if whole else smaller(t.chunk_rows, rows - cy * t.chunk_rows)
        if ow % t.chunk_columns == 0:
            return chunk_rows, t.chunk_columns
        return chunk_rows, smaller(t.chunk_columns, ow - cx * t.chunk_columns)

    def _acc_row(self, at: Position, tile: Expr, cy: Expr, cx: Expr) -> Expr:
        """First accumulator element of a chunk; successive chunks take successive slots."""
        if self.k_blocks > 1:
            return (at.step + tile) % self.acc_slots * self.acc_slot
        rows, columns = (
            ceil_div(self.t.rows, self.t.chunk_rows),
            ceil_div(self.g.out[1], self.t.chunk_columns),
        )
        count = ((at.step * self.t.tiles + tile) * rows + cy) * columns + cx
        return count % self.acc_slots * self.acc_slot

    def _multiply(self, at: Position, tile: Expr, cy: Expr, cx: Expr, k_block: Expr) -> None:
        """Sums of one chunk and column tile over one k block."""
        g, t = self.g, self.t
        rows, columns = self._chunk(at, cy, cx)
        first = self._acc_row(at, tile, cy, cx)
        with when(k_block == 0):
            self._initialise(at, tile, first, rows, columns)
        last_k = k_block == self.k_blocks - 1
        last_tile = (at.block * t.tiles + tile + 1) % g.tiles_per_group == 0
        for variant in self.variants:
            with ExitStack() as stack:
                if variant.last_k is not None:
                    stack.enter_context(when(last_k if variant.last_k else tirx.Not(last_k)))
                if variant.tail is not None:
                    stack.enter_context(when(last_tile if variant.tail else tirx.Not(last_tile)))
                self._product(variant, at, tile, cy, cx, k_block)

    def _product(
        self, variant: Variant, at: Position, tile: Expr, cy: Expr, cx: Expr, k_block: Expr
    ) -> None:
        """The loops of one GEMM or DWC."""
        name, fields = variant.name, variant.fields
        g, t, layer = self.g, self.t, self.layer
        rows, columns = self._chunk(at, cy, cx)
        first = self._acc_row(at, tile, cy, cx)
        kh, kw, k0 = g.reduction
        k0_now = t.k0 if k0 % t.k0 == 0 else smaller(t.k0, k0 - k_block * t.k0)
        global_tile = at.block * t.tiles + tile
        group = global_tile // g.tiles_per_group if g.groups > 1 else 0
        slot = self._input_slot(at)
        loops = (kh, kw, (k0_now, t.k0), (rows, t.chunk_rows), (columns, t.chunk_columns))
        with self.nest.grid(*loops, *fields.loops()) as (ky, kx, k, y, x, *lane):
            act = slot + ((cy * t.chunk_rows + y) * g.row_stride + ky * layer.dilation[0]) * g.pitch
            column = (cx * t.chunk_columns + x) * g.column_stride + kx * layer.dilation[1]
            act = act + column * g.pixel_bytes + group * (g.group_channels_in * g.act_bits // 8)
            if g.depthwise:
                act = act + global_tile * (g.columns * g.act_bits // 8)
            else:
                act = act + (k_block * t.k0 + k) * (g.lanes * g.act_bits // 8)
            wgt = self._weight_slot(at, k_block)
            wgt = wgt + (((tile * kh + ky) * kw + kx) * k0_now + k) * g.tile_bytes
            acc = first + (y * columns + x) * g.columns
            sums = () if g.depthwise else (k, *lane[: fields.reduction_loops])
            with self.nest.block(name, reduce=(ky, kx, *sums)) as b:
                j, a, a_place, w, w_place = fields.offsets(lane)
                at_acc = b(acc + j)
                value = fields.value(
                    self.acc[at_acc],
                    self.act[b(act + a)],
                    b(a_place),
                    self.wgt[b(wgt + w)],
                    b(w_place),
                )
                store(self.acc, at_acc, value)

    def _initialise(self, at: Position, tile: Expr, first: Expr, rows: Expr, columns: Expr) -> None:
        """Sums start at zero, or at the bias where the sums are the output."""
        t, c = self.t, self.g.columns
        loops = ((rows, t.chunk_rows), (columns, t.chunk_columns), c)
        with self.nest.grid(*loops) as (y, x, j), self.nest.block("initialise") as b:
            start: Any = tirx.IntImm("int32", 0)
            if self.fields is None:
                start = self.P[b((at.block * t.tiles + tile) * c + j)]
            store(self.acc, b(first + (y * columns + x) * c + j), start)

    def _finish(self, at: Position, tile: Expr, cy: Expr, cx: Expr) -> None:
        """Requantize a chunk into the output stripe, or store its sums."""
        g = self.g
        if g.tail == g.columns:
            self._finish_tile(at, tile, cy, cx, g.columns)
            return
        last = (at.block * self.t.tiles + tile + 1) % g.tiles_per_group == 0
        with when(tirx.Not(last)):
            self._finish_tile(at, tile, cy, cx, g.columns)
        with when(last):
            self._finish_tile(at, tile, cy, cx, g.tail)

    def _finish_tile(self, at: Position, tile: Expr, cy: Expr, cx: Expr, valid: int) -> None:
        g, t = self.g, self.t
        _, ow, k = g.out
        rows, columns = self._chunk(at, cy, cx)
        first = self._acc_row(at, tile, cy, cx)
        channel = (
            tile // g.tiles_per_group * g.group_channels_out + tile % g.tiles_per_group * g.columns
        )
        par_slot = at.block % 2 * self.p_slot if self.fields and self.blocks > 1 else 0
        if self.fields is None:
            with self.nest.grid((rows, t.chunk_rows), (columns, t.chunk_columns), valid) as (
                y,
                x,
                j,
            ):
                pixel = (cy * t.chunk_rows + y) * ow + cx * t.chunk_columns + x
                far = (at.stripe * (t.rows * ow) + pixel) * k
                far = far + at.block * self.channels + channel + j
                with self.nest.block("store_sums") as b:
                    acc = first + (y * columns + x) * g.columns + j
                    store(self.Y, b(far), self.acc[b(acc)])
            return
        per_byte = 8 // self.fields.bits
        loops = ((rows, t.chunk_rows), (columns, t.chunk_columns), valid // per_byte)
        with self.nest.grid(*loops) as (y, x, n):
            pixel = (at, cy * t.chunk_rows + y, cx * t.chunk_columns + x)
            acc = first + (y * columns + x) * g.columns + n * per_byte
            near = self._output_byte(self.layer.output, *pixel) + channel // per_byte + n
            with self.nest.block("requantize" if valid == g.columns else "requantize_tail") as b:
                codes = []
                for place in range(per_byte):
                    record = par_slot + (channel + n * per_byte + place) * RECORD_WORDS
                    words = tuple(self.par[b(record + w)] for w in range(RECORD_WORDS))
                    residual = None
                    if self.residual is not None:
                        beside = self._output_byte(self.residual, *pixel) + channel // per_byte + n
                        residual = self.res[b(beside)]
                    codes.append(
                        self.fields.value(self.acc[b(acc + place)], words, residual, place)
                    )
                store(self.out, b(near), packed_byte(codes, self.fields.bits, self.fields.dtype))
