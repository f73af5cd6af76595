"""Which codes a tensor can hold, and how large a sum of their products can get."""

from __future__ import annotations

from relay_passes.relax_nodes import (
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
