"""What is said of a network that can't go through a stage ends in what to do about it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"UnsupportedError", "ArithmeticRangeError", "GateError"}
ADVISED = re.compile(r"[.;] [A-Za-z`].*\.$", re.DOTALL)
"""A sentence of what and where, then one of what to do."""
HANDED_ON = {"error", "refusal", "reasons", "words", "last", "QUANTIZED_ALREADY", "listed(refused)"}
"""Placeholders whose own text ends in advice."""
BY_NUMBERS = {"targets/arithmetic.py", "targets/scale.py"}
"""Definitions of integers, which know no network; planner and lowering hand their errors on."""


def texts() -> Iterator[tuple[str, str]]:
    """(place, text) of every such error, with each placeholder as its source in braces."""
    for package in ("tvmq", "relay_passes", "targets"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in KINDS:
                    yield f"{name}:{node.lineno}", _text(node.args[0])


def _text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(_text, parts))
        case ast.BinOp(left=left, right=right):
            return _text(left) + _text(right)
        case ast.FormattedValue(value=value):
            return f"{{{ast.unparse(value)}}}"
    return f"{{{ast.unparse(node)}}}"


TEXTS = [(place, text) for place, text in texts() if place.split(":")[0] not in BY_NUMBERS]


@pytest.mark.parametrize(("place", "text"), TEXTS, ids=[place for place, _ in TEXTS])
def test_it_ends_in_advice(place, text):
    handed_on = set(re.findall(r"\{(.*?)\}", text)) & HANDED_ON
    assert handed_on or text in ("{msg}", "{str(QUANTIZED_ALREADY)}") or ADVISED.search(text), text


def test_the_texts_are_found():
    assert len(TEXTS) > 30
    assert not ADVISED.search("stack: it has five axes.")
