"""A table of rules that write one ATen operator each, and how their arguments are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from tvmq.capture.canonical_graph import CanonicalGraph

Arguments = dict[str, Any]
Rule = Callable[[CanonicalGraph, Node, Arguments], Any]


class RuleTable:
    """Rules by operator name; filled by the decorator ``rule``."""

    def __init__(self) -> None:
        self.by_name: dict[str, Rule] = {}

    def rule(self, *names: str) -> Callable[[Rule], Rule]:
        """Register a rule for the operators of these names."""

        def register(function: Rule) -> Rule:
            for name in names:
                self.by_name[name] = function
            return function

        return register


def pair(value: Any) -> list[int]:
    """An int or a list of one or two ints as a list of two."""
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def positive_axis(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis
