"""From the lowered TIR of one layer to instructions in program order.

    tensorized function -> TIR pipeline -> loop tree -> walk -> instructions

The walk runs the outer loops with numbers in hand and emits one or a few instructions per
statement; the loops directly around a statement have become part of it (``loop_tree``) and end up
as the instruction's own, the hardware loops. Buffers get addresses here: scratchpads one behind the
other in their memory, tensors where the caller put them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from tvm import tirx

from targets.errors import CapacityError
from targets.npu.emit.compute import emit_call
from targets.npu.emit.dma import emit_copy, emit_fill
from targets.npu.emit.emitted import MEMORIES, Emitted, Place
from targets.npu.emit.loop_tree import (
    Allocation,
    Branch,
    Env,
    Leaf,
    Loop,
    Lowered,
    Node,
    Sequence,
    read_function,
)
from targets.npu.machine.spec import NpuSpec
from targets.npu.target import lower

_ITEMSIZE = {"int8": 1, "uint8": 1, "int32": 4}
_ALIGN = 64
_ACCUMULATES = {"npu.gemm": 2, "npu.dwconv": 2, "npu.max": 1}
"""Intrinsics that can start from nothing instead of a fill -> their written pointer.

A schedule writes zeros (for a maximum, the lowest code) and then accumulates. GEMM and DWC have a
flag for that, and POOL always starts anew: the fill before them folds into them and costs nothing.
"""


class Block(NamedTuple):
    """The bytes of a memory that a layer has to itself, scratchpads one behind the other.

    Attributes:
        begin: the first one.
        bytes: how many.
        of: as many of the memory are there for layers.
    """

    begin: int
    bytes: int
    of: int


class Scratchpads:
    """Hands out the memories' bytes to one layer after the other, each behind the one before.

    Two layers that lie apart may overlap in time: the next one's weights load under this one. Where
    the rest of a memory is too small for a layer it begins at 0 again, over the layers before, and
    tokens keep the two in order.
    """

    def __init__(self) -> None:
        self._next = [0] * len(MEMORIES)
        self.taken: list[Block] = []
        """By memory, what the last layer has."""

    def take(self, blocks: Iterable[Block]) -> None:
        """Give a layer as many bytes of each memory as one had before; wherever they are now."""
        self.taken = []
        for memory, block in enumerate(blocks):
            begin = self._next[memory] if self._next[memory] + block.bytes <= block.of else 0
            self._next[memory] = -(-(begin + block.bytes) // _ALIGN) * _ALIGN
            self.taken.append(block._replace(begin=begin))

    def place(self, buffers: list[Allocation], spec: NpuSpec) -> dict[str, Place]:
        """Places of one layer's buffers, in the memories as the layer finds them.

        Raises:
            CapacityError: they do not fit a memory; names it.
        """
        sram, blocks, placed = spec.sram, list[Block](), list[tuple[int, Allocation, int]]()
        for memory, bank in enumerate((sram.act, sram.wgt, sram.acc, sram.par)):
            mine = [b for b in buffers if MEMORIES[b.scope] == memory]
            offsets, size = _pack(mine, bank.bytes)
            if size > bank.bytes:
                msg = f"{mine[0].scope} needs {size} bytes, the machine has {bank.bytes}"
                raise CapacityError(msg)
            blocks.append(Block(0, size, bank.bytes))
            placed += [(memory, *each) for each in zip(mine, offsets, strict=True)]
        self.take(blocks)
        return {
            buffer.name: Place(
                memory, self.taken[memory].begin + offset, _ITEMSIZE[buffer.dtype], dram=False
            )
            for memory, buffer, offset in placed
        }


def _pack(buffers: list[Allocation], capacity: int) -> tuple[list[int], int]:
    """Offsets of buffers one behind the other, and their size in all; dense if need be."""
    offsets, end = _packed(buffers, _ALIGN)
    return (offsets, end) if end <= capacity else _packed(buffers, 1)


def _packed(buffers: list[Allocation], alignment: int) -> tuple[list[int], int]:
    offsets, end = [], 0
    for buffer in buffers:
        itemsize = _ITEMSIZE[buffer.dtype]
        unit = max(alignment, itemsize)
        begin = -(-end // unit) * unit
        offsets.append(begin)
        end = begin + buffer.elements * itemsize
    return offsets, end


def generate(
    func: tirx.PrimFunc,
    parameters: Mapping[str, Place],
    spec: NpuSpec,
    scratchpads: Scratchpads | None = None,
) -> list[Emitted]:
    """Emit a layer's instructions.

    Args:
        func: tensorized function of one layer.
        parameters: place of each of its parameters.
        spec: the machine.
        scratchpads: what layers before left; a fresh machine if not given.

    Raises:
        CapacityError: its scratchpads do not fit the machine's memories; names the memory.
    """
    lowered = read_function(lower(func))
    return generate_together([(lowered, parameters)], spec, scratchpads or Scratchpads())[0]


def generate_together(
    layers: Iterable[tuple[Lowered, Mapping[str, Place]]],
    spec: NpuSpec,
    scratchpads: Scratchpads,
) -> list[list[Emitted]]:
    """Emit the instructions of layers that are at work at the same time.

    Their scratchpads lie beside each other; otherwise as ``generate``, layer by layer.
    """
    trees, buffers = [], []
    for n, ((tree, allocations), parameters) in enumerate(layers):
        trees.append((tree, parameters, {a.name: f"{n}.{a.name}" for a in allocations}))
        buffers += [replace(a, name=f"{n}.{a.name}") for a in allocations]
    places = scratchpads.place(buffers, spec)
    emitted = []
    for tree, parameters, names in trees:
        own = {name: places[unique] for name, unique in names.items()}
        walker = _Walker({**parameters, **own}, spec)
        walker.walk(tree, {})
        walker.flush()
        emitted.append(walker.emitted)
    return emitted


class _Walker:
    """Visits the tree in program order and collects instructions.

    A fill is held back for one statement: what comes next may make it superfluous.
    """

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
