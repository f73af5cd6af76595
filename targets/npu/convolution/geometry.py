"""The numbers of one convolution on the machine: tiles, strides, packed weights.

Columns of the array are output channels. Channels of a group are cut into tiles of ``C``; a tile
never mixes groups.

    dense      reduction tiles (ky, kx, k0): R input channels at one kernel position
    shallow    C_in < R and no dilation: the kernel row's S * C_in bytes are contiguous and are
               the reduction axis, tiles (ky, 0, k0). ResNet's stem takes 7 * 2 tiles instead of 49.
    depthwise  no reduction across channels: one channel per column, kernel taps (ky, kx)

Weights that are a tensor (``targets.layers.Factor``) lie in DRAM as any tensor does, and are put in
the order of tiles as they are loaded. They make a grouped product, never a depthwise one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from targets.layers import Conv2d, Factor, Weights
from targets.npu.convolution.product_passes import ProductPasses, product_passes
from targets.npu.kinds.cost import ceil_div
from targets.npu.machine import isa
from targets.npu.machine.elements import pack
from targets.npu.schedule.job import Job
from targets.npu.schedule.meanings import (
    LONGEST_KERNEL,
    RECORD_WORDS,
    Expr,
    RequantizeFields,
    used_tile,
)
from targets.npu.schedule.storage import Stored
from targets.product_factors import ProductFactors

MAX_K0 = isa.largest(isa.Gemm, "k0")
MAX_VALID = isa.largest(isa.Gemm, "kvalid")
"""Reduction tiles along k0 that one GEMM counts."""


def _upright(job: Job[Conv2d]) -> Job[Conv2d]:
    """The job with a row of pixels as a column, where each pixel is by itself: tokens.

    Stripes are of rows, so a transformer's tensors, which are one row, or one of each window, could
    not be cut.
    """
    layer = job.layer
    residual = layer.requantize.residual if layer.requantize else None
    values = [layer.input, layer.output, *([residual.value] if residual else [])]
    alone = (layer.weight_shape[1:3], layer.strides, layer.padding) == ((1, 1), (1, 1), (0,) * 4)
    bordered = any(any(job.stored(value).border or ()) for value in values)
    windows = layer.right.value.shape[0] if isinstance(layer.right, Factor) else 1
    one_row = layer.input.shape[0] in (1, windows) and layer.input.shape[1] > 1
    if not one_row or not alone or bordered:
        return job
    turned = {v.name: replace(v, shape=(v.shape[0] * v.shape[1], 1, v.shape[2])) for v in values}
    tensors = {
        name: replace(stored, value=turned.get(name, stored.value))
        for name, stored in job.tensors.items()
    }
    requantize = layer.requantize
    if requantize is not None and residual is not None:
        moved = replace(residual, value=turned[residual.value.name])
        requantize = replace(requantize, residual=moved)
    source, output = turned[layer.input.name], turned[layer.output.name]
    layer = replace(layer, input=source, output=output, requantize=requantize)
    return replace(job, layer=layer, tensors=tensors)


class ConvGeometry:
    """Everything about a layer on an array that does not depend on how it is tiled.

    Attributes:
        layer: the convolution; a row of pixels that stand alone is a column.
        spec: the machine.
        act_bytes: of ACT that are left for it.
        beside: as of its job.
        stripe: likewise.
        sharing: likewise.
        follows: likewise.
        input: as it lies.
        output: likewise.
        residual: likewise, or None.
        factor: the tensor on the right, or None.
    """

    def __init__(self, job: Job[Conv2d]) -> None:
        job = _upright(job)
        self.layer, self.spec, self.act_bytes = job.layer, job.spec, job.act_bytes
        self.beside, self.stripe, self.sharing = job.beside, job.stripe, job.sharing
        self.follows = job.follows
        self.input, self.output = job.stored(job.layer.input), job.output
        added = job.layer.requantize.residual if job.layer.requantize else None
        self.residual: Stored | None = job.stored(added.value) if added else None
        right = job.layer.right
        self.factor: Stored | None = None
        if isinstance(right, Factor):
            self.factor = replace(job.stored(right.value), value=right.value)  # never upright
            self.pairing = right.pairing

    @property
    def key(self) -> Hashable:
        """Equal for layers that are tiled alike at the same costs: all but names and numbers."""
        return self.act_bytes, self.costs_key

    @cached_property
    def costs_key(self) -> Hashable:
        """Equal for layers of which a tiling that fits costs the same."""
        layer = self.layer
        return (
            *(self.spec.digest, self.beside, self.stripe, self.sharing, self.follows),
            *(layer.weight_shape, layer.right.bits, layer.groups),
            *(layer.strides, layer.padding, layer.dilation),
            *(layer.requantize is not None, self.requantize_cycles),
            self.fields and (self.fields.record_words, self.fields.words_behind),
            *(self.input.form, self.output.form, self.residual and self.residual.form),
            *((self.factor.form, self.pairing, self.one_record) if self.factor else ()),
            *((self.passes.count, self.passes.tiles) if self.passes else ()),
        )

    @cached_property
    def act_bits(self) -> int:
        """Bits that an input code takes in memory."""
        return self.input.bits

    @cached_property
    def wgt_bits(self) -> int:
        """Bits that a weight takes in memory: the least that the machine multiplies.

        A layer that the machine refuses is priced, too: as if it multiplied such weights. A
        tensor's are as wide as it lies.
        """
        bits = self.factor.bits if self.factor else self.layer.right.bits
        return min((p for p in self.spec.array.precisions if p >= bits), default=bits)

    @cached_property
    def lanes(self) -> int:
        """R * 8 / max(operand widths): input channels of a reduction tile."""
        return self.spec.array.lanes(max(self.act_bits, self.wgt_bits))

    @cached_property
    def pixel_bytes(self) -> int:
        """Bytes of an input pixel."""
        return self.input.pixel_bytes

    @cached_property
    def columns(self) -> int:
        """C: output channels of a column tile."""
        return self.spec.array.cols

    @cached_property
    def windowed(self) -> bool:
        """Whether each window of the image has weights of its own: a row of the factor."""
        return self.factor is not None and self.factor.shape[0] > 1

    @cached_property
    def window_rows(self) -> int:
        """Output rows of a window; of an image that is none, all."""
        return self.out[0] // self.factor.shape[0] if self.factor else self.out[0]

    @cached_property
    def depthwise(self) -> bool:
        """Whether it runs as DWC."""
        return self.layer.depthwise and self.factor is None

    @cached_property
    def by_channel(self) -> bool:
        """Whether a block of weights reads its own input channels, and no others."""
        return self.depthwise or self.groups > 1

    @cached_property
    def out(self) -> tuple[int, int, int]:
        """(OH, OW, K)."""
        return self.layer.output.shape

    @cached_property
    def kernel(self) -> tuple[int, int]:
        """(R, S), kernel rows and columns."""
        return self.layer.weight_shape[1:3]

    @cached_property
    def groups(self) -> int:
        """Groups as the array sees them: a depthwise layer is one group of column tiles."""
        return 1 if self.depthwise else self.layer.groups

    @cached_property
    def group_channels_in(self) -> int:
        """Input channels that one output channel reads."""
        return self.layer.weight_shape[3]

    @cached_property
    def group_channels_out(self) -> int:
        """Output channels of a group."""
        return self.out[2] // self.groups

    @cached_property
    def tiles_per_group(self) -> int:
        """Column tiles of a group."""
        return ceil_div(self.group_channels_out, self.columns)

    @cached_property
    def block_unit(self) -> int:
        """Column tiles that a block of weights is a multiple of: it holds whole groups."""
        return self.tiles_per_group if self.groups > 1 else 1

    @cached_property
    def tiles(self) -> int:
        """Column tiles in all."""
        return self.groups * self.tiles_per_group

    @cached_property
    def tail(self) -> int:
        """Valid channels of a group's last tile."""
        return self.group_channels_out - (self.tiles_per_group - 1) * self.columns

    @cached_property
    def factors(self) -> ProductFactors | None:
        """Of the products, by group of input channels."""
        right = self.layer.right
        return right.factors if isinstance(right, Weights) else None

    @cached_property
    def passes(self) -> ProductPasses | None:
        """The passes over groups of input channels; None where no products are scaled."""
        if self.factors is None:
            return None
        tiles = [self.channel(tile) for tile in range(self.tiles)]
        last = np.arange(1, self.tiles + 1) % self.tiles_per_group == 0
        valid = np.where(last, self.tail, self.columns)
        columns = np.arange(self.columns)
        rows = np.where(columns < valid[:, None], np.array(tiles)[:, None] + columns, -1)
        kh, kw = self.kernel
        taps = kh if self.folded else kh * kw
        most = self.spec.sram.wgt.bytes // 2 // (taps * self.tile_bytes)
        length = self.group_channels_in * (kw if self.folded else 1)
        unit = 8 // self.act_bits
        return product_passes(
            self.factors, rows, length, self.lanes, min(max(most, 1), MAX_K0), unit
        )

    @cached_property
    def folded(self) -> bool:
        """Whether a kernel row is one reduction axis (shallow inputs).

        Pixels of a row touch in memory, so kx and channel are one run of bytes unless a dilation
        leaves gaps in it. Without that, an RGB input would use 3 of the array's rows.
        """
        shallow = self.group_channels_in == self.layer.input.shape[2] < self.lanes
        if self.factors is not None and self.factors.groups > 1:
            return False
        return shallow and not self.depthwise and self.kernel[1] > 1 and self.layer.dilation[1] == 1

    @cached_property
    def reduction(self) -> tuple[int, int, int]:
        """Extents of (ky, kx, k0); with scaled products k0 counts the tiles of all passes."""
        kh, kw = self.kernel
        if self.depthwise:
            return kh, kw, 1
        if self.passes is not None:
            return kh, 1 if self.folded else kw, self.passes.count * self.passes.tiles
        if self.folded:
            return kh, 1, ceil_div(kw * self.group_channels_in, self.lanes)
        return kh, kw, ceil_div(self.group_channels_in, self.lanes)

    @cached_property
    def most_valid(self) -> int:
        """Valid lanes of any reduction tile."""
        length = self.group_channels_in * (self.kernel[1] if self.folded else 1)
        return min(self.lanes, length if self.passes is None else self.passes.piece)

    @cached_property
    def last_valid(self) -> int:
        """Valid lanes of the last k0 tile."""
        kw = self.kernel[1] if self.folded else 1
        return self.group_channels_in * kw - (self.reduction[2] - 1) * self.lanes

    @cached_property
    def tile_bytes(self) -> int:
        """Bytes of one (column tile, reduction tile) of weights."""
        elements = self.columns if self.depthwise else self.lanes * self.columns
        return elements * self.wgt_bits // 8

    @cached_property
    def stored_tile(self) -> tuple[int, int]:
        """Lanes and columns of a tile of weights that stand in DRAM, the same of all tiles.

        The array looks at no others, so it doesn't matter what WGT has there. (1, columns) of a
        depthwise layer.
        """
        if self.factors is not None:
            return self.lanes, self.columns
        # A kernel that k1 and k2 can't count is one of k0, of which all lanes count.
        counted = max(self.kernel) <= LONGEST_KERNEL and self.reduction[2] == 1
        lanes, columns = used_tile(
            self.last_valid if counted else self.lanes,
            self.tail if self.tiles_per_group == 1 else self.columns,
            *(self.act_bits, self.wgt_bits),
            by_lane=not self.depthwise,
        )
        return 1 if self.depthwise else min(lanes, self.lanes), min(columns, self.columns)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of a tile of weights in DRAM."""
        return math.prod(self.stored_tile) * self.wgt_bits // 8

    @cached_property
    def row_step(self) -> int:
        """Input rows between loaded rows: a one-row kernel skips what a stride jumps over.

        A tensor that stays in ACT is there with all its rows, and the array steps over them.
        """
        loads = not self.input.near
        return self.layer.strides[0] if loads and self.kernel[0] == 1 else 1

    @cached_property
    def row_stride(self) -> int:
        """Loaded rows between two output rows."""
        return self.layer.strides[0] // self.row_step

    @cached_property
    def column_step(self) -> int:
        """Input columns between loaded columns: as with rows, where it means fewer bursts."""
        stride, burst = self.layer.strides[1], self.spec.dma.burst
        loads = not self.input.near and self.kernel[1] == 1
        fewer = ceil_div(self.pixel_bytes, burst) * burst < stride * self.pixel_bytes
        return stride if loads and fewer else 1

    @cached_property
    def column_stride(self) -> int:
        """Loaded columns between two output columns."""
        return self.layer.strides[1] // self.column_step

    def rows_in(self, rows: int, kernel_rows: int) -> int:
        """Loaded rows that ``rows`` output rows need of so many rows of the kernel."""
        return (rows - 1) * self.row_stride + (kernel_rows - 1) * self.layer.dilation[0] + 1

    @cached_property
    def width_in(self) -> int:
        """Loaded columns that an output row needs, padding included."""
        return (
            (self.out[1] - 1) * self.column_stride
            + (self.kernel[1] - 1) * self.layer.dilation[1]
            + 1
        )

    @cached_property
    def pitch(self) -> int:
        """Bytes from one row in ACT to the next."""
        if self.input.near:
            return self.input.row_bytes
        return self.width_in * self.pixel_bytes

    @cached_property
    def first_pixel(self) -> int:
        """Where in ACT the first window begins."""
        if not self.input.near:
            return 0
        top, left, _, _ = self.layer.padding
        return int(self.input.pixel_offset(-top, -left))

    @cached_property
    def taps(self) -> int:
        """Cycles that DWC takes per pixel; a window keeps the columns that the next one reads."""
        kh, kw = self.kernel
        stride, dilation = self.layer.strides[1], self.layer.dilation[1]
        if self.spec.array.dw == "window" and stride % dilation == 0:
            return kh * min(kw, stride // dilation)
        return kh * kw

    @cached_property
    def requantize_cycles(self) -> int:
        """Cycles that REQ takes per pixel of a column tile."""
        requantize, vu = self.layer.requantize, self.spec.vu
        if requantize is None:
            return 0
        lanes = vu.mult_lanes if (requantize.multiplier != 1).any() else vu.shift_lanes
        return ceil_div(min(self.columns, self.group_channels_out), lanes)

    @cached_property
    def one_record(self) -> bool:
        """Whether the records of one tile serve for all: a product of tensors has no biases.

        The columns of Q K^T are the tokens, and PAR would not hold a record for each of many.
        """
        requantize = self.layer.requantize
        if self.factor is None or requantize is None:
            return False
        numbers = [self.layer.bias, requantize.multiplier, requantize.shift]
        numbers += [requantize.residual.shift] if requantize.residual else []
        alike = len(set(requantize.rounding.borders)) <= 1
        return alike and all((each == each[0]).all() for each in numbers)

    @cached_property
    def fields(self) -> RequantizeFields | None:
        """The immediates of the layer's REQ instructions; None where the sums are the output."""
        requantize = self.layer.requantize
        if requantize is None:
            return None
        residual = requantize.residual
        return RequantizeFields(
            shift=int(requantize.shift.min()),
            multiplier=bool((requantize.multiplier != 1).any()),
            zero_point=requantize.zero_point,
            low=requantize.low,
            high=requantize.high,
            dtype=self.output.dtype,
            rounding=requantize.rounding.mode,
            residual_dtype=residual.value.dtype if residual else "",
            residual_zero_point=residual.zero_point if residual else 0,
            residual_multiplier=residual.multiplier if residual else 1,
            bits=self.output.bits,
            # A row stands behind a tile's last record, and tiles that share records differ in that.
            one_row=len(set(requantize.rounding.borders)) == 1 and not self.one_record,
        )

    def parameter_words(self, channels: Expr, tiles: Expr) -> Expr:
        """Words of the parameters of a block of so many channels and column tiles."""
        if self.one_record:
            channels, tiles = min(self.columns, self.out[2]), 1
        if self.fields is None:
            return channels * RECORD_WORDS
        return self.fields.parameter_words(channels, tiles)

    def channel(self, tile: int) -> int:
        """First output channel of a column tile."""
        group, within = divmod(tile, self.tiles_per_group)
        return group * self.group_channels_out + within * self.columns

    def packed_weights(
        self, tiles_per_block: int, k0_per_block: int, kernel_rows: int
    ) -> npt.NDArray[np.int8]:
        """Weights in the order the array consumes them, of each tile those of ``stored_tile``.

        int8 flat, elements packed; nested as (tile block, block of kernel rows, k0 block, tile, ky,
        kx, k0, lane, column), depthwise without k0 and lane. Zero where a tile has no channel.
        """
        kh, kw = self.kernel
        k, c = self.group_channels_out, self.columns
        right = self.layer.right
        assert isinstance(right, Weights)
        weight = right.codes.reshape(self.groups, k, kh, kw, self.group_channels_in)
        columns = np.zeros((self.groups, self.tiles_per_group * c, *weight.shape[2:]), np.int8)
        columns[:, :k] = weight
        columns = columns.reshape(self.tiles, c, kh, kw, -1)
        if self.passes is not None:
            return self._packed_passes(columns, self.passes, tiles_per_block, k0_per_block)
        _, k1, k0 = self.reduction
        deep = 1 if self.depthwise else self.lanes
        lanes = np.zeros((self.tiles, c, kh, k1, k0 * deep), np.int8)
        flat = columns.reshape(self.tiles, c, kh, k1, -1)
        lanes[..., : flat.shape[-1]] = flat
        tiles = lanes.reshape(self.tiles, c, kh, k1, k0, deep).transpose(0, 2, 3, 4, 5, 1)
        stored_lanes, stored_columns = self.stored_tile
        tiles = tiles[..., :stored_lanes, :stored_columns]
        blocks = [
            tiles[t : t + tiles_per_block, y : y + kernel_rows, :, k : k + k0_per_block].reshape(-1)
            for t in range(0, self.tiles, tiles_per_block)
            for y in range(0, kh, kernel_rows)
            for k in range(0, k0, k0_per_block)
        ]
        return pack(np.concatenate(blocks), self.wgt_bits).view(np.int8)

    def _packed_passes(
        self,
        columns: npt.NDArray[np.int8],
        passes: ProductPasses,
        tiles_per_block: int,
        k0_per_block: int,
    ) -> npt.NDArray[np.int8]:
        """The same of weights [tile, column, ky, kx, channel] whose products are scaled.

        Nested as (tile block, k0 block, tile, pass, ky, kx, k0, lane, column).
        """
        c, (kh, k1, _), lanes = self.columns, self.reduction, self.lanes
        flat = columns.reshape(self.tiles, c, kh, k1, -1)
        slots = np.zeros((self.tiles, passes.count, kh * k1 * passes.tiles * lanes * c), np.int8)
        for n in range(passes.count):
            first = n // passes.each * passes.piece
            part = flat[..., first : first + passes.piece]
            part = part * passes.columns[:, n, :, None, None, None]
            deep = ceil_div(part.shape[-1], lanes)
            padded = np.zeros((*part.shape[:-1], deep * lanes), np.int8)
            padded[..., : part.shape[-1]] = part
            tiles = padded.reshape(self.tiles, c, kh, k1, deep, lanes).transpose(0, 2, 3, 4, 5, 1)
            slots[:, n, : tiles[0].size] = tiles.reshape(self.tiles, -1)
        each = k0_per_block // passes.tiles
        blocks = [
            slots[t : t + tiles_per_block, n : n + each].reshape(-1)
            for t in range(0, self.tiles, tiles_per_block)
            for n in range(0, passes.count, each)
        ]
        return pack(np.concatenate(blocks), self.wgt_bits).view(np.int8)

    def parameters(self) -> npt.NDArray[np.int32]:
        """Records of all channels, or of one tile's, tile after tile: bias; multiplier; shifts.

        The third word holds the shift above that of REQ and, from bit 8 on, the residual's. Four
        borders to a word follow, those of a channel its record or one row the records of a tile.
        """
        requantize, fields = self.layer.requantize, self.fields
        assert requantize is not None
        assert fields is not None
        words = np.zeros((self.out[2], RECORD_WORDS), np.int64)
        words[:, 0] = self.layer.bias.astype(np.int64) << requantize.fraction
        words[:, 1] = requantize.multiplier
        words[:, 2] = requantize.shift - fields.shift
        if requantize.residual is not None:
            words[:, 2] |= requantize.residual.shift.astype(np.int64) << 8
        records = words.astype(np.int32)
        if requantize.rounding.borders:
            table = requantize.rounding.table(requantize.low, requantize.high)
            rows = np.pad(table, ((0, 0), (0, -table.shape[1] % 4))).view("<i4")
            if fields.one_row:
                tiles = np.split(records, [self.channel(tile) for tile in range(1, self.tiles)])
                return np.concatenate([part.ravel() for tile in tiles for part in (tile, rows[0])])
            rows = np.broadcast_to(rows, (self.out[2], rows.shape[1]))
            records = np.concatenate([records, rows], axis=1)
        if self.one_record:
            records = records[: min(self.columns, self.out[2])]
        return records.ravel()
