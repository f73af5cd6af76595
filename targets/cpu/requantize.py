"""From sums to codes in vector form: which integers are needed, the constants, and the expression.

Constants are padded and ordered by the kernel's channel blocks (``pack``), so that a vector of 16
sums meets a vector of 16 constants. Channels of padding have constants of zero; nobody reads their
codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from tvm import ir, tirx

from targets.arithmetic import BORDER_BITS, INT32_MAX, MAX_MULTIPLIER, MAX_RESIDUAL_SHIFT
from targets.code_range import type_range
from targets.layers import Add, Conv2d, Ints, Norm, Requantize, Softmax
from targets.rounding import HALF_UP, RoundingMode, check_executed
from targets.sum_bounds import CodeRange, SumBounds, needs_int64

Expr: TypeAlias = ir.Expr


def fits_int32(layer: Conv2d) -> bool:
    """Whether every intermediate of the requantization is provably below 2^31."""
    q = layer.requantize
    if q is None:
        return True
    residual = None
    if q.residual is not None:
        residual = CodeRange(*type_range(q.residual.value.dtype), q.residual.zero_point)
    reach = np.array([layer.max_sum])
    bounds = SumBounds(reach, -reach, reach)
    # the zero point is added after the clamp, where it can't overflow
    return not needs_int64(bounds, q.scale, residual, zero_point=0)


HALF = 16
"""Bits of the lower of two halves."""


@dataclass(frozen=True)
class _Halves:
    """Per-channel integers for which 48 bits of intermediates are kept in two words.

    ``t = upper * 2**16 + lower`` with ``lower`` in [0, 2**16). Where all shifts are above 16 the
    rounding and the shift of ``t`` are those of ``upper`` by 16 places less, exactly: a floor of a
    floor is one. Processors multiply and shift 32 bits, few of them 64.

    Attributes:
        multiplier: of each channel, raised with its shift where that was too small.
        shift: less 16, in [1, 30]: half of the last place is an int32.
        residual_shift: raised likewise; None without a residual.
    """

    multiplier: Ints
    shift: Ints
    residual_shift: Ints | None

    @staticmethod
    def of(layer: Conv2d) -> _Halves | None:
        """For a layer whose intermediates provably fit; None where they may not."""
        q = layer.requantize
        if q is None or layer.max_sum << q.fraction > INT32_MAX:
            return None
        if q.rounding.mode is RoundingMode.BORDER:  # compared with more places than are left
            return None
        raised = np.maximum(HALF + 1 - q.shift.astype(np.int64), 0)
        multiplier, shift = q.multiplier.astype(np.int64) << raised, q.shift + raised
        reach = (layer.max_sum << q.fraction) * multiplier + (np.int64(1) << shift >> 1)
        left = None
        if q.residual is not None:
            left = q.residual.shift + raised
            codes = CodeRange(*type_range(q.residual.value.dtype), q.residual.zero_point)
            largest = max(codes.high - codes.zero_point, codes.zero_point - codes.low)
            if left.max() > MAX_RESIDUAL_SHIFT:
                return None
            reach = reach + (np.int64(largest * q.residual.multiplier) << left)
        if multiplier.max() > MAX_MULTIPLIER or shift.max() - HALF > 30:
            return None
        # each part of a sum of upper halves is less than 2**17 above its part of these
        if reach.max() >= 2**47 - 2**34:
            return None
        return _Halves(multiplier, shift - HALF, left)

    def upper(self, acc: Expr, multiplier: Expr, added: tuple[Expr, Expr] | None) -> Expr:
        """The upper word of ``acc * multiplier`` plus a residual times a power of two.

        Args:
            acc: int32.
            multiplier: int32 in [1, 2**16).
            added: the residual, int32 below 2**24 in magnitude, and its left shift; or None.
        """
        sixteen, low = tirx.const(HALF, "int32"), tirx.const(0xFFFF, "int32")
        upper = (acc >> sixteen) * multiplier
        # at most (2**16 - 1)**2 + 2**16 - 1, which fits
        lower = (acc & low).astype("uint32") * multiplier.astype("uint32")
        if added is not None:
            residual, left = added
            zero = tirx.const(0, "int32")
            up, down = tirx.max(left - sixteen, zero), tirx.max(sixteen - left, zero)
            upper = upper + ((residual << _places(up)) >> _places(down))
            lower = lower + ((residual << _places(left)) & low).astype("uint32")
        return upper + (lower >> tirx.const(HALF, "uint32")).astype("int32")


def _places(shift: Expr) -> Expr:
    """A shift as it is, its range in plain sight: of a shift by anything TVM thinks it gives 0."""
    return shift & tirx.const(31, "int32")


@dataclass(frozen=True)
class Epilogue:
    """The requantization of one layer.

    Attributes:
        layer: the layer.
        constants: int32 arrays, packed: bias; with requantization the shift; the multiplier if any
            is not 1; the residual's shift if any is not 0; the borders, if any, four to a word. Of
            halves, all but borders and theirs.
        kind: type of the intermediates.
        halves: where they are two words of 32 bits.
    """

    layer: Conv2d
    constants: tuple[Ints, ...]
    kind: Literal["int32", "int64"]
    halves: _Halves | None

    @staticmethod
    def of(layer: Conv2d, bias: Ints, pack: Callable[[Ints], Ints]) -> Epilogue:
        """Collect the constants of ``layer``, whose bias the kernel has changed to ``bias``."""
        arrays = [bias]
        q, narrow = layer.requantize, fits_int32(layer)
        halves = None if narrow else _Halves.of(layer)
        if halves is not None:
            arrays += [halves.shift, halves.multiplier]
            arrays += [] if halves.residual_shift is None else [halves.residual_shift]
        elif q is not None:
            arrays.append(q.shift)
            if np.any(q.multiplier != 1):
                arrays.append(q.multiplier)
            if q.residual is not None and np.any(q.residual.shift != 0):
                arrays.append(q.residual.shift)
            arrays += list(_border_words(q).T)
        packed = tuple(pack(array.astype(np.int32)) for array in arrays)
        return Epilogue(layer, packed, "int32" if narrow else "int64", halves)

    def __call__(self, acc: Expr, constants: list[Expr], residual: Expr | None) -> Expr:
        """The output element of the sum ``acc``, int32.

        Args:
            acc: sum of products.
            constants: the element's constants, in the order of ``self.constants``.
            residual: the code that is added, or None.
        """
        bias, *rest = constants
        q = self.layer.requantize
        if q is None:
            return acc + bias
        if self.halves is not None:
            shift, multiplier, *left = rest
            added = None
            if q.residual is not None and residual is not None:
                r = residual.astype("int32") - tirx.const(q.residual.zero_point, "int32")
                added = (r * tirx.const(q.residual.multiplier, "int32"), left[0])
            t = (acc + bias) << tirx.const(q.fraction, "int32") if q.fraction else acc + bias
            upper = self.halves.upper(t, multiplier, added)
            return round_and_clamp(upper, "int32", _places(shift), q, self.layer)
        kind = self.kind
        shift, *rest = (constant.astype(kind) for constant in rest)
        t = (acc + bias).astype(kind)
        if q.fraction:
            t = t << tirx.const(q.fraction, kind)
        if np.any(q.multiplier != 1):
            t = t * rest.pop(0)
        if q.residual is not None and residual is not None:
            r = residual.astype(kind) - tirx.const(q.residual.zero_point, kind)
            r = r * tirx.const(q.residual.multiplier, kind)
            t = t + (r << rest.pop(0) if np.any(q.residual.shift != 0) else r)
        return round_and_clamp(t, kind, shift, q, self.layer, rest)


def _border_words(q: Requantize) -> Ints:
    """int32[K, words]: the borders of each channel; no words where it rounds otherwise."""
    channels = len(q.shift)
    if q.rounding.mode is not RoundingMode.BORDER:
        return np.zeros((channels, 0), np.int32)
    table = q.rounding.table(q.low, q.high)
    words = np.pad(table, ((0, 0), (0, -table.shape[1] % 4))).view("<i4")
    return np.broadcast_to(words, (channels, words.shape[1]))


def round_and_clamp(
    t: Expr,
    kind: str,
    shift: Expr,
    ends: Requantize | Add,
    layer: Conv2d | Add | Softmax | Norm,
    borders: Sequence[Expr] = (),
) -> Expr:
    """The code of a wide integer: ``clamp(round(t, shift) + zero_point, low, high)``.

    Args:
        t: in ``kind``, "int32" or "int64", as all that follows but for the code.
        kind: see above.
        shift: of the element's channel, in ``kind``.
        ends: rounding, zero point and limits.
        layer: whose code it is.
        borders: of the element's channel, from the lowest level up, four to an int32.

    Raises:
        UnsupportedError: the layer rounds neither half up nor to the floor nor by given borders.
    """
    check_executed(ends.rounding, layer.name, "the CPU", borders=isinstance(layer, Conv2d))
    if ends.rounding == HALF_UP:
        # Half of the last place, without a branch: (1 << shift) >> 1 is 0 where shift is 0.
        one = tirx.const(1, kind)
        t = t + ((one << shift) >> one)
    whole = t >> shift
    t = whole + _rounded_up(t, kind, shift, whole, ends, borders) if borders else whole
    # Clamped before the zero point is added, where the sum can't overflow.
    low, high = (tirx.const(limit - ends.zero_point, kind) for limit in (ends.low, ends.high))
    t = tirx.min(tirx.max(t, low), high)
    code = t.astype("int32") + tirx.const(ends.zero_point, "int32")
    return code.astype(layer.output.dtype)


def _rounded_up(
    t: Expr, kind: str, shift: Expr, whole: Expr, ends: Requantize | Add, borders: Sequence[Expr]
) -> Expr:
    """1 where the fraction of ``t`` reaches the border of its level, else 0."""
    first, last = ends.low - ends.zero_point, ends.high - ends.zero_point - 1
    level = tirx.min(tirx.max(whole, tirx.const(first, kind)), tirx.const(last, kind))
    level = (level - tirx.const(first, kind)).astype("int32")
    word = borders[0]
    for n, other in enumerate(borders[1:], start=1):
        word = tirx.Select(level >= tirx.const(4 * n, "int32"), other, word)
    border = (word >> ((level & 3) * 8)) & 255
    # Both shifts are masked, since TVM takes one of unknown range for one that never clamps.
    bits, zero, one, most = (
        tirx.const(n, kind) for n in (BORDER_BITS, 0, 1, 63 if kind == "int64" else 31)
    )
    down, up = (tirx.max(n, zero) & most for n in (shift - bits, bits - shift))
    fraction = ((t >> down) << up) & tirx.const(255, kind)
    # The shift gives -1 below the border; with a Select TVM's passes take twice as long.
    return one + ((fraction - border.astype(kind)) >> most)
