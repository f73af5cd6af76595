"""What a layer costs, estimated before there is a program; ``price`` measures programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from targets.npu.machine.spec import NpuSpec


@dataclass(frozen=True)
class Cost:
    """Estimated cycles of one image, and how long each part of the machine is busy in them.

    Attributes:
        cycles: on a machine that has nothing else to do.
        ahead: of these, those in which the layer before may still be at work: instructions,
            weights and tables do not wait for that, and some tensors only for its beginning.
        part: of these, those until the first part of its output is there, and those that it takes
            once the last part of its input is; 0 where it needs all of it before anything.
        array: cycles in which the MAC array works.
        data: in which the bus moves tensors and constants.
        fetch: in which it moves instructions.
        vector: in which the vector unit works.
        decode: that the unit with the most instructions spends decoding them.
        requantizes: whether the vector unit's work is requantization.
    """

    cycles: int
    ahead: int = 0
    part: int = 0
    array: int = 0
    data: int = 0
    fetch: int = 0
    vector: int = 0
    decode: int = 0
    requantizes: bool = False

    @property
    def bound(self) -> str:
        """What bounds the layer, by the rule and in the words of ``price.layer_costs``."""
        if not self.cycles:
            return ""
        busy = {
            "MAC array": self.array,
            "DMA" if self.data >= self.fetch else "issue": self.data + self.fetch,
            "requantize" if self.requantizes else "vector unit": self.vector,
        }
        busiest = max(busy, key=busy.__getitem__)
        if 2 * busy[busiest] >= self.cycles:
            return busiest
        return "issue" if 2 * self.decode >= self.cycles - busy[busiest] else "latency"


LONGEST_STEP = 2048
"""Cycles that an instruction of the vector unit on many pixels or bytes may take, about.

Sums of the layer before wait for it in ACC, whose slots hold as much work of the array."""

NOTHING = Cost(0)
"""Of what needs no instruction."""


def ceil_div(a: int, b: int) -> int:
    """The quotient rounded up."""
    return -(-a // b)


def bus_cycles(spec: NpuSpec, rows: int, row_bytes: int) -> int:
    """Cycles of a transfer; a partial burst costs a whole one."""
    bursts = rows * ceil_div(row_bytes, spec.dma.burst)
    return ceil_div(bursts * spec.dma.burst, spec.dma.bytes_per_cycle)


@dataclass(frozen=True)
class Step:
    """One of the equal steps of a layer that streams through ACT: load, compute, store.

    Attributes:
        loads: bus cycles of each LD.
        fill: cycles of writing constants.
        computes: cycles of the vector unit's instruction, or 0 for none.
        stores: bus cycles of the ST, or 0 for none.
    """

    loads: Sequence[int]
    fill: int = 0
    computes: int = 0
    stores: int = 0


def streamed(spec: NpuSpec, whole: int, part: int, step: Step, constants: int = 0) -> Cost:
    """The cost of steps in two slots: one is loaded while the other is worked on.

    A step follows the one before at the pace of the slowest of four: the bus; the vector unit; the
    way round a load's slot (it may be loaded anew once it is computed on), which two steps share;
    and that round a store's.

    Args:
        spec: the machine.
        whole: length of the tensor, in rows or bytes.
        part: length of a step; the last one may be shorter.
        step: a whole one.
        constants: bus cycles of what is loaded before the first step.
    """
    dma, decode = spec.dma, spec.issue.decode
    instructions = len(step.loads) + bool(step.fill) + bool(step.computes) + bool(step.stores)
    fetch = bus_cycles(spec, 1, instructions * spec.issue.insn_bytes)
    loaded = sum(step.loads)
    arriving = decode + step.fill + (dma.read_latency + loaded if loaded else 0)
    computing = decode + step.computes + spec.vu.latency if step.computes else 0
    storing = decode + step.stores + dma.write_latency if step.stores else 0
    bus = loaded + step.stores + fetch
    vector = decode + step.computes if step.computes else 0
    loading = len(step.loads) * decode + step.fill
    slots = (arriving + computing + (storing if not step.computes else 0), computing + storing)
    pace = max(bus, vector, loading, *(ceil_div(slot, 2) for slot in slots))
    steps = ceil_div(whole, part)
    ahead = dma.read_latency + fetch + constants
    first = ahead + arriving + computing + storing
    return Cost(
        cycles=first + max(0, whole - part) * pace // part,
        ahead=ahead,
        part=first,
        data=constants + whole * (loaded + step.stores) // part,
        fetch=steps * fetch,
        vector=whole * step.computes // part,
        decode=steps * max(len(step.loads) + bool(step.fill), 1) * decode,
    )
