"""Tensors that belong to the network: read where they lie, among the constants of the program.

One that leaves the program is copied to where its outputs are, as a move does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from targets.layers import Constant, Move, Piece
from targets.npu.kinds.cost import Cost
from targets.npu.kinds.kind import Kind, Rule, wide
from targets.npu.kinds.move import Moving
from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.job import Job
from targets.npu.schedule.scheduled import Scheduled
from targets.npu.schedule.storage import Stored

_MOVING = Moving()


class ConstantTensor(Kind[Constant, int]):
    """A choice is the rows of a stripe of the copy."""

    def broken_rules(self, layer: Constant, spec: NpuSpec) -> Iterator[tuple[Rule, str]]:
        """Codes."""
        yield from wide((layer.output,))

    def choices(self, job: Job[Constant]) -> Iterator[int]:
        """Heights of stripes, tallest first."""
        return _MOVING.choices(_copy(job))

    def too_large(self, job: Job[Constant]) -> str:
        """Not even one row fits ACT."""
        return _MOVING.too_large(_copy(job))

    def cost(self, job: Job[Constant], choice: int) -> Cost:
        """Of the copy."""
        return _MOVING.cost(_copy(job), choice)

    def schedule(self, job: Job[Constant], choice: int) -> Scheduled:
        """The copy, from a constant."""
        made = _MOVING.schedule(_copy(job), choice)
        return Scheduled(made.plain, made.func, {"input0": job.layer.codes.reshape(-1)})

    def bytewise(self, layer: Constant, bits: Mapping[str, int]) -> Iterable[str]:
        """Constants are written as bytes."""
        return (layer.output.name,)


def _copy(job: Job[Constant]) -> Job[Move]:
    """The layer as a move from a tensor of the same bytes."""
    layer = job.layer
    source = replace(layer.output, name=f"{layer.output.name}.codes")
    whole = Piece.box(source, (0, 0, 0), (1, 1, 1), source.shape, (0, 0, 0))
    move = Move(layer.name, layer.source, (whole,), layer.output, 0)
    return Job(move, {**job.tensors, source.name: Stored(source)}, job.spec, job.act_bytes)
