"""How tensors lie in memory: their width, the place of a pixel, the room that they take.

Channels innermost, codes of 4 or 2 bits packed in bytes. A tensor that stays in ACT may have a
border of pixels around it, so that a window reads its padding there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

from targets.layers import DType, Value

Border: TypeAlias = tuple[int, int, int, int]
"""Pixels at the top, left, bottom and right of a tensor."""
NO_BORDER: Border = (0, 0, 0, 0)


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in DRAM or in ACT.

    Attributes:
        value: of the network; its ``bits`` say which codes occur, not how they are stored.
        bits: that a code takes in memory: 8, or what the array computes with.
        border: around a tensor that stays in ACT; None for one that lies in DRAM.
    """

    value: Value
    bits: int = 8
    border: Border | None = None

    @property
    def form(self) -> tuple[Any, ...]:
        """All but its name."""
        return self.shape, self.dtype, self.bits, self.border

    @property
    def near(self) -> bool:
        """Whether it stays in ACT: nobody loads or stores it."""
        return self.border is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C), without the border."""
        return self.value.shape

    @property
    def dtype(self) -> DType:
        """How a code is read."""
        return self.value.dtype

    @cached_property
    def elements(self) -> int:
        """Length of the flat buffer that holds it: its bytes, or its int32 sums."""
        height, width, channels = self.shape
        return height * width * channels * self.bits // 8

    @property
    def bytes(self) -> int:
        """Of one image, without the border."""
        return self.elements * (4 if self.dtype == "int32" else 1)

    @cached_property
    def pixel_bytes(self) -> int:
        """Bytes of all channels of a pixel."""
        return self.shape[2] * self.bits // 8

    @cached_property
    def row_bytes(self) -> int:
        """Bytes from one row to the next, the border included."""
        _, left, _, right = self.border or NO_BORDER
        return (self.shape[1] + left + right) * self.pixel_bytes

    @property
    def bordered_bytes(self) -> int:
        """Bytes that it takes in ACT, the border included."""
        top, _, bottom, _ = self.border or NO_BORDER
        return (self.shape[0] + top + bottom) * self.row_bytes

    def pixel_offset(self, row: Any, column: Any) -> Any:
        """Byte at which a pixel begins; ints or expressions, negative inside the border."""
        top, left, _, _ = self.border or NO_BORDER
        return (row + top) * self.row_bytes + (column + left) * self.pixel_bytes

    def repeated(self, code: int) -> int:
        """A byte that holds ``code`` at every place, read as the tensor's dtype."""
        if self.bits == 8:
            return code
        byte = sum((code & ((1 << self.bits) - 1)) << place for place in range(0, 8, self.bits))
        return byte - 256 if self.dtype == "int8" and byte > 127 else byte


@dataclass(frozen=True)
class Blocks:
    """How the host packs an image: a block of its pixels is a pixel of what the program reads.

    Attributes:
        size: (rows, columns) of a block.
        count: (rows, columns) of blocks.
        before: (rows, columns) of pixels in the first block that lie before the image.
        fill: the code of pixels outside the image.
    """

    size: tuple[int, int]
    count: tuple[int, int]
    before: tuple[int, int]
    fill: int

    def packed(self, value: Value) -> Value:
        """The tensor that the program reads; channels are (row, column, channel) of a block."""
        rows, columns = self.size
        return replace(value, shape=(*self.count, rows * columns * value.shape[2]))


Tensors: TypeAlias = Mapping[str, Stored]
"""The tensors of a program, by name."""


def host_bytes(value: Value) -> int:
    """Bytes of a tensor of one image at the edge of a program: a code per byte."""
    return Stored(value).bytes
