"""Free steps, moved minutely so that every requantization and addition is exact in integers.

A ratio of steps must be ``M / 2**s`` with a 16-bit M. With power-of-two steps it is; free steps
are moved by less than 2**-16 of themselves until it is, so that the network in real steps and the
one in integers are the same function, ties included.

Where r is added and y is made, ``step_r / step_y`` must be ``N / 2**q`` with a 16-bit N. Values
and these demands form a graph. Where it is a tree (a chain of residual blocks is), walking it once
and moving each new step by less than 2**-16 of itself meets all demands. Where it has a cycle (two
paths of additions between the same values) the steps of that part get ratios that are powers of
two, which meet any demand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from heapq import heappop, heappush
from typing import TypeAlias

from targets.scale import nearest_multiplier, power_of_two
from tvmq.regions import Regions

Demand: TypeAlias = tuple[int, int]
"""(operand, output) of an addition, as numbers of groups."""


def snap_weight_step(weight: float, source: float, output: float) -> float:
    """The weight step next to ``weight`` with ``source * step / output`` = M / 2**s."""
    ratio = Fraction(source) * Fraction(weight) / Fraction(output)
    multiplier, shift = nearest_multiplier(ratio)
    return float(Fraction(output) * multiplier / Fraction(source) * power_of_two(-shift))


def snap_output_step(output: float, operand: float) -> float:
    """The step next to ``output`` with ``operand / step`` = N / 2**q."""
    multiplier, shift = nearest_multiplier(Fraction(operand) / Fraction(output))
    return float(Fraction(operand) / multiplier * power_of_two(shift))


def snap_operand_step(operand: float, output: float) -> float:
    """The step next to ``operand`` with ``step / output`` = N / 2**q."""
    return snap_weight_step(operand, 1.0, output)


def snap_steps(
    regions: Regions, tied: Sequence[Sequence[str]], steps: Sequence[float]
) -> tuple[list[float], set[int]]:
    """Steps that make all additions exact.

    Args:
        regions: which values are added where.
        tied: names of values that share a step; every value is in one group.
        steps: one per group.

    Returns:
        The moved steps, and the groups that had to get ratios that are powers of two.
    """
    demands = _demands(regions, tied)
    snapped, coarse, seen = list(steps), set[int](), set[int]()
    for root in range(len(steps)):
        if root in seen:
            continue
        part = _part_of(root, demands)
        seen |= part
        if len({demand for group in part for demand in demands.get(group, ())}) < len(part):
            _walk(root, demands, snapped)
        else:
            coarse |= part
            for group in part - {root}:
                # Rounding down would clip; by 2**0.25 at most is allowed.
                exponent = math.ceil(math.log2(steps[group] / steps[root]) - 0.25)
                snapped[group] = math.ldexp(steps[root], exponent)
    return snapped, coarse


def _demands(regions: Regions, tied: Sequence[Sequence[str]]) -> dict[int, list[Demand]]:
    """The additions of each group; within one group nothing is demanded."""
    group = {name: i for i, names in enumerate(tied) for name in names}
    demands: dict[int, list[Demand]] = {}
    for layer in regions.layers.values():
        operands = layer.inputs if layer.kind == "add" else (layer.residual,)
        for operand in filter(None, operands):
            demand = (group[operand], group[layer.output])
            if demand[0] != demand[1]:
                for end in demand:
                    demands.setdefault(end, []).append(demand)
    return demands


def _part_of(root: int, demands: dict[int, list[Demand]]) -> set[int]:
    """All groups that demands lead to from ``root``."""
    part, open_ends = {root}, [root]
    while open_ends:
        reached = {group for demand in demands.get(open_ends.pop(), ()) for group in demand}
        open_ends += reached - part
        part |= reached
    return part


def _walk(root: int, demands: dict[int, list[Demand]], steps: list[float]) -> None:
    """Move steps one after the other, each with respect to one that is settled."""
    settled, left = {root}, sorted(demands.get(root, ()))
    while left:
        operand, output = heappop(left)
        if operand in settled and output in settled:
            continue
        if operand in settled:
            steps[output] = snap_output_step(steps[output], steps[operand])
        else:
            steps[operand] = snap_operand_step(steps[operand], steps[output])
        (new,) = {operand, output} - settled
        settled.add(new)
        for demand in demands[new]:
            heappush(left, demand)
