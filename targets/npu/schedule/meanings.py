"""What the compute instructions compute, as TIR expressions over the bytes they read.

Schedules write them into loops, intrinsics into their patterns: the two must be the same
expressions, or ``tensorize`` finds nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tvm import tirx

from targets.npu.machine import isa
from targets.rounding import RoundingMode

Expr: TypeAlias = Any  # tvm.ir.Expr: TVM ships no types

RECORD_WORDS = 3
"""32-bit words of one channel's parameter record: bias; multiplier; shifts.

A channel's own borders follow its record; a row for all channels follows the last record.
"""


@dataclass(frozen=True)
class RequantizeFields:
    """The immediates of REQ that the meaning depends on; see ``arithmetic.requantize``.

    ``rounding`` is FLOOR, HALF_UP or BORDER: convolutions that round otherwise are refused.
    """

    shift: int
    multiplier: bool
    zero_point: int
    low: int
    high: int
    dtype: str
    rounding: RoundingMode
    residual_dtype: str = ""
    residual_zero_point: int = 0
    residual_multiplier: int = 1
    bits: int = 8
    one_row: bool = False

    def parameter_words(self, channels: Expr, tiles: Expr = 1) -> Expr:
        """Words of the parameters of column tiles with so many channels."""
        return channels * self.record_words + tiles * self.words_behind

    def word_places(self, channel: Expr, channels: int) -> list[Expr]:
        """Of a column tile's parameters, where a channel's record is and then its borders."""
        first = channel * self.record_words
        borders = channels * RECORD_WORDS if self.one_row else first + RECORD_WORDS
        record = [first + n for n in range(RECORD_WORDS)]
        return record + [borders + n for n in range(self._row_words)]

    @property
    def record_words(self) -> int:
        """Words from one channel's record to the next."""
        return RECORD_WORDS + (0 if self.one_row else self._row_words)

    @property
    def words_behind(self) -> int:
        """Words behind the last record of a column tile."""
        return self._row_words if self.one_row else 0

    @property
    def _row_words(self) -> int:
        """Words of a row of borders."""
        borders = self.high - self.low if self.rounding is RoundingMode.BORDER else 0
        return (borders + 3) // 4

    def value(
        self,
        acc: Expr,
        record: Sequence[Expr],
        residual: Expr | None,
        place: Expr = 0,
    ) -> Expr:
        """One output code from one int32 sum, its record and the residual's byte at ``place``."""
        bias, scale, shifts, *borders = record
        t = tirx.Cast("int64", acc) + tirx.Cast("int64", bias)
        if self.multiplier:
            t = t * tirx.Cast("int64", scale & tirx.IntImm("int32", 0xFFFF))
        if residual is not None:
            code = element(residual, place, self.bits, signed=self.residual_dtype == "int8")
            centred = tirx.Cast("int64", code) - _i64(self.residual_zero_point)
            left = tirx.Cast("int64", (shifts >> 8) & tirx.IntImm("int32", 0xFF))
            t = t + ((centred * _i64(self.residual_multiplier)) << left)
        right = _i64(self.shift) + tirx.Cast("int64", shifts & tirx.IntImm("int32", 0xFF))
        if self.rounding is RoundingMode.HALF_UP:
            t = t + ((_i64(1) << right) >> 1)
        code = (t >> right) + _i64(self.zero_point)
        if self.rounding is RoundingMode.BORDER:
            code = code + self._rounded_up(t, right, code, borders)
        return tirx.Cast(self.dtype, tirx.max(tirx.min(code, _i64(self.high)), _i64(self.low)))

    def _rounded_up(self, t: Expr, right: Expr, code: Expr, borders: Sequence[Expr]) -> Expr:
        """1 where the fraction of ``t`` reaches the border of its level, else 0."""
        last = _i64(self.high - self.low - 1)
        level = tirx.max(tirx.min(code - _i64(self.low), last), _i64(0))
        # No Select here: with some TVM takes up to seconds to match a layer.
        eight, *rest = (_number(borders[n : n + 2]) for n in range(0, len(borders), 2))
        for other in rest:  # one at most
            eight = eight ^ ((eight ^ other) & (_i64(0) - (level >> _i64(3))))
        border = (eight >> ((level & _i64(7)) * _i64(8))) & _i64(0xFF)
        # Masked, since TVM takes a shift of unknown range for one that never clamps.
        down = tirx.max(right - _i64(8), _i64(0)) & _i64(63)
        up = tirx.max(_i64(8) - right, _i64(0)) & _i64(63)
        fraction = ((t >> down) << up) & _i64(0xFF)
        return _i64(1) + ((fraction - border) >> _i64(63))  # which is -1 below the border


def _number(words: Sequence[Expr]) -> Expr:
    """The bytes of one word or two, as int64."""
    low, *high = (tirx.Cast("int64", word) for word in words)
    return (low & _i64(0xFFFFFFFF)) | (high[0] << _i64(32)) if high else low


@dataclass(frozen=True)
class RequantizeRow(RequantizeFields):
    """REQ of one pixel's first ``channels`` sums."""

    channels: int = field(kw_only=True)


@dataclass(frozen=True)
class MaxFields:
    """The immediates of POOL: how a code is read."""

    dtype: str
    bits: int


@dataclass(frozen=True)
class AddFields:
    """The immediates of VADD, which rounds half up and not otherwise."""

    a_dtype: str
    a_zero_point: int
    a_multiplier: int
    a_shift: int
    b_dtype: str
    b_zero_point: int
    b_multiplier: int
    b_shift: int
    shift: int
    zero_point: int
    low: int
    high: int
    dtype: str
    bits: int = 8

    def byte(self, a: Expr, b: Expr) -> Expr:
        """One output byte from two."""
        codes = [self._code(a, b, place) for place in range(8 // self.bits)]
        return packed_byte(codes, self.bits, self.dtype)

    def _code(self, a: Expr, b: Expr, place: int) -> Expr:
        a = element(a, place, self.bits, signed=self.a_dtype == "int8")
        b = element(b, place, self.bits, signed=self.b_dtype == "int8")
        left = (tirx.Cast("int64", a) - _i64(self.a_zero_point)) * _i64(
            self.a_multiplier << self.a_shift
        )
        right = (tirx.Cast("int64", b) - _i64(self.b_zero_point)) * _i64(
            self.b_multiplier << self.b_shift
        )
        half = (1 << self.shift) >> 1
        code = ((left + right + _i64(half)) >> _i64(self.shift)) + _i64(self.zero_point)
        return tirx.Cast(self.dtype, tirx.max(tirx.min(code, _i64(self.high)), _i64(self.low)))


@dataclass(frozen=True)
class MultiplyFields:
    """The immediates of VMUL, which rounds half up and not otherwise."""

    a_dtype: str
    a_zero_point: int
    b_dtype: str
    b_zero_point: int
    left: int
    multiplier: int
    shift: int
    zero_point: int
    low: int
    high: int
    dtype: str

    def code(self, a: Expr, b: Expr) -> Expr:
        """One output code from two."""
        a, b = (tirx.Cast("int64", operand) for operand in (a, b))
        product = (a - _i64(self.a_zero_point)) * (b - _i64(self.b_zero_point))
        t = product * _i64(self.multiplier << self.left) + _i64((1 << self.shift) >> 1)
        code = (t >> _i64(self.shift)) + _i64(self.zero_point)
        return tirx.Cast(self.dtype, tirx.max(tirx.min(code, _i64(self.high)), _i64(self.low)))


LONGEST_KERNEL = isa.largest(isa.Gemm, "k1", "k2")
"""Taps of a row or a column of a kernel; where there are more, they are tiles along k0."""


def used_tile(
    lanes: int, columns: int, act_bits: int, wgt_bits: int, *, by_lane: bool
) -> tuple[int, int]:
    """So many lanes and columns in whole bytes; without lanes each column has its activation."""
    act, wgt = 8 // act_bits, 8 // wgt_bits
    unit = wgt if by_lane else max(act, wgt)
    # TVM drops axes of one, and one is to be left that it can tensorize.
    return -(-lanes // act) * act, -(-max(2, columns) // unit) * unit


@dataclass(frozen=True)
class ProductFields:
    """What GEMM and DWC depend on besides addresses.

    Attributes:
        lanes: reduction lanes of a tile, in elements; 0 for DWC.
        columns: output channels of a tile.
        act_bits: width of activations in memory.
        wgt_bits: width of weights in memory.
        dtype: how an activation is read.
        fraction: left shift of every product.
        kvalid: lanes of the last k0 tile that have weights.
        nvalid: columns that have weights.
        tiles: extent of k0, the loop over reduction tiles of one kernel tap; 1 for DWC.
        alpha_a: of GEMM: a product P counts ``(P << (fraction - alpha_a))``, plus ``alpha_sign``
            times ``(P << (fraction - alpha_b))``.
        alpha_b: see above.
        alpha_sign: -1, 0 or 1.
    """

    lanes: int
    columns: int
    act_bits: int
    wgt_bits: int
    dtype: str
    fraction: int
    kvalid: int
    nvalid: int
    tiles: int
    alpha_a: int = 0
    alpha_b: int = 0
    alpha_sign: int = 0

    @property
    def used(self) -> tuple[int, int]:
        """Lanes and columns of a tile that are looked at: whole bytes of them, but no others.

        Of several tiles along k0 all lanes are.
        """
        lanes = self.kvalid if self.tiles == 1 else self.lanes
        used = used_tile(lanes, self.nvalid, self.act_bits, self.wgt_bits, by_lane=self.lanes > 0)
        return min(used[0], self.lanes), min(used[1], self.columns)

    def loops(self) -> tuple[int, ...]:
        """(bytes of lanes, lanes in a byte, bytes of columns, columns in a byte); without ones."""
        act, wgt = 8 // self.act_bits, 8 // self.wgt_bits
        lanes, columns = self.used
        loops: tuple[int, ...]
        if self.lanes:
            loops = (lanes // act, act, columns // wgt, wgt)
        elif act >= wgt:
            loops = (columns // act, act // wgt, wgt)
        else:
            loops = (columns // wgt, wgt // act, act)
        return tuple(n for n in loops if n > 1)

    @property
    def reduction_loops(self) -> int:
        """How many of the loops are sums."""
        act = 8 // self.act_bits
        return sum(n > 1 for n in (self.used[0] // act, act)) if self.lanes else 0

    def offsets(self, loops: Sequence[Expr]) -> tuple[Expr, Expr, Expr, Expr, Expr]:
        """(column, byte of act, place in it, byte of wgt, place in it) at these loops."""
        act, wgt = 8 // self.act_bits, 8 // self.wgt_bits
        lanes, columns = self.used
        left = iter(loops)

        def take(extent: int) -> Expr:
            return next(left) if extent > 1 else 0

        if self.lanes:
            ab, ae = take(lanes // act), take(act)
            wb, we = take(columns // wgt), take(wgt)
            row = (ab * act + ae) * (self.columns // wgt)
            return wb * wgt + we, ab, ae, row + wb, we
        wide, narrow = max(act, wgt), min(act, wgt)
        outer, middle, inner = take(columns // wide), take(wide // narrow), take(narrow)
        column = outer * wide + middle * narrow + inner
        coarse = (outer, middle * narrow + inner)
        fine = (outer * (wide // narrow) + middle, inner)
        (a, ae), (w, we) = (coarse, fine) if act >= wgt else (fine, coarse)
        return column, a, ae, w, we

    def value(self, acc: Expr, act: Expr, act_at: Expr, wgt: Expr, wgt_at: Expr) -> Expr:
        """The sum after one more product, of bytes that hold several elements each."""
        a = element(act, act_at, self.act_bits, signed=self.dtype == "int8")
        w = element(wgt, wgt_at, self.wgt_bits, signed=True)
        first, second = self.fraction - self.alpha_a, self.fraction - self.alpha_b
        total = (a * w) << first if first else a * w
        if self.alpha_sign:
            other = (a * w) << second if second else a * w
            total = total + other if self.alpha_sign > 0 else total - other
        return acc + total


def element(byte: Expr, place: Expr, bits: int, *, signed: bool) -> Expr:
    """Element ``place`` of a byte as int32."""
    word = tirx.Cast("int32", byte)
    if bits == 8:
        return word
    sign = 1 << (bits - 1)
    code = (word >> (place * bits)) & ((1 << bits) - 1)
    return (code ^ sign) - sign if signed else code


def packed_byte(codes: Sequence[Expr], bits: int, dtype: str) -> Expr:
    """One byte of ``8 / bits`` codes, the first in the low bits."""
    if bits == 8:
        return codes[0]
    mask = (1 << bits) - 1
    fields = [
        (tirx.Cast("int32", code) & mask) << (bits * place) for place, code in enumerate(codes)
    ]
    return tirx.Cast(dtype, functools.reduce(lambda a, b: a | b, fields))


def max_byte(a: Expr, b: Expr, dtype: str, bits: int) -> Expr:
    """The larger code at each place of two bytes."""
    if bits == 8:
        return tirx.max(a, b)
    signed = dtype == "int8"
    places = range(8 // bits)
    codes = [
        tirx.max(element(a, n, bits, signed=signed), element(b, n, bits, signed=signed))
        for n in places
    ]
    return packed_byte(codes, bits, dtype)


def _i64(value: int) -> Expr:
    return tirx.IntImm("int64", value)
