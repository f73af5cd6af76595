"""Which codes a tensor can hold, and how large a sum of their products can get."""

from __future__ import annotations

import numpy as np

from relay_passes.relax_nodes import (
    Array,
    Expr,
    Graph,
    array_of,
    dtype_of,
    is_codes,
    number,
    op_of,
    tensors_in,
)

_KEEPS_CODES = ("reshape", "permute_dims", "strided_slice", "nn.max_pool2d", "nn.pad", "concat")


def code_range(graph: Graph, codes: Expr) -> tuple[int, int]:
    """Lowest and highest code that an 8-bit tensor can hold, as far as its definition tells."""
    first, last = (-128, 127) if dtype_of(codes) == "int8" else (0, 255)
    call = graph.value(codes)
    op = op_of(call)
    if op == "astype" and (clip := graph.match(call.args[0], "clip")) is not None:
        low, high = (int(number(clip.args[i])) for i in (1, 2))
        return max(low, first), min(high, last)
    if op == "take":
        table = array_of(call.args[0])
        return int(table.min()), int(table.max())
    if op not in _KEEPS_CODES:
        return first, last
    ranges = [code_range(graph, source) for source in tensors_in(call) if is_codes(source)]
    if op == "nn.pad":
        ranges.append((int(call.attrs.pad_value),) * 2)
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def sum_bound(weight: Array, bias: Array, low: int, high: int) -> int:
    """Largest |sum of products + bias| over all inputs; every partial sum stays below it, too.

    Args:
        weight: int8[K, ...], one row of products per output channel.
        bias: int[K], added to the sums.
        low: lowest input code.
        high: highest input code.

    Returns:
        The tight bound of the whole sum and of each prefix of it, whatever the order.
    """
    rows = weight.reshape(weight.shape[0], -1).astype(np.int64)
    ends = np.stack([rows * low, rows * high])
    most = np.maximum(ends.max(0), 0).sum(1)  # a prefix may leave out what would cancel
    least = np.minimum(ends.min(0), 0).sum(1)
    offset = bias.astype(np.int64)
    extremes = np.stack([most, least, most + offset, least + offset])
    return int(np.abs(extremes).max())
