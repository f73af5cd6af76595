"""Elements of 8, 4 or 2 bits in bytes, element 0 in the low bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def unpack(packed: npt.NDArray[np.uint8], bits: int, *, unsigned: bool) -> npt.NDArray[np.int64]:
    """The elements in the last axis of packed bytes.

    Args:
        packed: uint8[..., n].
        bits: of an element.
        unsigned: how an element is read.

    Returns:
        int64[..., n * 8 / bits].
    """
    fields = packed[..., None].astype(np.int64) >> np.arange(0, 8, bits) & ((1 << bits) - 1)
    values = fields.reshape(*packed.shape[:-1], -1)
    return values if unsigned else values - ((values >> (bits - 1)) << bits)


def pack(values: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Codes as packed bytes, the last byte of a row filled with zero bits.

    Args:
        values: integers [..., n]; only their low ``bits`` count.
        bits: of an element.

    Returns:
        uint8[..., ceil(n * bits / 8)].
    """
    if bits == 8:
        return values.astype(np.uint8)
    values, per_byte = values.astype(np.int64), 8 // bits
    missing = -values.shape[-1] % per_byte
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)]) & ((1 << bits) - 1)
    fields = padded.reshape(*values.shape[:-1], -1, per_byte) << np.arange(0, 8, bits)
    return fields.sum(axis=-1).astype(np.uint8)
