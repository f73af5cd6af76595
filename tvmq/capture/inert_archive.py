"""Refuse ExportedProgram archives that would run code while torch.export.load reads them.

torch unpickles some records of an archive freely (``use_pickle`` payloads, custom objects, example
inputs that its safe unpickler refuses) and hands shape expressions to sympify, which evaluates
them. A plain exported network has none of that, so all of it is refused here.
"""

from __future__ import annotations

import ast
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from targets.errors import InputError

_PLAIN_EXPRESSION = (
    ast.Expression, ast.Name, ast.Load, ast.Constant, ast.Call, ast.keyword, ast.BinOp, ast.UnaryOp,
    ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
# fmt: off
_FUNCTIONS = frozenset({
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "floor", "ceiling", "Abs",
    "Not", "And", "Or", "Equality", "Unequality", "LessThan", "StrictLessThan", "GreaterThan",
    "StrictGreaterThan", "Max", "Min", "Mod", "FloorDiv", "CleanDiv", "CeilDiv", "PythonMod",
    "ModularIndexing", "Where", "IntTrueDiv", "FloatTrueDiv", "FloatPow", "PowByNatural",
    "CeilToInt", "FloorToInt", "RoundToInt", "TruncToInt", "ToFloat", "Identity", "Eq", "Ne",
})
# fmt: on


def verify_archive_is_inert(path: Path, archive: zipfile.ZipFile) -> None:
    """Check that reading the archive runs no code of its own.

    Raises:
        InputError: names the record that would, and the flag that allows it.
    """
    names = archive.namelist()
    roots = {name.split("/")[0] for name in names if "/" in name}
    # torch's reader and zipfile may disagree about which of two equal names is the record.
    if len(set(names)) != len(names) or (len(roots) > 1 and "version" not in names):
        raise _refusal(path, "ambiguous record names", names[0])
    for name in names:
        if name.endswith(".json"):
            _verify_json(path, name, archive.read(name))
        elif name.endswith((".pt", ".pkl")):
            _verify_pickle(path, name, archive.read(name))


def _verify_json(path: Path, name: str, text: bytes) -> None:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is corrupt: record {name} is not JSON ({error})") from error
    for key, value in _entries(content):
        if key == "use_pickle" and value and name.endswith("_config.json"):
            raise _refusal(path, "a pickled payload", name)
        if key == "path_name" and str(value).startswith(("custom_obj", "opaque_obj")):
            raise _refusal(path, "a pickled object", name)
        if key == "expr_str" and not _is_plain_expression(str(value)):
            raise _refusal(path, f"the expression {str(value)[:60]!r}", name)


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    stack = [content]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield from item.items()
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _is_plain_expression(text: str) -> bool:
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    return all(_is_plain_node(node) for node in ast.walk(tree))


def _is_plain_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.isidentifier()  # Symbol('s0', integer=True)
    return isinstance(node, _PLAIN_EXPRESSION)


def _verify_pickle(path: Path, name: str, data: bytes) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:  # whatever the safe reader refuses, torch would unpickle freely
        raise _refusal(path, "Python objects", name) from error


def _refusal(path: Path, what: str, record: str) -> InputError:
    return InputError(
        f"{path} holds {what} in record {record}, which can run code when it is read; "
        "export the network again without them, or give --trust-pickle if you trust the file"
    )
