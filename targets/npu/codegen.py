"""From the lowered TIR of one layer to instructions in program order.

The walk runs the outer loops with numbers in hand and emits one or a few instructions per
statement. Buffers get
addresses here: scratchpads one behind the other in their memory, DRAM tensors where the caller put
them.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import tirx

from targets.errors import CapacityError
from targets.npu.emit_compute import emit_call
from targets.npu.emit_dma import emit_copy, emit_fill
from targets.npu.emitted import MEMORIES, Emitted, Place
from targets.npu.loop_tree import (
    Allocation,
    Branch,
    Env,
    Leaf,
    Loop,
    Node,
    Sequence,
    read_function,
)
from targets.npu.spec import NpuSpec
from targets.npu.target import lowering

_ITEMSIZE = {"int8": 1, "uint8": 1, "int32": 4}
_ALIGN = 64
_ACCUMULATES = {"npu.gemm": 2, "npu.dwconv": 2, "npu.max": 1}
"""Intrinsics that can start from nothing instead of a fill -> their written pointer."""


def lower(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Run the NPU's TIR pipeline on one function."""
    return lowering()(tvm.IRModule({"main": func}))["main"]


def generate(func: tirx.PrimFunc, dram: Mapping[str, Place], spec: NpuSpec) -> list[Emitted]:
    """Emit a layer's instructions.

    Args:
        func: tensorized function of one layer.
        dram: place of each of its parameters.
        spec: the machine.

    Raises:
        CapacityError: its scratchpads do not fit the machine's memories; names the memory.
    """
    tree, allocations = read_function(lower(func))
    walker = _Walker({**dram, **_scratchpads(allocations, spec)}, spec)
    walker.walk(tree, {})
    walker.flush()
    return walker.emitted


def _scratchpads(allocations: list[Allocation], spec: NpuSpec) -> dict[str, Place]:
    capacity = [m.bytes for m in (spec.sram.act, spec.sram.wgt, spec.sram.acc, spec.sram.par)]
    used = [0] * len(capacity)
    places = {}
    for buffer in allocations:
        memory = MEMORIES[buffer.scope]
        itemsize = _ITEMSIZE[buffer.dtype]
        begin = -(-used[memory] // _ALIGN) * _ALIGN
        if begin + buffer.elements * itemsize > capacity[memory]:
            begin = (
                -(-used[memory] // itemsize) * itemsize
            )  # alignment is a convenience, capacity is not
        used[memory] = begin + buffer.elements * itemsize
        if used[memory] > capacity[memory]:
            msg = f"{buffer.scope} needs {used[memory]} bytes, the machine has {capacity[memory]}"
            raise CapacityError(msg)
        places[buffer.name] = Place(memory, begin, itemsize, dram=False)
    return places


class _Walker:
    """Visits the tree in program order and collects instructions."""

    def __init__(self, places: dict[str, Place], spec: NpuSpec) -> None:
        self.places, self.spec = places, spec
        self.emitted: list[Emitted] = []
        self._fill: tuple[Leaf, Env] | None = None

    def walk(self, node: Node, env: Env) -> None:
        if isinstance(node, Sequence):
            for child in node.nodes:
                self.walk(child, env)
        elif isinstance(node, Loop):
            for i in range(node.extent.at(env)):
                self.walk(node.body, {**env, node.var: i})
        elif isinstance(node, Branch):
            if node.condition.at(env):
                self.walk(node.body, env)
        else:
            self._leaf(node, env)

    def flush(self) -> None:
        """Emit a fill that no accumulation took over."""
        if self._fill is not None:
            leaf, env = self._fill
            self._fill = None
            self.emitted += emit_fill(leaf, env, self.places)

    def _leaf(self, leaf: Leaf, env: Env) -> None:
        initialise = self._absorbs_fill(leaf)
        if initialise:
            self._fill = None
        else:
            self.flush()
        if leaf.kind == "fill":
            self._fill = (leaf, env)
        elif leaf.kind == "copy":
            self.emitted += emit_copy(leaf, env, self.places)
        else:
            self.emitted += emit_call(leaf, env, self.places, self.spec, initialise=initialise)

    def _absorbs_fill(self, leaf: Leaf) -> bool:
        """Whether it accumulates onto what was just filled: it then starts from nothing."""
        if self._fill is None or leaf.kind not in _ACCUMULATES:
            return False
        filled = self._fill[0].offsets[0].buffer
        return leaf.offsets[_ACCUMULATES[leaf.kind]].buffer == filled
