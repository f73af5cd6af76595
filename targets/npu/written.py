"""Instructions of some layers, in an order that is right one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from targets.npu.emit.emitted import Emission
from targets.npu.emit.touched_bytes import TouchedBytes
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.timing import Records, Table, steps_of


@dataclass(frozen=True)
class Written:
    """Instructions, and in arrays all that order, tokens and time depend on.

    Attributes:
        emission: themselves, without tokens.
        steps: ``STEP[n]``, without tokens.
        urgent: which go before others of their unit that could start, too, bool[n]: REQ.
        touched: the bytes.
    """

    emission: Emission
    steps: Records
    urgent: npt.NDArray[np.bool_]
    touched: TouchedBytes

    @staticmethod
    def of(emission: Emission, spec: NpuSpec) -> Written:
        """Of instructions, and what they take on a machine: that is the same at any address."""
        which = emission.order[:, 1]
        instructions = [each.instruction for each in emission.emitted]
        urgent = [isinstance(each, isa.Requantize) for each in instructions]
        footprints = [(each.reads, each.writes) for each in emission.emitted]
        return Written(
            emission,
            steps_of(instructions, spec)[which],
            np.array(urgent, np.bool_)[which],
            TouchedBytes.of(footprints, emission.order[:, 1:]),
        )

    @staticmethod
    def joined(parts: Sequence[Written]) -> Written:
        """One behind another."""
        return Written(
            Emission.joined([part.emission for part in parts]),
            np.concatenate([part.steps for part in parts]),
            np.concatenate([part.urgent for part in parts]),
            TouchedBytes.joined([part.touched for part in parts]),
        )

    @property
    def owners(self) -> Table:
        """The instructions' layers, int64[n]."""
        return self.emission.order[:, 0]

    def instruction(self, n: int, pop: int, push: int) -> isa.Instruction:
        """One of them, with tokens."""
        _, which, place = self.emission.order[n].tolist()
        made: isa.Instruction = self.emission.emitted[which].at(place, pop, push)
        return made

    def __len__(self) -> int:
        return len(self.emission)

    def part(self, first: int, last: int) -> Written:
        """Those at [first, last)."""
        which = slice(first, last)
        return Written(
            self.emission.part(which),
            self.steps[which],
            self.urgent[which],
            self.touched.part(first, last),
        )

    def moved(self, memory: int, which: range, further: int) -> Written:
        """What touches bytes of a memory that begin among some, further on.

        The addresses in instructions stay as they were.
        """
        return replace(self, touched=self.touched.moved(memory, which, further))
