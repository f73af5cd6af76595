"""Schedule of convolutions: dense, grouped, depthwise, and dense layers as 1 x 1 on 1 x 1.

    for block, stripe:                     (or stripe, block: whichever moves fewer bytes)
        load weights, parameters, input stripe with its zero-point border, residual stripe
        for tile in block:
            for chunk in stripe:
                acc = 0; for ky, kx, k0: acc += act * wgt        -> npu.gemm   (or npu.dwconv)
                out = requantize(acc)                            -> npu.requantize
        store the stripe

Where that does not fit, the reduction is cut into k blocks, of kernel rows or of input channels,
whose sums stay in ACC; and of a stripe only the piece is loaded that a k block multiplies, or, in
depthwise and grouped layers, a block of weights.

ACT, WGT and PAR hold two slots of whatever is loaded more than once, so that the next load runs
beside the compute; ACC holds the sums of two or more chunks for the same reason. A slot is chosen
by the parity of what counts its loads. Tokens are not written here: the code generator finds them
from which bytes instructions touch, so two slots are all that a schedule does for overlap.

Before ``tensorize`` the function is plain TIR that runs on a CPU; a test holds the two against
each other. Only what is tensorized is in blocks: TVM analyses each of them, which takes longer than
all the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from targets.layers import Conv2d
from targets.npu.convolution.factor_loads import factor_loads
from targets.npu.convolution.geometry import ConvGeometry
from targets.npu.convolution.product_passes import ProductPasses
from targets.npu.convolution.tile_cost import (
    ConvTiling,
    block_channels,
    k_blocks,
    loaded_first,
    piece_bytes,
)
from targets.npu.convolution.tiling import acc_slots, input_slot_bytes
from targets.npu.convolution.variants import Variant, product_variants
from targets.npu.kinds.cost import ceil_div
from targets.npu.schedule import intrinsics
from targets.npu.schedule.intrinsics import ACC, ACT, PAR, WGT
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
    when,
)
from targets.npu.schedule.meanings import packed_byte
from targets.npu.schedule.scheduled import Scheduled, tensorize
from targets.npu.schedule.storage import Stored


@dataclass
class Position:
    """Where the outer loops stand.

    Attributes:
        block: of weights.
        stripe: of rows.
        step: how many (block, stripe) came before; its parity is the slot of output and residual.
        new_block: whether the block's weights are not there from the step before.
        new_stripe: likewise its input rows.
    """

    block: Expr
    stripe: Expr
    step: Expr
    new_block: Expr
    new_stripe: Expr


class KBlock(NamedTuple):
    """A block of the reduction: its number among those of kernel rows, and among those of k0."""

    rows: Expr
    k0: Expr


WHOLE = KBlock(0, 0)
"""The reduction where it is not cut."""


def schedule_convolution(job: Job[Conv2d], tiling: ConvTiling) -> Scheduled:
    """Lower one convolution to tensorized TIR."""
    return _LoopNest(ConvGeometry(job), tiling).build()


class _LoopNest:
    """One layer's buffers, a method per copy between DRAM and the scratchpads, and its compute."""

    def __init__(self, geometry: ConvGeometry, tiling: ConvTiling) -> None:
        self.g, self.t, self.layer = geometry, tiling, geometry.layer
        self.fields = geometry.fields
        self.fraction = self.layer.requantize.fraction if self.layer.requantize else 0
        self.blocks = ceil_div(geometry.tiles, tiling.tiles)
        self.stripes = ceil_div(geometry.out[0], tiling.rows)
        self.kernel_blocks, self.k0_blocks = k_blocks(geometry, tiling)
        self.k_blocks = self.kernel_blocks * self.k0_blocks
        self.in_pieces = tiling.in_pieces and not geometry.input.near
        self.pixel_bytes = piece_bytes(geometry, tiling)
        self.pitch = geometry.width_in * self.pixel_bytes if self.in_pieces else geometry.pitch
        self.channels = block_channels(geometry, tiling.tiles)
        self.nest = LoopNest()

    def build(self) -> Scheduled:
        g, layer = self.g, self.layer
        self.variants = product_variants(g, self.t.k0, self.fraction)
        constants: dict[str, np.ndarray] = {}
        if g.factor is None:
            constants["weights"] = g.packed_weights(self.t.tiles, self.t.k0, self.t.kernel_rows)
        constants["parameters"] = g.parameters() if self.fields else self._padded_bias()
        with prim_func(layer.name) as builder:
            self._declare_arguments(constants)
            with root():
                self._allocate()
                self._outer_loops()
        return tensorize(builder.get(), self._intrinsics(), constants)

    # --- arguments and buffers

    def _declare_arguments(self, constants: Mapping[str, np.ndarray]) -> None:
        """The function's buffers: what the layer reads, its constants, what it makes."""
        g = self.g
        self.X = tensor_argument("input", g.input, g.spec)
        if g.factor is not None:
            self.W = tensor_argument("factor", g.factor, g.spec)
        if g.residual is not None:
            self.Z = tensor_argument("residual", g.residual, g.spec)
        if g.factor is None:
            self.W = buffer_argument("weights", constants["weights"].size, "int8")
        self.P = buffer_argument("parameters", constants["parameters"].size, "int32")
        self.Y = tensor_argument("output", g.output, g.spec)

    def _allocate(self) -> None:
        g, t = self.g, self.t
        self.x_slot = input_slot_bytes(g, t)
        self.y_slot = t.rows * g.out[1] * self.channels * g.output.bits // 8
        self.w_slot = t.tiles * t.kernel_rows * g.reduction[1] * t.k0 * g.tile_bytes
        pixels = t.chunk_rows * t.chunk_columns
        self.acc_slots = acc_slots(g, t)
        self.acc_slot = pixels * g.columns
        weight_slots = min(2, self.blocks * self.k_blocks * (self.stripes if g.windowed else 1))
        output_slots = min(2, self.blocks * self.stripes)
        self.act = self.X
        if not g.input.near:
            slots = min(2, self._piece_count() if self.in_pieces else self.stripes)
            self.act = scratchpad("act", self.x_slot * slots, g.input.dtype, ACT)
        self.wgt = scratchpad("wgt", self.w_slot * weight_slots, "int8", WGT)
        self.acc = scratchpad("acc", self.acc_slot * self.acc_slots, "int32", ACC)
        if self.fields is None:
            return
        self.p_slot = g.parameter_words(self.channels, self.t.tiles)
        slots = 1 if g.one_record else min(2, self.blocks)
        self.par = scratchpad("par", self.p_slot * slots, "int32", PAR)
        self.out = self.Y
        if not g.output.near:
            self.out = scratchpad("out", self.y_slot * output_slots, g.output.dtype, ACT)
        if g.residual is not None:
            self.res = self.Z
            if not g.residual.near:
                self.res = scratchpad("res", self.y_slot * output_slots, g.residual.dtype, ACT)

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

    # --- loops and compute

    def _outer_loops(self) -> None:
        outer, inner = (self.blocks, self.stripes)
        if self.t.rows_outer:
            outer, inner = inner, outer
        with self.nest.steps(outer, inner) as (o, i):
            step = o * inner + i
            # What the inner loop walks is new in every step, unless the loop has one iteration:
            # then it came with the first step and stays. A piece is of one step.
            stays = inner == 1 and not self.in_pieces
            inner_is_new = o == 0 if stays else tirx.IntImm("bool", 1)
            if self.t.rows_outer:
                at = Position(i, o, step, inner_is_new, i == 0)
            else:
                at = Position(o, i, step, i == 0, inner_is_new)
            # What does not depend on the layer before comes first: it is loaded under that layer.
            if self.k_blocks == 1:
                with when(tirx.IntImm("bool", 1) if self.g.windowed else at.new_block):
                    self._load_weights(at, WHOLE)
            if self.fields is not None:
                with when(at.step == 0 if self.g.one_record else at.new_block):
                    self._load_parameters(at)
            if self.k_blocks == 1 or not self.in_pieces:
                self._load_stripe(at, WHOLE)
            if self.fields is not None:
                self._move_output(at, load=True)
            self._compute(at)
            if self.fields is not None:
                self._move_output(at, load=False)

    def _compute(self, at: Position) -> None:
        if self.k_blocks > 1:
            # A stripe is one chunk here. Its sums stay in ACC while the blocks of weights go by, so
            # that no weight is loaded twice in a step.
            with self.nest.steps(self.kernel_blocks, self.k0_blocks) as (kernel_block, k0_block):
                k_block = KBlock(kernel_block, k0_block)
                self._load_weights(at, k_block)
                if self.in_pieces:
                    self._load_stripe(at, k_block)
                with self.nest.steps((self._tiles(at), self.t.tiles)) as (tile,):
                    self._multiply(at, tile, 0, 0, k_block)
            with self.nest.steps((self._tiles(at), self.t.tiles)) as (tile,):
                self._finish(at, tile, 0, 0)
            return
        chunks = (
            ceil_div(self.t.rows, self.t.chunk_rows),
            ceil_div(self.g.out[1], self.t.chunk_columns),
        )
        rows_now = self._rows(at)
        chunks_now = (rows_now + self.t.chunk_rows - 1) // self.t.chunk_rows
        with self.nest.steps(
            (self._tiles(at), self.t.tiles), (chunks_now, chunks[0]), chunks[1]
        ) as (
            tile,
            cy,
            cx,
        ):
            self._multiply(at, tile, cy, cx, WHOLE)
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
            return (at.step * self.t.tiles + tile) % self.acc_slots * self.acc_slot
        rows, columns = (
            ceil_div(self.t.rows, self.t.chunk_rows),
            ceil_div(self.g.out[1], self.t.chunk_columns),
        )
        count = ((at.step * self.t.tiles + tile) * rows + cy) * columns + cx
        return count % self.acc_slots * self.acc_slot

    def _multiply(self, at: Position, tile: Expr, cy: Expr, cx: Expr, k_block: KBlock) -> None:
        """Sums of one chunk and column tile over one k block."""
        g, t = self.g, self.t
        rows, columns = self._chunk(at, cy, cx)
        first = self._acc_row(at, tile, cy, cx)
        # Zeros are no pass over ACC: the code generator makes the first GEMM start from nothing.
        with when(k_block.rows == 0), when(k_block.k0 == 0):
            self._initialise(at, tile, first, rows, columns)
        last_k = k_block.k0 == self.k0_blocks - 1
        last_tile = (at.block * t.tiles + tile + 1) % g.tiles_per_group == 0
        if g.passes is not None:
            per_block = t.k0 // g.passes.tiles
            with self.nest.serial(self._passes(g.passes, k_block.k0), per_block) as n:
                number = k_block.k0 * per_block + n
                for variant in self.variants:
                    with ExitStack() as stack:
                        for condition in self._scaled_by(variant, g.passes, at, tile, number):
                            stack.enter_context(when(condition))
                        self._product(variant, at, tile, cy, cx, k_block, n)
            return
        for variant in self.variants:
            with ExitStack() as stack:
                if variant.last_k is not None:
                    stack.enter_context(when(last_k if variant.last_k else tirx.Not(last_k)))
                if variant.tail is not None:
                    stack.enter_context(when(last_tile if variant.tail else tirx.Not(last_tile)))
                self._product(variant, at, tile, cy, cx, k_block)

    def _passes(self, passes: ProductPasses, k_block: Expr) -> Expr:
        """Passes of a k block."""
        per_block = self.t.k0 // passes.tiles
        if passes.count % per_block == 0:
            return per_block
        return smaller(per_block, passes.count - k_block * per_block)

    def _scaled_by(
        self, variant: Variant, passes: ProductPasses, at: Position, tile: Expr, number: Expr
    ) -> Iterator[Expr]:
        """The conditions under which a pass is one of a variant's."""
        global_tile = at.block * self.t.tiles + tile
        if variant.tail is not None:
            last = (global_tile + 1) % self.g.tiles_per_group == 0
            yield last if variant.tail else tirx.Not(last)
        if variant.last_piece is not None:
            last = number >= (passes.pieces - 1) * passes.each
            yield last if variant.last_piece else tirx.Not(last)
        if variant.shift is not None:
            place = global_tile * passes.count + number
            runs = [tirx.And(place >= a, place <= b) for a, b in passes.where(variant.shift)]
            while len(runs) > 1:  # by pairs: a chain of many would be walked too deep
                runs = [functools.reduce(tirx.Or, runs[n : n + 2]) for n in range(0, len(runs), 2)]
            yield runs[0]

    def _product(
        self,
        variant: Variant,
        at: Position,
        tile: Expr,
        cy: Expr,
        cx: Expr,
        k_block: KBlock,
        pass_: Expr | None = None,
    ) -> None:
        """The loops of one GEMM or DWC; ``pass_`` counts within the k block."""
        name, fields = variant.name, variant.fields
        g, t, layer = self.g, self.t, self.layer
        rows, columns = self._chunk(at, cy, cx)
        first = self._acc_row(at, tile, cy, cx)
        _, kw, _ = g.reduction
        kh = self._kernel_rows(k_block.rows)
        extent = (self._k0(k_block.k0), t.k0) if pass_ is None else (fields.tiles, fields.tiles)
        global_tile = at.block * t.tiles + tile
        slot = self._input_slot(at, k_block)
        loops = ((kh, t.kernel_rows), kw, extent, (rows, t.chunk_rows), (columns, t.chunk_columns))
        with (
            self.nest.steps(*loops) as (ky, kx, k, y, x),
            self.nest.grid(*fields.loops()) as lane,
        ):
            row = (cy * t.chunk_rows + y) * g.row_stride + ky * layer.dilation[0]
            column = (cx * t.chunk_columns + x) * g.column_stride + kx * layer.dilation[1]
            act = slot + row * self.pitch + column * self.pixel_bytes
            # Tiles and k0 count from the first channel of a pixel, or of a piece of it.
            own_tile = tile if self.in_pieces else global_tile
            if g.groups > 1:
                group_bytes = g.group_channels_in * g.act_bits // 8
                act = act + own_tile // g.tiles_per_group * group_bytes
            wgt = self._weight_slot(at, k_block)
            if pass_ is not None and g.passes is not None:
                passes = g.passes
                piece = (k_block.k0 * (t.k0 // passes.tiles) + pass_) // passes.each
                act = act + piece * (passes.piece * g.act_bits // 8)
                act = act + k * (g.lanes * g.act_bits // 8)
                number = tile * self._passes(passes, k_block.k0) + pass_
                wgt = wgt + number * (kh * kw * passes.tiles * g.tile_bytes)
                wgt = wgt + ((ky * kw + kx) * fields.tiles + k) * g.tile_bytes
            else:
                if g.depthwise:
                    act = act + own_tile * (g.columns * g.act_bits // 8)
                else:
                    own_k = k if self.in_pieces else k_block.k0 * t.k0 + k
                    act = act + own_k * (g.lanes * g.act_bits // 8)
                wgt = wgt + (((tile * kh + ky) * kw + kx) * extent[0] + k) * g.tile_bytes
            acc = first + (y * columns + x) * g.columns
            sums = () if g.depthwise else (k, *lane[: fields.reduction_loops])
            sums = sums if pass_ is None else (pass_, *sums)
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
        with self.nest.grid(*loops) as (y, x, j):
            start: Any = tirx.IntImm("int32", 0)
            if self.fields is None:
                start = self.P[(at.block * t.tiles + tile) * c + j]
            store(self.acc, first + (y * columns + x) * c + j, start)

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
        if self.fields is None:
            with self.nest.grid((rows, t.chunk_rows), (columns, t.chunk_columns), valid) as (
                y,
                x,
                j,
            ):
                pixel = (cy * t.chunk_rows + y) * ow + cx * t.chunk_columns + x
                far = (at.stripe * (t.rows * ow) + pixel) * k
                far = far + at.block * self.channels + channel + j
                store(self.Y, far, self.acc[first + (y * columns + x) * g.columns + j])
            return
        par = 0 if g.one_record else self._par_slot(at) + g.parameter_words(channel, tile)
        per_byte = 8 // self.fields.bits
        loops = ((rows, t.chunk_rows), (columns, t.chunk_columns))
        with self.nest.steps(*loops) as (y, x), self.nest.serial(valid // per_byte) as n:
            pixel = (at, cy * t.chunk_rows + y, cx * t.chunk_columns + x)
            acc = first + (y * columns + x) * g.columns + n * per_byte
            near = self._output_byte(g.output, *pixel) + channel // per_byte + n
            with self.nest.block("requantize" if valid == g.columns else "requantize_tail") as b:
                sums, parameters, residual = b(acc), b(par), None
                words = self.fields.parameter_words(valid)
                read = [self.acc[sums : sums + per_byte], self.par[parameters : parameters + words]]
                if g.residual is not None:
                    beside = b(self._output_byte(g.residual, *pixel) + channel // per_byte + n)
                    residual = self.res[beside]
                    read.append(self.res[beside : beside + 1])
                T.reads(*read)
                T.writes(self.out[b(near) : b(near) + 1])
                codes = []
                column = b(n * per_byte) if valid > per_byte else 0  # TVM drops axes of one.
                for place in range(per_byte):
                    places = self.fields.word_places(column + place, valid)
                    record = [self.par[parameters + word] for word in places]
                    codes.append(self.fields.value(self.acc[sums + place], record, residual, place))
                store(self.out, b(near), packed_byte(codes, self.fields.bits, self.fields.dtype))

    # --- sizes at a position

    def _rows(self, at: Position) -> Expr:
        oh, rows = self.g.out[0], self.t.rows
        return rows if oh % rows == 0 else smaller(rows, oh - at.stripe * rows)

    def _tiles(self, at: Position) -> Expr:
        tiles = self.t.tiles
        return (
            tiles if self.g.tiles % tiles == 0 else smaller(tiles, self.g.tiles - at.block * tiles)
        )

    def _channels(self, at: Position) -> Expr:
        k = self.g.out[2]
        if k % self.channels == 0:
            return self.channels
        return smaller(self.channels, k - at.block * self.channels)

    # --- data movement

    def _load_stripe(self, at: Position, k_block: KBlock) -> None:
        """Input rows of the stripe, with the zero point where the window leaves the image."""
        g, t, layer = self.g, self.t, self.layer
        if g.input.near:
            return
        h, w, _ = g.input.shape
        c = g.pixel_bytes
        top, left, _, _ = layer.padding
        slot = self._input_slot(at, k_block)
        rows = g.rows_in(t.rows, t.kernel_rows)
        # As many as rows_in(rows of this stripe), written so that what does not depend on the
        # position is one constant. Stripes overlap by the window's rows, which are loaded again.
        rows_now = (self._rows(at) - 1) * g.row_stride + rows - (t.rows - 1) * g.row_stride
        if self.kernel_blocks > 1:
            unused = t.kernel_rows - self._kernel_rows(k_block.rows)
            rows_now = rows_now - unused * layer.dilation[0]
        first_y = at.stripe * (t.rows * layer.strides[0]) - top
        first_y = first_y + k_block.rows * (t.kernel_rows * layer.dilation[0])
        first_channel, bytes_now = self._piece(at, k_block)
        loops = ((rows_now, rows), g.width_in, (bytes_now, self.pixel_bytes))
        with when(at.new_stripe), self.nest.grid(*loops) as (y, x, ch):
            source_y = first_y + y * g.row_step
            source_x = x * g.column_step - left
            inside = tirx.all(source_y >= 0, source_y < h, source_x >= 0, source_x < w)
            value = self.X[(source_y * w + source_x) * c + first_channel + ch]
            fill = tirx.const(g.input.repeated(layer.input_zero_point), g.input.dtype)
            target = slot + (y * g.width_in + x) * self.pixel_bytes + ch
            store(self.act, target, tirx.if_then_else(inside, value, fill))

    def _piece(self, at: Position, k_block: KBlock) -> tuple[Expr, Expr]:
        """Of a pixel's bytes, the first one that is loaded, and how many are."""
        if not self.in_pieces:
            return 0, self.pixel_bytes
        whole = self.g.pixel_bytes
        block = at.block if self.g.by_channel else k_block.k0
        first = block * self.pixel_bytes
        if whole % self.pixel_bytes == 0:
            return first, self.pixel_bytes
        return first, smaller(self.pixel_bytes, whole - first)

    def _piece_count(self) -> int:
        return self.blocks * self.stripes * self.k_blocks

    def _load_weights(self, at: Position, k_block: KBlock) -> None:
        """One run of bytes: ``packed_weights`` has put them in the order of the blocks."""
        g, t = self.g, self.t
        if g.factor is not None:
            self._load_factor(at, k_block.k0)
            return
        tiles, first = self._tiles(at), loaded_first(g, t)
        self._load_tiles(at, k_block, 0, smaller(first, tiles), first)
        if first < t.tiles:
            with when(tiles > first):
                self._load_tiles(at, k_block, first, tiles - first, t.tiles - first)

    def _load_tiles(
        self, at: Position, k_block: KBlock, first: int, tiles: Expr, most: int
    ) -> None:
        """Weights of some column tiles of a block, at most so many: those from ``first`` on."""
        g, t = self.g, self.t
        kh, kw, k0 = g.reduction
        rows_now = self._kernel_rows(k_block.rows)
        # Tiles of the array, in DRAM and then in WGT one behind the other.
        per_tile = rows_now * self._k0(k_block.k0) * kw
        source = at.block * (t.tiles * kh * k0 * kw)
        source = source + self._tiles(at) * (k_block.rows * (t.kernel_rows * k0 * kw))
        source = source + self._tiles(at) * rows_now * (k_block.k0 * (t.k0 * kw))
        source = source + first * per_tile
        lanes, columns = g.stored_tile
        line = columns * g.wgt_bits // 8
        pitch = g.columns * g.wgt_bits // 8
        near = self._weight_slot(at, k_block) + first * per_tile * g.tile_bytes
        loops = (tiles * per_tile, most * t.kernel_rows * t.k0 * kw), lanes, line
        with self.nest.grid(*loops) as (n, lane, byte):
            loaded = self.W[(source + n) * g.stored_bytes + lane * line + byte]
            store(self.wgt, near + n * g.tile_bytes + lane * pitch + byte, loaded)

    def _load_factor(self, at: Position, k_block: Expr) -> None:
        """Weights from a tensor: tiles of [lane][column], lanes that it has no element for zero.

        With ``COLUMNS`` a pixel of it is a lane, and runs of its channels are rows of tiles. With
        ``ROWS`` a pixel is a column: bytes that lie together in DRAM land a row apart.
        """
        g, t = self.g, self.t
        slot = self._weight_slot(at, KBlock(0, k_block))
        pitch = self._k0(k_block) * g.tile_bytes
        window = at.stripe // (g.window_rows // t.rows) if g.windowed else 0
        for load in factor_loads(g, t, window, at.block, k_block):
            with ExitStack() as stack:
                if load.when is not None:
                    stack.enter_context(when(load.when))
                at_loops = stack.enter_context(self.nest.grid(*load.loops))
                group, tile, lane, column = load.order(at_loops)
                near = (group * g.tiles_per_group + load.first + tile) * pitch
                near = slot + near + lane * g.columns + column
                store(self.wgt, near, self.W[load.source(group, tile, lane, column)])
        if g.last_valid == g.lanes:
            return
        with when(k_block == self.k0_blocks - 1):
            tiles = (self._tiles(at), t.tiles)
            unused = (g.lanes - g.last_valid) * g.columns
            first = pitch - unused
            with self.nest.grid(tiles, unused) as (tile, n):
                store(self.wgt, slot + tile * pitch + first + n, tirx.const(0, "int8"))

    def _k0(self, k_block: Expr) -> Expr:
        """Reduction tiles along k0 of a k block."""
        k0, most = self.g.reduction[2], self.t.k0
        return most if k0 % most == 0 else smaller(most, k0 - k_block * most)

    def _kernel_rows(self, kernel_block: Expr) -> Expr:
        """Kernel rows of a k block."""
        kh, most = self.g.reduction[0], self.t.kernel_rows
        return most if kh % most == 0 else smaller(most, kh - kernel_block * most)

    def _k_step(self, at: Position, k_block: KBlock) -> Expr:
        """How many k blocks came before."""
        before = at.step * self.kernel_blocks + k_block.rows
        return before * self.k0_blocks + k_block.k0

    def _weight_slot(self, at: Position, k_block: KBlock) -> Expr:
        if self.k_blocks > 1:
            return self._k_step(at, k_block) % 2 * self.w_slot
        if self.g.windowed:
            return at.step % 2 * self.w_slot if self.blocks * self.stripes > 1 else 0
        return self._blocks_before(at) % 2 * self.w_slot if self.blocks > 1 else 0

    def _blocks_before(self, at: Position) -> Expr:
        """Blocks that were loaded before that of a position: weights and records."""
        return at.step if self.t.rows_outer else at.block

    def _load_parameters(self, at: Position) -> None:
        words = self.g.parameter_words(self._channels(at), self._tiles(at))
        first = 0 if self.g.one_record else at.block * self.p_slot
        with self.nest.serial(words, self.p_slot) as n:
            store(self.par, self._par_slot(at) + n, self.P[first + n])

    def _par_slot(self, at: Position) -> Expr:
        if self.blocks == 1 or self.g.one_record:
            return 0
        return self._blocks_before(at) % 2 * self.p_slot

    def _input_slot(self, at: Position, k_block: KBlock) -> Expr:
        """Byte of ACT at which the stripe's first window begins, with the k block's first row."""
        g = self.g
        if g.input.near:
            row = at.stripe * (self.t.rows * g.row_stride)
            row = row + k_block.rows * (self.t.kernel_rows * self.layer.dilation[0])
            return g.first_pixel + row * g.pitch
        if self.in_pieces:
            return self._k_step(at, k_block) % 2 * self.x_slot if self._piece_count() > 1 else 0
        stripes_before = at.stripe if self.t.rows_outer else at.step
        return stripes_before % 2 * self.x_slot if self.stripes > 1 else 0

    def _output_slot(self, at: Position) -> Expr:
        return at.step % 2 * self.y_slot if self.blocks * self.stripes > 1 else 0

    def _output_byte(self, tensor: Stored, at: Position, row: Expr, column: Expr) -> Expr:
        """Byte of ACT of a stripe's pixel and the block's first channel; output or residual."""
        per_byte = 8 // tensor.bits
        if tensor.near:
            channel = at.block * (self.channels // per_byte)
            return tensor.pixel_offset(at.stripe * self.t.rows + row, column) + channel
        pixel = row * self.g.out[1] + column
        return self._output_slot(at) + pixel * (self.channels // per_byte)

    def _move_output(self, at: Position, *, load: bool) -> None:
        """Bring the residual's stripe in, or store the output's."""
        moved = self.g.residual if load else self.g.output
        if self.fields is None or moved is None or moved.near:
            return
        _, ow, k = self.g.out
        pixels, per_byte = self._rows(at) * ow, 8 // self.fields.bits
        pixel_bytes, block_bytes = k // per_byte, self.channels // per_byte
        loops = (pixels, self.t.rows * ow), (self._channels(at) // per_byte, block_bytes)
        with self.nest.grid(*loops) as (p, ch):
            far = (at.stripe * (self.t.rows * ow) + p) * pixel_bytes + at.block * block_bytes + ch
            near = self._output_slot(at) + p * block_bytes + ch
            if load:
                store(self.res, near, self.Z[far])
            else:
                store(self.Y, far, self.out[near])
