"""From sums to codes in vector form: which integers are needed, the constants, and the expression.

Constants are padded and ordered by the kernel's channel blocks (``pack``), so that a vector of 16 sums meets
a vector of 16 constants. Padding channels have all constants zero and their codes are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import te, tirx

from targets.layers import Conv2d, Requantize

Pack = Callable[[npt.NDArray[np.int32]], npt.NDArray[np.int32]]
Expr = tirx.Expr if hasattr(tirx, "Expr") else object

INT32_MAX = 2**31 - 1
CODE_RANGE = {"int8": (-128, 127), "uint8": (0, 255)}


def sum_bound(layer: Conv2d) -> int:
    """A bound of |acc + bias|: the proven one if the layer has it, else from weights alone."""
    if layer.max_sum:
        return layer.max_sum
    largest = max(abs(code) for code in CODE_RANGE[layer.input.dtype])
    sums = np.abs(layer.weight.astype(np.int64)).sum(axis=(1, 2, 3)) * largest
    return int((sums + np.abs(layer.bias.astype(np.int64))).max())


def _residual_bound(q: Requantize) -> int:
    """A bound of the residual's term over all codes."""
    if q.residual is None:
        return 0
    low, high = CODE_RANGE[q.residual.value.dtype]
    largest = max(abs(low - q.residual.zero_point), abs(high - q.residual.zero_point))
    return largest * q.residual.multiplier << int(q.residual.shift.max())


def fits_int32(layer: Conv2d) -> bool:
    """Whether every intermediate of the requantization is provably below 2^31."""
    q = layer.requantize
    if q is None:
        return True
    if np.any(q.multiplier != 1) or q.shift.max() > 30:
        return False
    half = 1 << max(int(q.shift.max()) - 1, 0)
    return (sum_bound(layer) << q.fraction) + _residual_bound(q) + half <= INT32_MAX


@dataclass(frozen=True)
class Epilogue:
    """The requantization of one layer; ``constants[i]`` is what ``tensors[i]`` of ``__call__`` holds.

    Attributes:
        layer: the layer.
        constants: int32 arrays, packed; the bias first.
        wide: int64 intermediates.
    """

    layer: Conv2d
    constants: tuple[npt.NDArray[np.int32], ...]
    wide: bool

    @staticmethod
    def of(layer: Conv2d, bias: npt.NDArray[np.int32], pack: Pack) -> Epilogue:
        """Collect the constants of ``layer``, whose bias the kernel has changed to ``bias``, int32[K]."""
        arrays = [bias]
        q = layer.requantize
        if q is not None:
            arrays.append(q.shift)
            if np.any(q.multiplier != 1):
                arrays.append(q.multiplier)
            if q.residual is not None and np.any(q.residual.shift != 0):
                arrays.append(q.residual.shift)
        return Epilogue(layer, tuple(pack(a) for a in arrays), not fits_int32(layer))

    def __call__(
        self, acc: Expr, constants: list[te.Tensor], channel: tuple[Expr, ...], residual: Expr | None
    ) -> Expr:
        """The code (or raw sum) of one output element.

        Args:
            acc: int32 sum.
            constants: tensors of ``self.constants``.
            channel: index of the element's channel in them.
            residual: the code added, or None.
        """
        bias, *rest = [tensor[channel] for tensor in constants]
        q = self.layer.requantize
        total = acc + bias
        if q is None:
            return total
        kind = "int64" if self.wide else "int32"

        def integer(value: int) -> Expr:
            return tirx.const(value, kind)

        shift = rest.pop(0).astype(kind)
        t = total.astype(kind)
        if q.fraction:
            t = t << integer(q.fraction)
        if np.any(q.multiplier != 1):
            t = t * rest.pop(0).astype(kind)
        if q.residual is not None:
            r = residual.astype(kind)
            if q.residual.zero_point:
                r = r - integer(q.residual.zero_point)
            if q.residual.multiplier != 1:
                r = r * integer(q.residual.multiplier)
            if rest:
                r = r << rest.pop(0).astype(kind)
            t = t + r
        # Half of the last place, without a branch: (1 << shift) >> 1 is 0 where shift is 0.
        t = (t + ((integer(1) << shift) >> integer(1))) >> shift
        # Clamped before the zero point is added: the bounds move, the comparison stays in one place.
        low, high = q.low - q.zero_point, q.high - q.zero_point
        t = tirx.min(tirx.max(t, integer(low)), integer(high))
        t = t.astype("int32") + tirx.const(q.zero_point, "int32")
        return t.astype(self.layer.output.dtype)
