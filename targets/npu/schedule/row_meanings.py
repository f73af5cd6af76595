"""What SOFTMAX and NORM compute of a row, as TIR over the words of their parameters in PAR."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tvm import tirx

from targets.layers import Norm, Requantize, Softmax
from targets.npu.machine.legality import EPSILON_BITS, EPSILON_BYTES, EXPONENTIALS_BYTES
from targets.rounding import RoundingMode
from targets.rows import DIVISOR_BITS, EXPONENTIAL_BITS, RECIPROCAL_BITS, NormScale

Expr: TypeAlias = Any  # tvm.ir.Expr: TVM ships no types
Words: TypeAlias = npt.NDArray[np.int32]
EPSILON_WORDS = EPSILON_BYTES // 4
EXPONENTIALS_WORDS = EXPONENTIALS_BYTES // 4


@dataclass(frozen=True)
class RowFields:
    """The immediates that SOFTMAX and NORM share: of a row, and of the requantization behind it."""

    length: int
    fraction: int
    multiplier: int
    shift: int
    zero_point: int
    low: int
    high: int
    rounding: RoundingMode
    input_dtype: str
    dtype: str

    def code(self, total: Expr) -> Expr:
        """The code of a sum, int64."""
        held = tirx.Cast("int64", tirx.Cast("int32", total << _i64(self.fraction)))
        t = held * _i64(self.multiplier)
        if self.rounding is RoundingMode.HALF_UP:
            t = t + _i64((1 << self.shift) >> 1)
        code = (t >> _i64(self.shift)) + _i64(self.zero_point)
        return tirx.Cast(self.dtype, tirx.max(tirx.min(code, _i64(self.high)), _i64(self.low)))


@dataclass(frozen=True)
class SoftmaxFields(RowFields):
    """The immediates of SOFTMAX."""

    def share(self, count: Expr, total: Expr) -> Expr:
        """The sum of an element that counts ``count`` of the row's ``total``, int32 both."""
        bits = _bits(total)
        shift = _places(bits - EXPONENTIAL_BITS)
        return (tirx.Cast("int64", count) * _reciprocal(total, bits)) >> shift


@dataclass(frozen=True)
class NormFields(RowFields):
    """The immediates of NORM.

    Attributes:
        normed_fraction: bits behind the point of a normalized code.
        cuts: into one part more than this a row is cut; one of them is written.
        part: which.
    """

    lift: int = field(kw_only=True)
    normed_fraction: int = field(kw_only=True)
    centred: bool = field(kw_only=True)
    input_zero_point: int = field(kw_only=True)
    cuts: int = field(default=0, kw_only=True)
    part: int = field(default=0, kw_only=True)

    @property
    def written(self) -> int:
        """Codes of a row that are written."""
        return self.length // (self.cuts + 1)

    def less_zero(self, code: Expr) -> Expr:
        """A code less its zero point, int32."""
        return code - self.input_zero_point if self.input_zero_point else code

    def root(self, total: Expr, squares: Expr, epsilon: Expr) -> Expr:
        """Of a row's variance, int32; all arguments int64."""
        variance = _i64(self.length) * squares - total * total
        square = (variance << _i64(2 * self.lift)) + epsilon
        return tirx.Cast("int32", tirx.floor(tirx.sqrt(tirx.Cast("float64", square))))

    def scaled(self, code: Expr, total: Expr, root: Expr, gain: Expr, bias: Expr) -> Expr:
        """The sum of an element; ``total`` is int64, all others int32."""
        bits = _bits(root)
        places = RECIPROCAL_BITS - self.lift - self.normed_fraction
        shift = _places(bits + places)
        distance = tirx.Cast("int64", code) * _i64(self.length) - total
        half = _i64(1) << (shift - _i64(1))
        normed = (distance * _reciprocal(root, bits) + half) >> shift
        return normed * tirx.Cast("int64", gain) + tirx.Cast("int64", bias)


def softmax_fields(layer: Softmax) -> SoftmaxFields:
    """The immediates of a layer."""
    length = layer.input.shape[2] // layer.heads
    return SoftmaxFields(length, *_ends(layer))


def norm_fields(layer: Norm) -> NormFields:
    """The immediates of a layer."""
    length, scale = layer.input.shape[2], layer.scale
    return NormFields(
        length,
        *_ends(layer),
        lift=scale.lift,
        normed_fraction=scale.fraction,
        centred=scale.centred,
        input_zero_point=scale.zero_point,
    )


def _ends(layer: Softmax | Norm) -> tuple[Any, ...]:
    q: Requantize = layer.requantize
    return (
        q.fraction,
        int(q.multiplier.max()),
        int(q.shift.max()),
        q.zero_point,
        q.low,
        q.high,
        q.rounding.mode,
        layer.input.dtype,
        layer.output.dtype,
    )


def exponential_words(table: npt.NDArray[np.integer]) -> Words:
    """int32[128]: 256 entries as they lie in PAR."""
    return table.astype("<u2").view("<i4")


def exponential(words: Expr, distance: Expr) -> Expr:
    """What counts a code that is ``distance`` below the largest, int32."""
    return (words[distance >> 1] >> ((distance & 1) * 16)) & 0xFFFF


def scale_words(scale: NormScale, parts: int) -> Words:
    """int32[parts, words]: what lies in PAR while each of the equal parts of a row is written.

    Epsilon, zero point, summands and factors, filled up to whole words.
    """
    head = np.array([scale.epsilon | (scale.zero_point & 0xFF) << EPSILON_BITS], "<u8")
    words = []
    for bias, gain in zip(np.split(scale.bias, parts), np.split(scale.gain, parts), strict=True):
        numbers = (head, bias.astype("<i4"), gain.astype("<i2"))
        data = b"".join(each.tobytes() for each in numbers)
        words.append(np.frombuffer(data + bytes(-len(data) % 4), "<i4"))
    return np.stack(words)


def epsilon(words: Expr) -> Expr:
    """What is added to the lifted variance, int64."""
    low = tirx.Cast("int64", words[0]) & _i64(0xFFFFFFFF)
    high = tirx.Cast("int64", words[1]) & _i64((1 << EPSILON_BITS - 32) - 1)
    return low | (high << _i64(32))


def summand(words: Expr, channel: Expr) -> Expr:
    """What is added to a channel, int32."""
    return words[channel + EPSILON_WORDS]


def factor(words: Expr, channel: Expr, channels: int) -> Expr:
    """What multiplies a channel, int32."""
    word = words[(channel >> 1) + (EPSILON_WORDS + channels)]
    return (word << (16 - (channel & 1) * 16)) >> 16


def _bits(divisor: Expr) -> Expr:
    """How many bits a positive int32 has."""
    return tirx.IntImm("int32", DIVISOR_BITS) - tirx.Cast("int32", tirx.clz(divisor))


def _reciprocal(divisor: Expr, bits: Expr) -> Expr:
    power = _i64(1) << _places(bits + RECIPROCAL_BITS)
    return tirx.truncdiv(power - _i64(1), tirx.Cast("int64", divisor))


def _places(shift: Expr) -> Expr:
    """A shift as int64, its range in plain sight: of a shift by anything TVM thinks it gives 0."""
    return tirx.Cast("int64", shift) & _i64(63)


def _i64(value: int) -> Expr:
    return tirx.IntImm("int64", value)
