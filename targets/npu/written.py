"""Instructions of some layers, in an order that is right one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from targets.npu.emit.emitted import Emitted
from targets.npu.emit.touched_bytes import TouchedBytes
from targets.npu.machine import isa
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.timing import Records, Table, steps_of


@dataclass(frozen=True)
class Owned:
    """An instruction, and the index of its layer."""

    emitted: Emitted
    owner: int


@dataclass(frozen=True)
class Written:
    """Instructions, and in arrays all that order, tokens and time depend on.

    Attributes:
        instructions: themselves, without tokens.
        owners: their layers, int64[n].
        steps: ``STEP[n]``, without tokens.
        urgent: which go before others of their unit that could start, too, bool[n]: REQ.
        touched: the bytes.
    """

    instructions: Sequence[Any]
    owners: Table
    steps: Records
    urgent: npt.NDArray[np.bool_]
    touched: TouchedBytes

    @staticmethod
    def of(owned: Sequence[Owned], spec: NpuSpec) -> Written:
        """Of instructions one by one, and what they take on a machine."""
        made = [each.emitted for each in owned]
        instructions = [each.instruction for each in made]
        return Written(
            instructions,
            np.array([each.owner for each in owned], np.int64),
            steps_of(instructions, spec),
            np.array([isinstance(each, isa.Requantize) for each in instructions], np.bool_),
            TouchedBytes.of([(each.reads, each.writes) for each in made]),
        )

    @staticmethod
    def joined(parts: Sequence[Written]) -> Written:
        """One behind another."""
        return Written(
            [each for part in parts for each in part.instructions],
            np.concatenate([part.owners for part in parts]),
            np.concatenate([part.steps for part in parts]),
            np.concatenate([part.urgent for part in parts]),
            TouchedBytes.joined([part.touched for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.instructions)

    def part(self, first: int, last: int) -> Written:
        """Those at [first, last)."""
        which = slice(first, last)
        return Written(
            self.instructions[which],
            self.owners[which],
            self.steps[which],
            self.urgent[which],
            self.touched.part(first, last),
        )

    def moved(self, memory: int, which: range, further: int) -> Written:
        """What touches bytes of a memory that begin among some, further on.

        The addresses in instructions stay as they were.
        """
        return replace(self, touched=self.touched.moved(memory, which, further))
