"""From sums to codes in vector form: which integers are needed, the constants, and the expression.

Constants are padded and ordered by the kernel's channel blocks (``pack``), so that a vector of 16
sums meets a vector of 16 constants. Channels of padding have constants of zero; nobody reads their
codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from tvm import ir, tirx

from targets.arithmetic import BORDER_BITS
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


@dataclass(frozen=True)
class Epilogue:
    """The requantization of one layer.

    Attributes:
        layer: the layer.
        constants: int32 arrays, packed: bias; with requantization the shift; the multiplier if any
            is not 1; the residual's shift if any is not 0; the borders, if any, four to a word.
        wide: int64 intermediates.
    """

    layer: Conv2d
    constants: tuple[Ints, ...]
    wide: bool

    @staticmethod
    def of(layer: Conv2d, bias: Ints, pack: Callable[[Ints], Ints]) -> Epilogue:
        """Collect the constants of ``layer``, whose bias the kernel has changed to ``bias``."""
        arrays = [bias]
        q = layer.requantize
        if q is not None:
            arrays.append(q.shift)
            if np.any(q.multiplier != 1):
                arrays.append(q.multiplier)
            if q.residual is not None and np.any(q.residual.shift != 0):
                arrays.append(q.residual.shift)
            arrays += list(_border_words(q).T)
        return Epilogue(layer, tuple(pack(array) for array in arrays), not fits_int32(layer))

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
        kind = "int64" if self.wide else "int32"
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
    bits, zero, most = (
        tirx.const(n, kind) for n in (BORDER_BITS, 0, 63 if kind == "int64" else 31)
    )
    down, up = (tirx.max(n, zero) & most for n in (shift - bits, bits - shift))
    fraction = ((t >> down) << up) & tirx.const(255, kind)
    return tirx.Select(fraction >= border.astype(kind), tirx.const(1, kind), zero)
