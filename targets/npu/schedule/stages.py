"""What a convolution keeps where, and the copies between DRAM and the scratchpads.

ACT, WGT and PAR hold two slots of whatever is loaded more than once, so that the next load runs
beside the compute; ACC holds the sums of two or more chunks for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from targets.layers import Conv2d, Value
from targets.npu.schedule.geometry import ConvGeometry, ceil_div
from targets.npu.schedule.intrinsics import ACC, ACT, PAR, RECORD_WORDS, WGT
from targets.npu.schedule.loops import (
    Expr,
    LoopNest,
    buffer_argument,
    scratchpad,
    smaller,
    store,
    tensor_argument,
    when,
)
from targets.npu.schedule.meanings import RequantizeFields
from targets.npu.schedule.storage import pixel_offset, repeated
from targets.npu.schedule.tile_cost import ConvTiling, block_channels
from targets.npu.schedule.tiling import acc_rows, input_slot_bytes


def requantize_fields(layer: Conv2d) -> RequantizeFields | None:
    """The immediates of the layer's REQ instructions; None where the sums are the output."""
    requantize = layer.requantize
    if requantize is None:
        return None
    residual = requantize.residual
    return RequantizeFields(
        shift=int(requantize.shift.min()),
        multiplier=bool((requantize.multiplier != 1).any()),
        zero_point=requantize.zero_point,
        low=requantize.low,
        high=requantize.high,
        dtype=layer.output.dtype,
        residual_dtype=residual.value.dtype if residual else "",
        residual_zero_point=residual.zero_point if residual else 0,
        residual_multiplier=residual.multiplier if residual else 1,
        bits=layer.output.bits,
    )


MAX_ACC_SLOTS = 8
"""Chunks whose sums may wait for the vector unit, or for their store, at the same time."""


@dataclass
class Position:
    """Where the outer loops stand: block, stripe, count of both, and whether either is new."""

    block: Expr
    stripe: Expr
    step: Expr
    new_block: Expr
    new_stripe: Expr


class ConvStages:
    """One layer's buffers, and a method per copy."""

    def __init__(self, geometry: ConvGeometry, tiling: ConvTiling) -> None:
        self.g, self.t, self.layer = geometry, tiling, geometry.layer
        self.fields = requantize_fields(self.layer)
        residual = self.layer.requantize.residual if self.layer.requantize else None
        self.residual = residual.value if residual else None
        self.fraction = self.layer.requantize.fraction if self.layer.requantize else 0
        self.blocks = ceil_div(geometry.tiles, tiling.tiles)
        self.stripes = ceil_div(geometry.out[0], tiling.rows)
        self.k_blocks = ceil_div(geometry.reduction[2], tiling.k0)
        self.channels = block_channels(geometry, tiling.tiles)
        self.nest = LoopNest()

    def _declare_arguments(self, weights: int, parameters: int) -> None:
        """The function's buffers; ``weights`` bytes, ``parameters`` words."""
        layer = self.layer
        self.X = tensor_argument("input", layer.input, self.g.spec)
        if self.residual is not None:
            self.Z = tensor_argument("residual", self.residual, self.g.spec)
        self.W = buffer_argument("weights", weights, "int8")
        self.P = buffer_argument("parameters", parameters, "int32")
        self.Y = tensor_argument("output", layer.output, self.g.spec)

    def _allocate(self) -> None:
        g, t, layer = self.g, self.t, self.layer
        self.x_slot = input_slot_bytes(g, t.rows)
        self.y_slot = t.rows * g.out[1] * self.channels * layer.output.bits // 8
        self.w_slot = t.tiles * g.reduction[0] * g.reduction[1] * t.k0 * g.tile_bytes
        pixels = t.chunk_rows * t.chunk_columns
        self.acc_slots = min(MAX_ACC_SLOTS, acc_rows(g) // pixels)
        self.acc_slot = pixels * g.columns
        weight_slots = min(2, self.blocks * self.k_blocks)
        output_slots = min(2, self.blocks * self.stripes)
        self.act = self.X
        if layer.input.border is None:
            slots = min(2, self.stripes)
            self.act = scratchpad("act", self.x_slot * slots, layer.input.dtype, ACT)
        self.wgt = scratchpad("wgt", self.w_slot * weight_slots, "int8", WGT)
        self.acc = scratchpad("acc", self.acc_slot * self.acc_slots, "int32", ACC)
        if self.fields is None:
            return
        self.p_slot = self.channels * RECORD_WORDS
        self.par = scratchpad("par", self.p_slot * min(2, self.blocks), "int32", PAR)
        self.out = self.Y
        if layer.output.border is None:
            self.out = scratchpad("out", self.y_slot * output_slots, layer.output.dtype, ACT)
        if self.residual is not None:
            self.res = self.Z
            if self.residual.border is None:
                self.res = scratchpad("res", self.y_slot * output_slots, self.residual.dtype, ACT)

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

    def _load_stripe(self, at: Position) -> None:
        """Input rows of the stripe, with the zero point where the window leaves the image."""
        g, layer = self.g, self.layer
        if layer.input.border is not None:
            return
        h, w, _ = layer.input.shape
        c = g.pixel_bytes
        top, left, _, _ = layer.padding
        slot = self._input_slot(at)
        rows = g.rows_in(self.t.rows)
        rows_now = (self._rows(at) - 1) * g.row_stride + rows - (self.t.rows - 1) * g.row_stride
        with when(at.new_stripe), self.nest.grid((rows_now, rows), g.width_in, c) as (y, x, ch):
            source_y = at.stripe * (self.t.rows * layer.strides[0]) + y * g.row_step - top
            source_x = x * g.column_step - left
            with self.nest.block("load") as b:
                inside = tirx.all(source_y >= 0, source_y < h, source_x >= 0, source_x < w)
                value = self.X[b((source_y * w + source_x) * c + ch)]
                fill = tirx.const(repeated(layer.input_zero_point, layer.input), layer.input.dtype)
                target = b(slot + (y * g.width_in + x) * c + ch)
                store(self.act, target, tirx.if_then_else(b(inside), value, fill))

    def _load_weights(self, at: Position, k_block: Expr) -> None:
        g, t = self.g, self.t
        per_k0 = g.reduction[0] * g.reduction[1] * g.tile_bytes
        k0 = g.reduction[2]
        k0_now = t.k0 if k0 % t.k0 == 0 else smaller(t.k0, k0 - k_block * t.k0)
        source = at.block * (t.tiles * k0 * per_k0) + self._tiles(at) * (k_block * t.k0 * per_k0)
        size = self._tiles(at) * k0_now * per_k0
        with self.nest.serial(size, self.w_slot) as n, self.nest.block("load_weights") as b:
            store(self.wgt, b(self._weight_slot(at, k_block) + n), self.W[b(source + n)])

    def _weight_slot(self, at: Position, k_block: Expr) -> Expr:
        if self.k_blocks > 1:
            return (at.step * self.k_blocks + k_block) % 2 * self.w_slot
        return at.block % 2 * self.w_slot if self.blocks > 1 else 0

    def _load_parameters(self, at: Position) -> None:
        words = self._channels(at) * RECORD_WORDS
        slot = at.block % 2 * self.p_slot if self.blocks > 1 else 0
        with self.nest.serial(words, self.p_slot) as n, self.nest.block("load_parameters") as b:
            store(self.par, b(slot + n), self.P[b(at.block * self.p_slot + n)])

    def _input_slot(self, at: Position) -> Expr:
        """Byte of ACT at which the stripe's first window begins."""
        g = self.g
        if self.layer.input.border is not None:
            return g.first_pixel + at.stripe * (self.t.rows * g.row_stride * g.pitch)
        return at.stripe % 2 * self.x_slot if self.stripes > 1 else 0

    def _output_slot(self, at: Position) -> Expr:
        return at.step % 2 * self.y_slot if self.blocks * self.stripes > 1 else 0

    def _output_byte(self, value: Value, at: Position, row: Expr, column: Expr) -> Expr:
        """Byte of ACT of a stripe's pixel and the block's first channel; output or residual."""
        per_byte = 8 // value.bits
        if value.border is not None:
            channel = at.block * (self.channels // per_byte)
            return pixel_offset(value, at.stripe * self.t.rows + row, column) + channel
        pixel = row * self.g.out[1] + column
        return self._output_slot(at) + pixel * (self.channels // per_byte)

    def _move_output(self, at: Position, *, load: bool) -> None:
        """Bring the residual's stripe in, or store the output's."""
        moved = self.residual if load else self.layer.output
        if self.fields is None or moved is None or moved.border is not None:
            return
        _, ow, k = self.g.out
        pixels, per_byte = self._rows(at) * ow, 8 // self.fields.bits
        pixel_bytes, block_bytes = k // per_byte, self.channels // per_byte
        loops = (pixels, self.t.rows * ow), (self._channels(at) // per_byte, block_bytes)
        with self.nest.grid(*loops) as (p, ch):
            far = (at.stripe * (self.t.rows * ow) + p) * pixel_bytes + at.block * block_bytes + ch
            near = self._output_slot(at) + p * block_bytes + ch
            with self.nest.block("load_residual" if load else "store") as b:
                if load:
                    store(self.res, b(near), self.Z[b(far)])
                else:
                    store(self.Y, b(far), self.out[b(near)])
