"""What a backend is given: the layers of an integer network, and nothing of where they came from.

A layer turns 8-bit-coded tensors into one tensor. Tensors are N H W C (or N C for a dense network;
read as H = W = 1); a layer describes **one image**, the batch is the backend's business. Values are
named as in the integer Relax module, and ``source`` is the module path and source line of the
user's model, for reports.

The arithmetic of every layer that requantizes is the same (``targets/arithmetic.py``):

    t = ((acc + bias) << fraction) * multiplier[k] + ((r - r_zero) * r_multiplier) << r_shift[k]
    y = clamp(round(t, shift[k]) + zero_point, low, high)

With power-of-two steps ``multiplier`` is 1 everywhere and nothing is left but shifts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from targets.arithmetic import border_thresholds
from targets.code_range import code_range
from targets.product_factors import ProductFactors
from targets.rounding import HALF_BORDER, Rounding, RoundingMode
from targets.rows import NormScale, softmax_bounds
from targets.scale import AddScale, Scale
from targets.sum_bounds import SumBounds, neighbours_fit_int16

DType: TypeAlias = Literal["int8", "uint8", "int32"]
Ints: TypeAlias = npt.NDArray[np.int32]
Index: TypeAlias = tuple[int, int, int]
"""(h, w, c)."""


@dataclass(frozen=True)
class Value:
    """A quantized tensor of one image.

    Attributes:
        name: unique within the network.
        shape: (H, W, C); a dense network's (C,) is stored as (1, 1, C).
        dtype: how its bytes are read; int32 only for a network's output.
        bits: codes use the range of this many bits (8, 4 or 2), one code per byte here.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: DType
    bits: int = 8


@dataclass(frozen=True, eq=False)
class Residual:
    """A tensor added in the accumulator's domain before the one rounding.

    Attributes:
        value: same H, W, C as the layer's output.
        zero_point: subtracted from each code.
        multiplier: in [1, 65535]; 1 with power-of-two steps.
        shift: int32[K] in [0, 31], left.
    """

    value: Value
    zero_point: int
    multiplier: int
    shift: Ints


@dataclass(frozen=True, eq=False)
class Requantize:
    """From int32 sums to codes.

    Attributes:
        fraction: left shift of ``acc + bias``, in [0, 15]: room for a residual or an output that is
            finer than the sums.
        multiplier: int32[K] in [1, 65535].
        shift: int32[K] in [0, 47], right.
        zero_point: added after the shift.
        low: lowest code kept.
        high: highest code kept.
        rounding: of the shift.
        residual: or None.
    """

    fraction: int
    multiplier: Ints
    shift: Ints
    zero_point: int
    low: int
    high: int
    rounding: Rounding
    residual: Residual | None = None

    @property
    def scale(self) -> Scale:
        """Its integers, as they are derived from steps; per channel."""
        multiplier, shift = tuple(self.multiplier.tolist()), tuple(self.shift.tolist())
        if self.residual is None:
            return Scale(self.fraction, multiplier, shift)
        left = tuple(self.residual.shift.tolist())
        return Scale(self.fraction, multiplier, shift, self.residual.multiplier, left)

    @property
    def thresholds(self) -> npt.NDArray[np.int64]:
        """int64[K, high - low], rising: the smallest ``t`` of each code but the lowest.

        A code is ``low`` plus how many of its channel's ``t`` has reached: QONNX's MultiThreshold.

        Raises:
            ValueError: it rounds neither half up nor by borders.
        """
        match self.rounding.mode:
            case RoundingMode.HALF_UP:
                table = np.full((1, self.high - self.low), HALF_BORDER, np.uint8)
            case RoundingMode.BORDER:
                table = self.rounding.table(self.low, self.high)
            case mode:
                raise ValueError(f"{mode.name} rounds at no border; only BORDER and HALF_UP do")
        return border_thresholds(self.shift, table, self.low - self.zero_point)


@dataclass(frozen=True, eq=False)
class Weights:
    """The right operand of a product, where it is constant.

    Attributes:
        codes: int8[K, R, S, C / groups]; their zero point is 0.
        bits: codes use the range of this many bits (8, 4 or 2).
        factors: of the products with them, by group of input channels; None if all are 1.
        filling: of an output channel's codes, the zeros that only fill up blocks of pixels; their
            products are not counted.
    """

    codes: npt.NDArray[np.int8]
    bits: int = 8
    factors: ProductFactors | None = None
    filling: int = 0

    @property
    def scaled(self) -> npt.NDArray[np.int8] | Ints:
        """Weights that give the same sums without factors; the codes if there are none."""
        return self.codes if self.factors is None else self.factors.scaled(self.codes)


class Pairing(Enum):
    """Which element of a tensor on the right multiplies which of the input.

    Written with the input's element as ``x[h, w, g, c]`` and the sum as ``y[h, w, g, k]``, where
    ``g`` is a group, ``c`` one of its input and ``k`` one of its output channels.
    """

    ROWS = "rows"
    """``r[h, k, g, c]``: a pixel per output channel; Q K^T of attention, a group is a head, a row
    of the image a window."""
    COLUMNS = "columns"
    """``r[h, c, g, k]``: a pixel per input channel; A V of attention."""
    ELEMENTS = "elements"
    """``r[h, w, g]``, broadcast along axes of size 1; each channel is a group: gates."""


@dataclass(frozen=True)
class Factor:
    """The right operand of a product, where it is a tensor.

    Attributes:
        value: uint8 or int8. With ``ROWS`` (H, K / groups, C), with ``COLUMNS`` (H, C / groups, K),
            H the input's, or 1 where all its rows meet the same; with ``ELEMENTS`` the output's
            shape, or 1 instead of any axis.
        zero_point: subtracted from each code.
        pairing: what its elements multiply.
    """

    value: Value
    zero_point: int
    pairing: Pairing

    @property
    def bits(self) -> int:
        """Of its codes."""
        return self.value.bits


@dataclass(frozen=True, eq=False)
class Conv2d:
    """Sums of products: convolutions, and what are convolutions too.

    Dense layers are (1 × 1 on 1 × 1), average pooling (depthwise, weights one), and products of two
    tensors (1 × 1, with weights of each image's own, or of each pixel's).

    Attributes:
        right: what the input is multiplied by.
        strides: (y, x).
        padding: (top, left, bottom, right), filled with ``input_zero_point``.
        dilation: (y, x).
        bias: int32[K], added to the sums; with constant weights it holds what the input's zero
            point adds to them.
        input_zero_point: subtracted from each code of the input if ``right`` is a ``Factor``.
        requantize: None where the output is the int32 sums themselves (a network's logits).
        max_sum: proven bound of |acc + bias| over all inputs.
    """

    name: str
    source: str
    kind: str
    input: Value
    output: Value
    right: Weights | Factor
    bias: Ints
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    input_zero_point: int
    requantize: Requantize | None
    max_sum: int

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The tensors it reads: the input, then the factor and the residual if it has them."""
        factor = (self.right.value,) if isinstance(self.right, Factor) else ()
        residual = self.requantize.residual if self.requantize else None
        return (self.input, *factor, *(() if residual is None else (residual.value,)))

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(K, R, S, C / groups), of a factor too, as the weights of any one pixel."""
        if isinstance(self.right, Factor):
            return self.output.shape[2], 1, 1, self.input.shape[2] // self.groups
        K, R, S, C = self.right.codes.shape
        return K, R, S, C

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads exactly its own input channel."""
        return self.groups > 1 and self.groups == self.input.shape[2] == self.output.shape[2]

    @property
    def codes_read(self) -> tuple[int, int]:
        """The lowest and the highest code that it multiplies, that of padding among them."""
        low, high = code_range(self.input.bits, self.input.dtype == "int8")
        return min(low, self.input_zero_point), max(high, self.input_zero_point)

    @cached_property
    def pairs_fit_int16(self) -> bool:
        """Whether two neighbouring products always sum to 16 bits, codes read as unsigned bytes.

        Codes of int8 are raised by 128 for that. Neighbours are input channels, or, where the
        convolution is depthwise, rows of the window. Proved once: weights are many.
        """
        assert isinstance(self.right, Weights)
        weight, (low, high) = self.right.scaled, self.codes_read
        if self.depthwise:
            weight = weight.transpose(0, 2, 3, 1)
        raised = 128 if self.input.dtype == "int8" else 0
        return neighbours_fit_int16(weight, low + raised, high + raised)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        h, w, k = self.output.shape
        filling = self.right.filling if isinstance(self.right, Weights) else 0
        return h * w * (math.prod(self.weight_shape) - k * filling)


@dataclass(frozen=True)
class Operand:
    """One side of an addition: ``((code - zero_point) * multiplier) << shift``."""

    value: Value
    zero_point: int
    multiplier: int
    shift: int


@dataclass(frozen=True)
class Add:
    """Sum of two tensors outside an accumulator: ``clamp(round(a + b, shift) + zero_point)``."""

    name: str
    source: str
    a: Operand
    b: Operand
    output: Value
    shift: int
    zero_point: int
    low: int
    high: int
    rounding: Rounding
    kind: str = "add"
    macs: int = 0

    @property
    def scale(self) -> AddScale:
        """Its integers, as they are derived from steps."""
        a, b = self.a, self.b
        return AddScale((a.multiplier, b.multiplier), (a.shift, b.shift), self.shift)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The tensors it reads."""
        return (self.a.value, self.b.value)


@dataclass(frozen=True)
class MaxPool2d:
    """Maximum over windows; padding never wins (it is the lowest code)."""

    name: str
    source: str
    input: Value
    output: Value
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int] = (1, 1)
    kind: str = "max_pool2d"
    macs: int = 0

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The tensors it reads."""
        return (self.input,)


@dataclass(frozen=True)
class Lut:
    """A table of 256 bytes applied to every element; the index is the code's byte."""

    name: str
    source: str
    input: Value
    output: Value
    table: bytes = field(repr=False)
    kind: str = "lut"
    macs: int = 0

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The tensors it reads."""
        return (self.input,)


@dataclass(frozen=True, eq=False)
class Softmax:
    """Softmax of each pixel's channels, each head's by itself (``targets/rows.py``).

    Attributes:
        heads: divides the channels.
        table: int32[256]; what a code counts by how far it is below the largest of its row.
        requantize: of the sums, which are in units of 2^-30.
    """

    name: str
    source: str
    input: Value
    output: Value
    heads: int
    table: Ints = field(repr=False)
    requantize: Requantize
    kind: str = "softmax"
    macs: int = 0

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The tensors it reads."""
        return (self.input,)

    @property
    def bounds(self) -> SumBounds:
        """Of the sums."""
        return softmax_bounds()


@dataclass(frozen=True, eq=False)
class Norm:
    """Norm of each pixel's channels (``targets/rows.py``).

    Attributes:
        scale: factors, summands and the integers of the root.
        requantize: of the sums.
    """

    name: str
    source: str
    input: Value
    output: Value
    scale: NormScale
    requantize: Requantize
    kind: str = "norm"
    macs: int = 0

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The tensors it reads."""
        return (self.input,)

    @property
    def bounds(self) -> SumBounds:
        """Of the sums."""
        return self.scale.bounds


@dataclass(frozen=True, eq=False)
class Constant:
    """Codes that belong to the network: the same for each image.

    Attributes:
        codes: of the output's shape and type.
    """

    name: str
    source: str
    output: Value
    codes: npt.NDArray[np.generic] = field(repr=False)
    kind: str = "constant"
    macs: int = 0

    @property
    def inputs(self) -> tuple[Value, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class Piece:
    """Elements of an input and where they land in the output.

    Attributes:
        value: the tensor read.
        offset: of the first element read, counted with channels innermost.
        strides: elements of ``value`` from one that is read to the next, along (h, w, c).
        size: (h, w, c) elements.
        at: (h, w, c) of the first element written; written densely.
    """

    value: Value
    offset: int
    strides: Index
    size: Index
    at: Index

    @staticmethod
    def box(value: Value, start: Index, step: Index, size: Index, at: Index) -> Piece:
        """A strided box of ``value``, which begins at ``start``; all (h, w, c)."""
        _, width, channels = value.shape
        pitches = (width * channels, channels, 1)
        offset = sum(n * pitch for n, pitch in zip(start, pitches, strict=True))
        strides = (step[0] * pitches[0], step[1] * pitches[1], step[2])
        return Piece(value, offset, strides, size, at)


@dataclass(frozen=True)
class Move:
    """Slices, paddings, concatenations, reshapes, other orders: bytes that move, no arithmetic.

    What no piece covers is filled with ``fill``. A reshape has ``reshape`` set: same bytes,
    another shape.

    Attributes:
        view: (H, W, C) as which the output is written; its own shape if it is None.
    """

    name: str
    source: str
    pieces: tuple[Piece, ...]
    output: Value
    fill: int
    kind: str = "move"
    reshape: bool = False
    view: Index | None = None
    macs: int = 0

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The tensors it reads."""
        return tuple(piece.value for piece in self.pieces)


Layer: TypeAlias = Conv2d | Add | MaxPool2d | Lut | Softmax | Norm | Constant | Move
