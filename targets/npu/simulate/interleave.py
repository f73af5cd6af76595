"""The machine with its units out of step: any order that tokens allow, to look for races.

    Simulator(spec).run(program, inputs, interleaved(youngest))

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
from targets.npu.machine import isa
from targets.npu.machine.program import Program
from targets.npu.simulate.simulator import Order
from targets.npu.simulate.state import Machine

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


def interleaved(choose: Choice) -> Order:
    """An order for the simulator: of the units that may go on, the one that is chosen."""

    def order(program: Program, machine: Machine) -> Iterator[int]:
        queues = [deque[int]() for _ in isa.UNIT_NAMES]
        for index, instruction in enumerate(program.instructions):
            queues[instruction.unit].append(index)
        for left in range(len(program.instructions), 0, -1):
            heads = [
                queue[0]
                for queue in queues
                if queue and _may_run(program.instructions[queue[0]], machine, left)
            ]
            if not heads:
                waiting = [queue[0] for queue in queues if queue]
                raise TrapError(min(waiting), f"deadlock: no unit can go on, heads {waiting}")
            chosen = choose(heads)
            queues[program.instructions[chosen].unit].popleft()
            yield chosen

    return order


def _may_run(i: isa.Instruction, machine: Machine, left: int) -> bool:
    """Whether its tokens are there and those of its unit have found room; HALT comes last.

    An instruction whose token finds its FIFO full is done all the same; its unit waits then.
    """
    if isinstance(i, isa.Halt):
        return left == 1
    tokens, depth = machine.tokens, machine.spec.issue.token_depth
    units = range(len(isa.UNIT_NAMES))
    popped = all(tokens[unit, i.unit] for unit in units if i.pop >> unit & 1)
    return popped and all(tokens[i.unit, unit] <= depth for unit in units)
