"""Constant masks: what hides tokens from attention, and what fills numbers in.

A hidden token has a summand so low, -100 or -inf, that softmax makes 0 of it. In one tensor with
positions it would take all codes; so what hides is a summand of its own, which is added last, and
the step of the masked scores is chosen without it (``tvmq/plan/masked_scores.py``).

Where no softmax reads it, a tensor with numbers filled in is its product with a mask of zeros and
ones, plus these numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from targets.refusal import Refusal
from tvmq.capture.canonical_graph import CanonicalGraph, is_constant, shape_of
from tvmq.capture.operator_rules import OPERATOR_RULES, computed, per_element
from tvmq.capture.program_nodes import operator_name
from tvmq.capture.rule_table import Arguments, RuleTable

aten = torch.ops.aten

rules = RuleTable()
rule = rules.rule
MASK_RULES = rules.by_name

HIDDEN = 32.0
"""A summand hides if it is lower by this than the largest of its row: e^-32 of a token is left."""

LOWEST = -128.0
"""Is added to the score of a hidden token."""

_PASSING = (
    *("view", "reshape", "_unsafe_view", "unflatten", "flatten", "unsqueeze", "squeeze"),
    *("clone", "contiguous", "dropout", "_to_copy", "to", "alias", "detach", "permute", "add"),
)


def masked(g: CanonicalGraph, name: str, scores: Node, mask: torch.Tensor) -> Node:
    """Scores plus a constant that is broadcast to them.

    Args:
        g: to write to.
        name: of the program's node.
        scores: (N, ...).
        mask: floats that are added, or booleans, where True is shown.
    """
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    hidden = _hidden(mask)
    none = torch.tensor(1.0, dtype=torch.float64)
    shown = mask.double().masked_fill(hidden, 0.0)
    if bool((shown < -HIDDEN).all(-1).any()):
        raise Refusal(
            "its mask hides all tokens from a row",
            "Leave one that each row sees, and drop the row's result behind the attention",
        )
    if bool(shown.any()):
        scores = per_element(g, f"{name}_positions", scores, none, shown)
    if bool(hidden.any()):
        lowest = torch.zeros_like(shown).masked_fill(hidden, LOWEST)
        scores = per_element(g, f"{name}_mask", scores, none, lowest)
    return scores


def _hidden(mask: torch.Tensor) -> torch.Tensor:
    """Which summands hide a token from a row, the last axis."""
    summands = mask.double()
    return summands < summands.amax(-1, keepdim=True) - HIDDEN


def causal(queries: int, keys: int) -> torch.Tensor:
    """bool[queries, keys]: which keys are not behind a query."""
    return torch.ones(queries, keys, dtype=torch.bool).tril()


@rule("add")
def _add(g: CanonicalGraph, node: Node, a: Arguments) -> Any:
    scores, mask = a["self"], a["other"]
    if is_constant(scores):
        scores, mask = mask, scores
    if is_constant(mask) and isinstance(scores, Node) and a["alpha"] == 1:
        value = g.value(mask)
        if value.ndim > 1 and bool(_hidden(value).any()) and _is_for_softmax(node):
            return masked(g, node.name, scores, value)
    return OPERATOR_RULES["add"](g, node, a)


@rule("masked_fill")
def _masked_fill(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    return _filled(g, node, a["self"], a["value"], a["mask"])


@rule("where")
def _where(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    shown, chosen, other = a["condition"], a["self"], a["other"]
    if not is_constant(shown):
        raise computed("its condition")
    if not _is_computed(other):
        return _filled(g, node, chosen, other, ~g.value(shown).bool())
    if not _is_computed(chosen):
        return _filled(g, node, other, chosen, g.value(shown).bool())
    mask = g.value(shown).double()
    none = torch.zeros((), dtype=torch.float64)
    first = per_element(g, f"{node.name}_chosen", chosen, mask, none)
    return g.call(
        aten.add.Tensor, first, per_element(g, f"{node.name}_other", other, 1 - mask, none)
    )


@rule("zeros_like", "ones_like", "full_like")
def _full_like(g: CanonicalGraph, node: Node, a: Arguments) -> Node:
    value = {"zeros_like": 0.0, "ones_like": 1.0}.get(operator_name(node.target))
    value = a["fill_value"] if value is None else value
    shape, dtype = (1, *shape_of(a["self"])[1:]), node.meta["val"].dtype
    return g.constant(node.name, torch.full(shape, value, dtype=dtype))


def _filled(g: CanonicalGraph, node: Node, x: Node, value: Any, mask: Any) -> Node:
    """A tensor with numbers filled in where a mask is True."""
    if not isinstance(mask, torch.Tensor):
        if not is_constant(mask):
            raise computed("its mask")
        mask = g.value(mask).bool()
    if _is_computed(value):
        raise computed("what it fills in")
    filled = torch.as_tensor(g.value(value) if isinstance(value, Node) else value).double()
    if filled.numel() == 1 and float(filled) <= -HIDDEN and _is_for_softmax(node):
        return masked(g, node.name, x, ~mask)
    if float(filled.abs().max()) > HIDDEN:
        raise Refusal(
            "fills in numbers that no softmax makes 0 of, and beside which others have no codes",
            f"Fill in -inf in front of a softmax, or numbers of at most {HIDDEN:.0f}",
        )
    shift = torch.where(mask, filled, 0.0)
    return per_element(g, node.name, x, (~mask).double(), shift)


def _is_computed(value: object) -> bool:
    return isinstance(value, Node) and not is_constant(value)


def _is_for_softmax(node: Node) -> bool:
    """Whether nothing but softmax reads a node of the program."""
    todo, seen = [node], set[Node]()
    while todo:
        for user in todo.pop().users:
            name = str(getattr(user.target, "_schema", user.target)).split("(")[0]
            name = name.removeprefix("aten::").split(".")[0]
            if name in ("softmax", "_softmax") or user in seen:
                continue
            if name not in _PASSING:
                return False
            seen.add(user)
            todo.append(user)
    return True
