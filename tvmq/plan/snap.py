"""Free steps of values, moved minutely so that every addition is exact in integers.

Where r is added and y is made, ``step_r / step_y`` must be ``N / 2**q`` with a 16-bit N. Values
and these demands form a graph. Where it is a tree (a chain of residual blocks is), walking it once
and moving each new step by less than 2**-16 of itself meets all demands. Where it has a cycle (two
paths of additions between the same values) the steps of that part get ratios that are powers of
two, which meet any demand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvmq.plan.integers import snap_operand_step, snap_output_step
from tvmq.regions import Regions


def snap_steps(regions: Regions, steps: Sequence[float]) -> tuple[list[float], set[int]]:
    """Steps that make all additions exact.

    Args:
        regions: which values are added where.
        steps: one per group of ``regions.tied``.

    Returns:
        The moved steps, and the groups that had to get ratios that are powers of two.
    """
    demands = _demands(regions)
    snapped, coarse, seen = list(steps), set[int](), set[int]()
    for root in range(len(steps)):
        if root in seen:
            continue
        part = _part_of(root, demands)
        seen |= part
        inside = {demand for demand in demands if demand[0] in part}
        if len(inside) < len(part):
            _walk(root, inside, snapped)
        else:
            coarse |= part
            for group in part - {root}:
                # Rounding down would clip; by 2**0.25 at most is allowed.
                exponent = math.ceil(math.log2(steps[group] / steps[root]) - 0.25)
                snapped[group] = math.ldexp(steps[root], exponent)
    return snapped, coarse


def _demands(regions: Regions) -> set[tuple[int, int]]:
    """(operand, output) of every addition, as groups; within one group nothing is demanded."""
    group = {name: i for i, names in enumerate(regions.tied) for name in names}
    demands = set()
    for layer in regions.layers.values():
        operands = layer.inputs if layer.kind == "add" else (layer.residual,)
        for operand in filter(None, operands):
            demands.add((group[operand], group[layer.output]))
    return {(operand, output) for operand, output in demands if operand != output}


def _part_of(root: int, demands: set[tuple[int, int]]) -> set[int]:
    part, grown = set[int](), {root}
    while grown != part:
        part = grown
        grown = part | {g for demand in demands if part.intersection(demand) for g in demand}
    return part


def _walk(root: int, demands: set[tuple[int, int]], steps: list[float]) -> None:
    """Move steps one after the other, each with respect to one that is settled."""
    settled, left = {root}, set(demands)
    while left:
        operand, output = min(d for d in left if settled.intersection(d))
        if operand in settled:
            steps[output] = snap_output_step(steps[output], steps[operand])
        else:
            steps[operand] = snap_operand_step(steps[operand], steps[output])
        settled |= {operand, output}
        left.remove((operand, output))
