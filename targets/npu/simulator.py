"""What every instruction does, in NumPy: the readable definition of the machine.

    outputs = Simulator(spec).run(program, inputs)

One image, instructions in program order, memories zero at the start. The executor (``executor.py``) is the same machine
compiled by TVM; tests hold the two against each other. Nothing of time is here: see ``timing.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from targets.arithmetic import (
    MAX_SHIFT,
    Rounding,
    requantize,
    residual_term,
    saturate,
    scale_product,
    shift_round,
)
from targets.errors import InputError, TrapError
from targets.npu import isa
from targets.npu.legality import RECORD_BYTES, TABLE_BYTES, byte_value, check, row_bytes, tile_shape
from targets.npu.program import Program
from targets.npu.spec import NpuSpec

Bytes: TypeAlias = npt.NDArray[np.uint8]
Ints: TypeAlias = npt.NDArray[np.int64]

RECORD = np.dtype(
    [
        ("bias", "<i4"),
        ("mult", "<u2"),
        ("border", "<u2"),
        ("shift", "u1"),
        ("res_shl", "u1"),
        ("zero", "<u2"),
    ]
)
"""A channel's parameters in PAR."""
MAX_RECORD_SHIFT = 15
MAX_RESIDUAL_SHIFT = 31
_ACT, _WGT, _ACC, _PAR = range(4)


@dataclass
class Counters:
    """What a run did.

    Attributes:
        instructions: executed.
        macs: products of valid lanes and columns.
        loaded: bytes read from DRAM.
        stored: bytes written to DRAM.
    """

    instructions: int = 0
    macs: int = 0
    loaded: int = 0
    stored: int = 0


@dataclass(frozen=True)
class _Weights:
    """The tile that the array holds: lanes x C, and the codes of the operands' widths it was loaded for."""

    tile: Ints
    act_bits: int
    wgt_bits: int


def unpack(packed: Bytes, bits_code: int, *, unsigned: bool) -> Ints:
    """The elements in the last axis of packed bytes, element 0 in the low bits.

    Args:
        packed: uint8[..., n].
        bits_code: 0, 1, 2 for 8, 4, 2 bits.
        unsigned: how an element is read.

    Returns:
        int64[..., n * 8 / bits].
    """
    width = isa.WIDTHS[bits_code]
    fields = packed[..., None].astype(np.int64) >> np.arange(0, 8, width) & ((1 << width) - 1)
    values = fields.reshape(*packed.shape[:-1], -1)
    return values if unsigned else values - ((values >> (width - 1)) << width)


def pack(values: Ints, bits_code: int) -> Bytes:
    """Codes as packed bytes, the last byte of a row filled with zero bits; the converse of ``unpack``."""
    width = isa.WIDTHS[bits_code]
    per_byte = 8 // width
    missing = -values.shape[-1] % per_byte
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)]) & ((1 << width) - 1)
    fields = padded.reshape(*values.shape[:-1], -1, per_byte) << np.arange(0, 8, width)
    return fields.sum(axis=-1).astype(np.uint8)


class Simulator:
    """The machine of a description.

    Attributes:
        counters: of the last run.
    """

    def __init__(self, spec: NpuSpec) -> None:
        self.spec = spec
        self.counters = Counters()

    def run(self, program: Program, inputs: bytes | npt.NDArray[np.generic]) -> Bytes:
        """Execute a program on one image.

        Args:
            program: compiled for this machine.
            inputs: the bytes of region 2.

        Returns:
            The bytes of region 3.

        Raises:
            InputError: the program is another machine's, or the inputs have the wrong size.
            TrapError: an illegal instruction, a token that never comes, or no HALT.
        """
        if program.digest != self.spec.digest:
            msg = (
                f"the program was compiled for {program.machine} ({program.digest[:12]}), this machine "
                f"is {self.spec.name} ({self.spec.digest[:12]}). Rebuild it for this machine."
            )
            raise InputError(msg)
        image = np.frombuffer(inputs if isinstance(inputs, bytes) else inputs.tobytes(), np.uint8)
        if image.size != program.input_bytes:
            msg = f"the program reads {program.input_bytes} input bytes, got {image.size}"
            raise InputError(msg)
        self._reset(program, image)
        for index in self._order(program):
            instruction = program.instructions[index]
            self.index = index
            check(instruction, self.spec, index, [region.size for region in self.dram])
            self._pop(instruction)
            self.counters.instructions += 1
            _STEPS[type(instruction)](self, instruction)
            self._push(instruction)
            if isinstance(instruction, isa.Halt):
                self._check_tokens()
                return self.dram[3]
        raise TrapError(len(program.instructions), "the program ends without HALT")

    def _order(self, program: Program) -> Iterator[int]:
        """Positions of the instructions, as they are to be executed."""
        yield from range(len(program.instructions))

    def _reset(self, program: Program, image: Bytes) -> None:
        sram = self.spec.sram
        constants = np.frombuffer(program.constants, np.uint8)
        arena, outputs = (
            np.zeros(n, np.uint8) for n in (program.arena_bytes, program.output_bytes)
        )
        self.dram = [constants, arena, image, outputs]
        self.acc = np.zeros((self.spec.acc_rows, self.spec.array.cols), np.int32)
        self.memories = [
            np.zeros(sram.act.bytes, np.uint8),
            np.zeros(sram.wgt.bytes, np.uint8),
            self.acc.view(np.uint8).reshape(-1),
            np.zeros(sram.par.bytes, np.uint8),
        ]
        self.act, self.wgt, _, self.par = self.memories
        self.held: _Weights | None = None
        self.tokens = np.zeros((4, 4), np.int64)
        self.counters = Counters()

    # --- tokens -----------------------------------------------------------------------------------------------------

    def _pop(self, i: isa.Instruction) -> None:
        for source in range(4):
            if i.pop >> source & 1:
                if self.tokens[source, i.unit] == 0:
                    names = isa.UNIT_NAMES[source], isa.UNIT_NAMES[i.unit]
                    msg = "no token from {} to {} has been pushed".format(*names)
                    raise TrapError(self.index, msg)
                self.tokens[source, i.unit] -= 1

    def _push(self, i: isa.Instruction) -> None:
        for target in range(4):
            self.tokens[i.unit, target] += i.push >> target & 1

    def _check_tokens(self) -> None:
        if self.tokens.any():
            source, target = np.argwhere(self.tokens)[0]
            names = isa.UNIT_NAMES[source], isa.UNIT_NAMES[target]
            msg = "HALT with tokens left from {} to {}".format(*names)
            raise TrapError(self.index, msg)

    # --- memory -----------------------------------------------------------------------------------------------------

    def load(self, i: isa.Load) -> None:
        """LD: rows with their borders, one after the other."""
        memory, region = self.memories[i.mem], self.dram[i.region]
        width = i.pad_x0 + i.x_bytes + i.pad_x1
        for plane in range(i.z):
            for row in range(i.pad_y0 + i.y + i.pad_y1):
                target = i.spm_addr + plane * i.spm_zstride + row * i.spm_ystride
                memory[target : target + width] = i.padval
                y = row - i.pad_y0
                if not i.fill and 0 <= y < i.y:
                    source = i.dram_off + plane * i.dram_zstride + y * i.dram_ystride
                    begin = target + i.pad_x0
                    memory[begin : begin + i.x_bytes] = region[source : source + i.x_bytes]
        self.counters.loaded += 0 if i.fill else i.z * i.y * i.x_bytes

    def store(self, i: isa.Store) -> None:
        """ST: rows from a memory to DRAM."""
        memory, region = self.memories[i.mem], self.dram[i.region]
        for plane in range(i.z):
            for y in range(i.y):
                source = i.spm_addr + plane * i.spm_zstride + y * i.spm_ystride
                target = i.dram_off + plane * i.dram_zstride + y * i.dram_ystride
                region[target : target + i.x_bytes] = memory[source : source + i.x_bytes]
        self.counters.stored += i.z * i.y * i.x_bytes

    # --- sums -------------------------------------------------------------------------------------------------------

    def gemm(self, i: isa.Gemm) -> None:
        """GEMM: for each tile (k2, k1, k0) the products of every pixel (m1, m0) with the tile's weights."""
        lanes, act_bytes, wgt_bytes = tile_shape(i, self.spec)
        pixels = self._pixels(i)
        for tile, (k2, k1, k0) in enumerate(np.ndindex(i.k2, i.k1, i.k0)):
            if i.wgt_hold:
                weights = self._held_weights(i)
            else:
                begin = i.wgt_addr + tile * wgt_bytes
                packed = self.wgt[begin : begin + wgt_bytes]
                flat = unpack(packed, i.wgt_bits, unsigned=False)[: lanes * self.spec.array.cols]
                weights = flat.reshape(lanes, -1)
                self.held = _Weights(weights, i.act_bits, i.wgt_bits)
            valid = i.kvalid if k0 == i.k0 - 1 else lanes
            start = i.act_addr + k2 * i.as_k2 + k1 * i.as_k1 + k0 * i.as_k0
            packed = self.act[start + pixels[:, None] + np.arange(act_bytes)]
            act = unpack(packed, i.act_bits, unsigned=bool(i.act_unsigned))[:, :valid]
            # Sums of at most 512 products of two bytes are exact in float64, whose matmul is the fast one.
            product = (act.astype(np.float64) @ weights[:valid].astype(np.float64)).astype(np.int64)
            sign = (0, 1, -1)[i.alpha_sign]
            scaled = scale_product(product, i.frac, i.alpha_a, i.alpha_b, sign)
            self._accumulate(i, scaled, first=tile == 0)
            self.counters.macs += pixels.size * valid * i.nvalid

    def depthwise(self, i: isa.Depthwise) -> None:
        """DWC: one channel per column, taps in the order ky, kx."""
        columns = self.spec.array.cols
        act_bytes, wgt_bytes = (row_bytes(columns, code) for code in (i.act_bits, i.wgt_bits))
        pixels = self._pixels(i)
        self.held = None
        for tap, (ky, kx) in enumerate(np.ndindex(i.kh, i.kw)):
            begin = i.wgt_addr + tap * wgt_bytes
            weights = unpack(self.wgt[begin : begin + wgt_bytes], i.wgt_bits, unsigned=False)
            start = i.act_addr + ky * i.as_ky + kx * i.as_kx
            packed = self.act[start + pixels[:, None] + np.arange(act_bytes)]
            act = unpack(packed, i.act_bits, unsigned=bool(i.act_unsigned))
            product = act[:, :columns] * weights[:columns]
            self._accumulate(i, product << i.frac, first=tap == 0)
            self.counters.macs += pixels.size * i.nvalid

    def _pixels(self, i: isa.Gemm | isa.Depthwise) -> Ints:
        """Offset of each pixel's activations, in the order of accumulator rows."""
        return (np.arange(i.m1)[:, None] * i.as_m1 + np.arange(i.m0) * i.as_m0).reshape(-1)

    def _held_weights(self, i: isa.Gemm) -> Ints:
        if self.held is None or (self.held.act_bits, self.held.wgt_bits) != (
            i.act_bits,
            i.wgt_bits,
        ):
            raise TrapError(self.index, "GEMM: the array holds no weights of these widths")
        return self.held.tile

    def _accumulate(self, i: isa.Gemm | isa.Depthwise, addend: Ints, *, first: bool) -> None:
        """Add to the accumulator rows; columns from nvalid on get nothing. Sums wrap at 32 bits."""
        addend[:, i.nvalid :] = 0
        rows = slice(i.acc_row, i.acc_row + addend.shape[0])
        before = 0 if first and i.acc_init else self.acc[rows].astype(np.int64)
        self.acc[rows] = (before + addend).astype(np.int32)

    # --- codes ------------------------------------------------------------------------------------------------------

    def requantize(self, i: isa.Requantize) -> None:
        """REQ: the sums of every pixel, with each channel's record, to codes."""
        begin = i.par_addr * 4
        records = self.par[begin : begin + i.nvalid * RECORD_BYTES].view(RECORD)
        self._check_records(i, records)
        low, high, zero = (byte_value(x, i.out_unsigned) for x in (i.lo, i.hi, i.zp))
        sums = self.acc[i.acc_row : i.acc_row + i.m0 * i.m1, : i.nvalid]
        rounding = Rounding(i.rounding)
        borders = None
        if rounding is Rounding.BORDER:
            borders = self.par[records["border"][:, None] + np.arange(high - low)]
        residual: Any = 0
        if i.residual:
            codes = self._codes(
                self._rows(i.res_addr, i, i.rs_m0, i.rs_m1), i.nvalid, i.residual_unsigned
            )
            res_zero = byte_value(i.res_zp, i.residual_unsigned)
            residual = residual_term(codes, res_zero, i.res_mult, records["res_shl"])
        codes = requantize(
            sums,
            records["bias"],
            i.shift + records["shift"].astype(np.int64),
            zero_point=zero,
            low=low,
            high=high,
            multiplier=records["mult"] if i.multiply else 1,
            residual=residual,
            rounding=rounding,
            borders=borders,
        )
        for target, row in zip(
            self._rows(i.dst_addr, i, i.ds_m0, i.ds_m1), pack(codes, i.out_bits), strict=True
        ):
            self.act[target : target + row.size] = row

    def _check_records(self, i: isa.Requantize, records: npt.NDArray[np.void]) -> None:
        shift = records["shift"].astype(np.int64)
        illegal = (shift > MAX_RECORD_SHIFT) | (shift + i.shift > MAX_SHIFT)
        illegal |= (records["res_shl"] > MAX_RESIDUAL_SHIFT) | (records["zero"] != 0)
        if i.rounding == Rounding.BORDER:
            low, high = (byte_value(x, i.out_unsigned) for x in (i.lo, i.hi))
            illegal |= records["border"].astype(np.int64) + (high - low) > self.par.size
        if illegal.any():
            channel = int(np.argmax(illegal))
            msg = f"REQ: the record of channel {channel} is illegal: {records[channel]}"
            raise TrapError(self.index, msg)

    def _rows(self, start: int, i: isa.Requantize, m0: int, m1: int) -> Ints:
        return (start + np.arange(i.m1)[:, None] * m1 + np.arange(i.m0) * m0).reshape(-1)

    def _codes(self, starts: Ints, count: int, unsigned: int) -> Ints:
        return byte_value(self.act[starts[..., None] + np.arange(count)].astype(np.int64), unsigned)

    def add(self, i: isa.Add) -> None:
        """VADD: two tensors on a common grid."""
        a, b = (
            self._codes(np.array(at), i.len, u)
            for at, u in ((i.a_addr, i.a_unsigned), (i.b_addr, i.b_unsigned))
        )
        t = residual_term(a, byte_value(i.za, i.a_unsigned), i.ma, i.sa)
        t = t + residual_term(b, byte_value(i.zb, i.b_unsigned), i.mb, i.sb)
        low, high, zero = (byte_value(x, i.out_unsigned) for x in (i.lo, i.hi, i.zo))
        codes = saturate(shift_round(t, i.shift, Rounding.HALF_UP) + zero, low, high)
        self.act[i.dst_addr : i.dst_addr + i.len] = codes.astype(np.uint8)

    def pool(self, i: isa.Pool) -> None:
        """POOL: maximum or scaled sum over windows; no padding."""
        low, high = (0, 255) if i.unsigned else (-128, 127)
        zero = byte_value(i.zp, i.unsigned)
        for y, x in np.ndindex(i.oy, i.ox):
            start = i.src_addr + y * i.stride * i.ss_y + x * i.stride * i.ss_x
            taps = start + np.arange(i.kh)[:, None] * i.ss_y + np.arange(i.kw) * i.ss_x
            window = self._codes(taps.reshape(-1), i.c, i.unsigned)
            if i.average:
                scaled = shift_round(window.sum(axis=0) * i.mult, i.shift, Rounding.HALF_UP)
                codes = saturate(scaled + zero, low, high)
            else:
                codes = window.max(axis=0)
            target = i.dst_addr + y * i.ds_y + x * i.ds_x
            self.act[target : target + i.c] = codes.astype(np.uint8)

    def lookup(self, i: isa.Lut) -> None:
        """LUT: every byte through a table."""
        table = self.par[i.lut_addr : i.lut_addr + TABLE_BYTES]
        self.act[i.dst_addr : i.dst_addr + i.len] = table[self.act[i.src_addr : i.src_addr + i.len]]

    def nothing(self, i: isa.Instruction) -> None:
        """NOP and HALT: tokens only."""


_STEPS: dict[type[isa.Instruction], Callable[[Simulator, Any], None]] = {
    isa.Load: Simulator.load,
    isa.Store: Simulator.store,
    isa.Gemm: Simulator.gemm,
    isa.Depthwise: Simulator.depthwise,
    isa.Requantize: Simulator.requantize,
    isa.Add: Simulator.add,
    isa.Pool: Simulator.pool,
    isa.Lut: Simulator.lookup,
    isa.Nop: Simulator.nothing,
    isa.Halt: Simulator.nothing,
}
