"""A layer where the machine finds it: its tensors as they lie, and the memory that is left."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from targets.layers import Layer, Value
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.storage import Stored, Tensors

L = TypeVar("L", bound=Layer)


@dataclass(frozen=True, eq=False)
class Job(Generic[L]):
    """What choices, cost and schedule of a layer depend on.

    Attributes:
        layer: to be computed.
        tensors: those that it reads and writes, and maybe others.
        spec: the machine.
        act_bytes: of ACT that tensors of other layers leave; they lie behind these.
        beside: cycles of the vector unit for layers without sums that this one hands its pixels
            to, or gets them from: they overlap with this one, part by part.
        stripe: fewest and most output rows of a stripe, each of which has all channels before the
            next one: what a layer of a cascade must keep to; None for any other.
        sharing: layers of its cascade, whose scratchpads lie beside each other: ``act_bytes`` and
            the memories of ``spec`` are one's part.
        follows: whether there is a layer before it, while which its first weights are loaded.
    """

    layer: L
    tensors: Tensors
    spec: NpuSpec
    act_bytes: int
    beside: int = 0
    stripe: tuple[int, int] | None = None
    sharing: int = 1
    follows: bool = False

    @staticmethod
    def alone(layer: L, spec: NpuSpec) -> Job[L]:
        """The layer on an empty machine, every tensor as bytes in DRAM."""
        tensors = {value.name: Stored(value) for value in (*layer.inputs, layer.output)}
        return Job(layer, tensors, spec, spec.sram.act.bytes)

    def stored(self, value: Value) -> Stored:
        """How one of the layer's tensors lies."""
        return self.tensors[value.name]

    @cached_property
    def inputs(self) -> tuple[Stored, ...]:
        """The tensors that the layer reads."""
        return tuple(self.stored(value) for value in self.layer.inputs)

    @cached_property
    def output(self) -> Stored:
        """The tensor that it makes."""
        return self.stored(self.layer.output)
