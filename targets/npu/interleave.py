"""The machine with its units out of step: any order that tokens allow, to look for races.

    InterleavedSimulator(spec, adversary).run(program, inputs)

Units are in order and each instruction happens at once, when it completes. Which unit is next, of
those that may go on, a ``Choice`` says. With the tokens right every choice leaves the same bytes
everywhere; where a token is missing some choice does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from targets.errors import TrapError
from targets.npu import isa
from targets.npu.program import Program
from targets.npu.simulator import Bytes, Simulator
from targets.npu.spec import NpuSpec

Choice: TypeAlias = Callable[[Sequence[int]], int]
"""Of the heads of the units that may go on (positions in the program), the one that does."""


def youngest(heads: Sequence[int]) -> int:
    """Always the unit that is furthest ahead."""
    return max(heads)


def at_random(seed: int) -> Choice:
    """Any of them, repeatably."""
    rng = np.random.default_rng(seed)
    return lambda heads: heads[int(rng.integers(len(heads)))]


def by_priority(units: Sequence[int], program: Program) -> Choice:
    """The first unit of a list that may go on; the later ones lag as far as tokens let them."""
    rank = {unit: number for number, unit in enumerate(units)}
    return lambda heads: min(heads, key=lambda head: rank[program.instructions[head].unit])


class InterleavedSimulator(Simulator):
    """The machine, with a choice of which unit goes on."""

    def __init__(self, spec: NpuSpec, choose: Choice) -> None:
        super().__init__(spec)
        self.choose = choose

    def image(self) -> list[Bytes]:
        """Copies of all that was written: DRAM regions, then scratchpads."""
        return [memory.copy() for memory in (*self.dram, *self.memories)]

    def _order(self, program: Program) -> Iterator[int]:
        queues = [deque[int]() for _ in isa.UNIT_NAMES]
        for index, instruction in enumerate(program.instructions):
            queues[instruction.unit].append(index)
        left = len(program.instructions)
        while left:
            heads = [
                queue[0]
                for queue in queues
                if queue and self._may_run(program.instructions[queue[0]], left)
            ]
            if not heads:
                waiting = [queue[0] for queue in queues if queue]
                raise TrapError(min(waiting), f"deadlock: no unit can go on, heads {waiting}")
            chosen = self.choose(heads)
            queues[program.instructions[chosen].unit].popleft()
            left -= 1
            yield chosen

    def _may_run(self, i: isa.Instruction, left: int) -> bool:
        if isinstance(i, isa.Halt):
            return left == 1
        depth = self.spec.issue.token_depth
        units = range(len(isa.UNIT_NAMES))
        popped = all(self.tokens[unit, i.unit] for unit in units if i.pop >> unit & 1)
        room = all(self.tokens[i.unit, unit] < depth for unit in units if i.push >> unit & 1)
        return popped and room
