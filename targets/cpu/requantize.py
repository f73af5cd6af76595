"""From sums to codes in vector form: which integers are needed, the constants, and the expression.

Constants are padded and ordered by the kernel's channel blocks (``pack``), so that a vector of 16
sums meets a vector of 16 constants. Channels of padding have constants of zero; nobody reads their
codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from tvm import ir, tirx

from targets.code_range import type_range
from targets.layers import Add, Conv2d, Ints, Norm, Requantize, Softmax
from targets.rounding import HALF_UP, check_executed
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
            is not 1; the residual's shift if any is not 0.
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
            t = t + (r << rest.pop(0) if rest else r)
        return round_and_clamp(t, kind, shift, q, self.layer)


def round_and_clamp(
    t: Expr,
    kind: str,
    shift: Expr,
    ends: Requantize | Add,
    layer: Conv2d | Add | Softmax | Norm,
) -> Expr:
    """The code of a wide integer: ``clamp(round(t, shift) + zero_point, low, high)``.

    Args:
        t: in ``kind``, "int32" or "int64", as all that follows but for the code.
        kind: see above.
        shift: of the element's channel, in ``kind``.
        ends: rounding, zero point and limits.
        layer: whose code it is.

    Raises:
        UnsupportedError: the layer rounds neither half up nor to the floor.
    """
    check_executed(ends.rounding, layer.name, "the CPU")
    if ends.rounding == HALF_UP:
        # Half of the last place, without a branch: (1 << shift) >> 1 is 0 where shift is 0.
        one = tirx.const(1, kind)
        t = t + ((one << shift) >> one)
    t = t >> shift
    # Clamped before the zero point is added, where the sum can't overflow.
    low, high = (tirx.const(limit - ends.zero_point, kind) for limit in (ends.low, ends.high))
    t = tirx.min(tirx.max(t, low), high)
    code = t.astype("int32") + tirx.const(ends.zero_point, "int32")
    return code.astype(layer.output.dtype)
