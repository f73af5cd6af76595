"""From the lowered TIR of one layer to instructions in program order.

    tensorized function -> TIR pipeline -> loop tree -> visits -> instructions

The outer loops are run with numbers in hand (``visits``). Each visit of a statement gives one or a
few instructions, and those that differ in addresses alone are made at once (``numbers``). The loops
directly around a statement have become part of it (``loop_tree``) and end up as the instruction's
own, the hardware loops. Buffers get addresses here: scratchpads one behind the other in their
memory, tensors where the caller put them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from tvm import tirx

from targets.errors import CapacityError
from targets.npu.emit.compute import emit_call
from targets.npu.emit.dma import emit_copy, emit_fill
from targets.npu.emit.emitted import MEMORIES, Emission, Emitted, Place
from targets.npu.emit.loop_tree import Allocation, Leaf, Lowered, read_function
from targets.npu.emit.numbers import Table
from targets.npu.emit.visits import Visits, visits
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
) -> Emission:
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
    return generate_together([(0, lowered, parameters)], spec, scratchpads or Scratchpads())[0]


def generate_together(
    layers: Iterable[tuple[int, Lowered, Mapping[str, Place]]],
    spec: NpuSpec,
    scratchpads: Scratchpads,
) -> list[Emission]:
    """Emit the instructions of layers that are at work at the same time, with their indices.

    Their scratchpads lie beside each other; otherwise as ``generate``, layer by layer.
    """
    trees, buffers = [], []
    for owner, (tree, allocations), parameters in layers:
        trees.append((owner, tree, parameters, {a.name: f"{owner}.{a.name}" for a in allocations}))
        buffers += [replace(a, name=f"{owner}.{a.name}") for a in allocations]
    places = scratchpads.place(buffers, spec)
    emitted = []
    for owner, tree, parameters, names in trees:
        own = {name: places[unique] for name, unique in names.items()}
        emitted.append(_of_layer(owner, visits(tree), {**parameters, **own}, spec))
    return emitted


def _of_layer(
    owner: int, found: list[Visits], places: Mapping[str, Place], spec: NpuSpec
) -> Emission:
    """The instructions of all visits of each statement at once, and their order."""
    order = np.argsort(np.concatenate([each.turns for each in found]))
    leaves = np.repeat(np.arange(len(found)), [len(each) for each in found])[order]
    absorbs = np.array([[_absorbs(each.leaf, fill.leaf) for each in found] for fill in found])
    absorbed = absorbs[leaves[:-1], leaves[1:]]
    superfluous, initialise = np.append(absorbed, False), np.insert(absorbed, 0, False)
    emitted: list[Emitted] = []
    # When it is visited, which of the visit's it is, which of ``emitted``, and the place in that.
    rows = [np.empty((0, 4), np.int64)]
    for n, each in enumerate(found):
        turns = np.flatnonzero(leaves == n)
        for afresh in (False, True):
            mine = np.flatnonzero(~superfluous[turns] & (initialise[turns] == afresh))
            if not len(mine):
                continue
            for which, several in _emitted(each.part(mine), places, spec, initialise=afresh):
                row = np.empty((len(several), len(which), 4), np.int64)
                row[:, :, 0], row[:, :, 3] = turns[mine[which]], np.arange(len(which))
                row[:, :, 1] = np.arange(len(several))[:, None]
                row[:, :, 2] = row[:, :, 1] + len(emitted)
                rows.append(row.reshape(-1, 4))
                emitted += several
    made = np.concatenate(rows)
    made = made[np.lexsort((made[:, 1], made[:, 0]))]
    return Emission(emitted, np.insert(made[:, 2:], 0, owner, axis=1))


def _emitted(
    visits: Visits, places: Mapping[str, Place], spec: NpuSpec, *, initialise: bool
) -> Iterator[tuple[Table, list[Emitted]]]:
    """Visits whose instructions differ in addresses alone, and these."""
    if visits.leaf.kind == "fill":
        return emit_fill(visits, places)
    if visits.leaf.kind == "copy":
        return emit_copy(visits, places)
    return emit_call(visits, places, spec, initialise=initialise)


def _absorbs(leaf: Leaf, before: Leaf) -> bool:
    """Whether it accumulates onto what was just filled: it then starts from nothing."""
    if before.kind != "fill" or leaf.kind not in _ACCUMULATES:
        return False
    return leaf.offsets[_ACCUMULATES[leaf.kind]].buffer == before.offsets[0].buffer
