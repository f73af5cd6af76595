"""Which codes a tensor can hold."""

from __future__ import annotations

from relay_passes.operators import KEEPS_CODES
from relay_passes.relax_nodes import (
    Expr,
    Graph,
    Var,
    array_of,
    dtype_of,
    is_codes,
    is_constant,
    number,
    op_of,
    tensors_in,
)
from targets.code_range import type_range


class CodeRanges:
    """Lowest and highest code of each 8-bit tensor, as far as its definition tells.

    One pass over the bindings in their order, so that a definition is looked at once however deep
    the network is and however often its tensors are read.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[Var, tuple[int, int]] = {}
        for var, value in graph.bindings:
            if is_codes(var):
                self._known[var] = self._range(var, value)

    def of(self, codes: Expr) -> tuple[int, int]:
        """Lowest and highest code that an int8 or uint8 tensor of the graph can hold."""
        return self._known[codes] if codes in self._known else type_range(dtype_of(codes))

    def _range(self, var: Var, call: Expr) -> tuple[int, int]:
        first, last = type_range(dtype_of(var))
        op = op_of(call)
        if op == "astype" and (clip := self._graph.match(call.args[0], "clip")) is not None:
            low, high = (int(number(clip.args[i])) for i in (1, 2))
            return max(low, first), min(high, last)
        if op == "take" and is_constant(call.args[0]):
            table = array_of(call.args[0])
            return int(table.min()), int(table.max())
        if op == "broadcast_to" and is_constant(call.args[0]):
            held = array_of(call.args[0])
            return int(held.min()), int(held.max())
        if op not in KEEPS_CODES:
            return first, last
        ranges = [self.of(source) for source in tensors_in(call) if is_codes(source)]
        if op == "nn.pad":
            ranges.append((int(call.attrs.pad_value),) * 2)
        return min(low for low, _ in ranges), max(high for _, high in ranges)
