"""What the NumPy simulator works on: memories, DRAM regions, tokens, counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from targets.npu.machine.program import Program
from targets.npu.machine.spec import NpuSpec

Bytes: TypeAlias = npt.NDArray[np.uint8]
Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass
class Counters:
    """What a run did.

    Attributes:
        instructions: executed.
        macs: products of valid lanes and columns.
        loaded: bytes read from DRAM.
        stored: bytes written to DRAM.
    """

    instructions: int = 0
    macs: int = 0
    loaded: int = 0
    stored: int = 0


@dataclass(frozen=True)
class HeldWeights:
    """The tile that the array holds, lanes x C, and the widths' codes that it was loaded for."""

    tile: Ints
    act_bits: int
    wgt_bits: int


@dataclass
class Machine:
    """One image's state.

    Attributes:
        spec: the machine.
        dram: bytes of the regions: constants, arena, inputs, outputs.
        acc: int32[rows, C].
        memories: bytes of ACT, WGT, ACC and PAR; ACC's are those of ``acc``.
        held: the weights in the array, if any.
        tokens: int64[source, target], waiting.
        index: of the instruction at work.
        counters: what was done so far.
    """

    spec: NpuSpec
    dram: list[Bytes]
    acc: npt.NDArray[np.int32]
    memories: list[Bytes]
    held: HeldWeights | None = None
    tokens: Ints = field(default_factory=lambda: np.zeros((4, 4), np.int64))
    index: int = 0
    counters: Counters = field(default_factory=Counters)

    @staticmethod
    def start(spec: NpuSpec, program: Program, image: Bytes) -> Machine:
        """Everything zero but the constants and the image."""
        constants = np.frombuffer(program.constants, np.uint8)
        arena, outputs = (
            np.zeros(n, np.uint8) for n in (program.arena_bytes, program.output_bytes)
        )
        acc = np.zeros((spec.acc_rows, spec.array.cols), np.int32)
        act, wgt, par = (
            np.zeros(bank.bytes, np.uint8) for bank in (spec.sram.act, spec.sram.wgt, spec.sram.par)
        )
        memories = [act, wgt, acc.view(np.uint8).reshape(-1), par]
        return Machine(spec, [constants, arena, image, outputs], acc, memories)

    @property
    def act(self) -> Bytes:
        """Activations."""
        return self.memories[0]

    @property
    def wgt(self) -> Bytes:
        """Weights."""
        return self.memories[1]

    @property
    def par(self) -> Bytes:
        """Parameter records and tables."""
        return self.memories[3]
