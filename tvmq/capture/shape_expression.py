"""The grammar of shape expressions: what may be handed to sympy, which evaluates what it is given.

An exported program writes a symbolic size as text, such as ``Mul(Integer(2), Symbol('s0',
integer=True))`` or ``2*s0``, and torch evaluates the text as Python. Sizes of networks are sums and
products of a few symbols; only those get through, and only small ones, because sympy expands them.
"""

from __future__ import annotations

import ast
import math
import re
from typing import NamedTuple

LONGEST = 2_000
"""Characters of an expression."""

_DEEPEST, _LARGEST = 24, 2**63
_MOST_TERMS, _MOST_ARGUMENTS, _HIGHEST_DEGREE, _HIGHEST_POWER = 64, 8, 16, 8

# fmt: off
_FUNCTIONS = frozenset({
    "Add", "Mul", "floor", "ceiling", "Abs", "Max", "Min", "Mod", "FloorDiv", "CleanDiv", "CeilDiv",
    "PythonMod", "ModularIndexing", "Where", "IntTrueDiv", "FloatTrueDiv", "CeilToInt",
    "FloorToInt", "RoundToInt", "TruncToInt", "ToFloat", "Identity",
    "Not", "And", "Or", "Eq", "Ne", "Equality", "Unequality", "LessThan", "StrictLessThan",
    "GreaterThan", "StrictGreaterThan",
})
_ASSUMPTIONS = frozenset({
    "integer", "positive", "nonnegative", "negative", "nonpositive", "nonzero", "real", "finite",
})
# fmt: on
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow"})
_SYMBOL = re.compile(r"[a-z]{1,3}\d{1,6}|true|false")
_SYMBOL_NAME = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
_FLOAT = re.compile(r"-?\d{1,40}(\.\d{1,40})?(e[+-]?\d{1,3})?")
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)


class _Size(NamedTuple):
    """What an expression is at most when multiplied out."""

    terms: int
    degree: int


def check_expression(text: str) -> str:
    """The text again, if it is an expression of sizes.

    Raises:
        ValueError: says what is in it that doesn't belong there.
    """
    try:
        tree = ast.parse(text[: LONGEST + 1], mode="eval")
        if len(text) > LONGEST or not text.isascii():  # Python and sympy read others differently
            raise ValueError
        _size_of(tree.body, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            f"{text[:60]!r} is no expression of sizes that a network has"
        ) from None  # a parser's own words are of no use here
    return text


def _size_of(node: ast.expr, depth: int) -> _Size:
    if depth > _DEEPEST:
        raise ValueError
    match node:
        case ast.Constant(value=bool()):
            size = _Size(1, 0)
        case ast.Constant(value=int() | float() as number) if abs(number) < _LARGEST:
            size = _Size(1, 0)
        case ast.Name(id=name) if _SYMBOL.fullmatch(name):
            size = _Size(1, 1)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            size = _size_of(operand, depth + 1)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            size = _power(_size_of(left, depth + 1), right)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            parts = [_size_of(left, depth + 1), _size_of(right, depth + 1)]
            size = _combined(isinstance(op, ast.Add | ast.Sub), parts)
        case ast.Compare(left=left, comparators=[right]):
            size = _combined(True, [_size_of(left, depth + 1), _size_of(right, depth + 1)])
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            size = _size_of_call(name, args, keywords, depth)
        case _:
            raise ValueError
    if size.terms > _MOST_TERMS or size.degree > _HIGHEST_DEGREE:
        raise ValueError
    return size


def _size_of_call(
    name: str, args: list[ast.expr], keywords: list[ast.keyword], depth: int
) -> _Size:
    match name, args:
        case "Symbol", [ast.Constant(value=str() as symbol)] if _SYMBOL_NAME.fullmatch(symbol):
            for keyword in keywords:
                if keyword.arg not in _ASSUMPTIONS or not _is_number(keyword.value, bool):
                    raise ValueError
            return _Size(1, 1)
        case "Float", [ast.Constant(value=str() as number)] if _FLOAT.fullmatch(number):
            for keyword in keywords:
                if keyword.arg != "precision" or not _is_number(keyword.value, int, 1_000):
                    raise ValueError
            return _Size(1, 0)
    if keywords or len(args) > _MOST_ARGUMENTS:
        raise ValueError
    match name, args:
        case (("Integer" | "Rational"), _) if all(_is_number(arg, int) for arg in args):
            return _Size(1, 0)
        case _, [base, exponent] if name in _POWERS:
            return _power(_size_of(base, depth + 1), exponent)
        case _ if name in _FUNCTIONS:
            return _combined(name != "Mul", [_size_of(arg, depth + 1) for arg in args])
    raise ValueError


def _combined(added: bool, parts: list[_Size]) -> _Size:
    terms, degrees = [part.terms for part in parts], [part.degree for part in parts]
    if added:
        return _Size(sum(terms), max(degrees, default=0))
    return _Size(math.prod(terms), sum(degrees))


def _power(base: _Size, exponent: ast.expr) -> _Size:
    """A power, whose exponent is a small number."""
    match exponent:
        case ast.Call(func=ast.Name(id="Integer"), args=[number], keywords=[]):
            pass
        case number:
            pass
    if not _is_number(number, int, _HIGHEST_POWER):
        raise ValueError
    power = abs(ast.literal_eval(number))
    return _Size(base.terms**power, base.degree * power)


def _is_number(node: ast.expr, kind: type, largest: int = _LARGEST) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    if not isinstance(node, ast.Constant) or type(node.value) is not kind:
        return False
    return isinstance(node.value, int | float) and abs(node.value) <= largest
