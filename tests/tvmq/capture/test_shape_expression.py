"""Expressions of sizes: those of networks, and those that would run, grow or never end."""

import pytest

from tvmq.capture.shape_expression import check_expression


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(3), Symbol('s0', positive=True, integer=True))",
        "Add(Integer(-1), Symbol('s0', integer=True))",
        "Min(Integer(8), Mul(Integer(8), Symbol('s77', positive=True, integer=True)))",
        "Pow(Symbol('s0', integer=True), Integer(2))",
        "Rational(1, 2)",
        "Float('1.5', precision=53)",
        "FloorDiv(Symbol('s0', integer=True), Integer(2))",
        "Eq(Mod(Symbol('s0', integer=True), Integer(2)), Integer(0))",
        "And(Ge, true)".replace("Ge", "LessThan(s0, 3)"),
        "2*s0",
        "s0*s1 + 1",
        "(s0//2)",
        "s0**2",
        "-s0 >= 3",
        "64*u0",
    ],
)
def test_sizes_of_networks(text):
    assert check_expression(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "open('x', 'w')",
        "__import__('os').system('true')",
        "().__class__",
        "(lambda: 1)()",
        "[s0 for s0 in 'ab']",
        "f'{s0}'",
        "s0 if s0 else 1",
        "(s0 := 1)",
        "Symbol(open('x'))",
        "Symbol('s0', integer=open('x'))",
        "Symbol('s0', commutative=False)",
        "Symbol('s0.__class__')",
        "Add(*[1])",
        "Add(**{})",
        "Integer('1')",
        "Integer(Integer(1))",
        "Function('f')(s0)",
        "S.One",
        "N",
        "open",
        "9**9**9**9",
        "10**100",
        "s0**9",
        "s0**s1",
        "s0**2**8",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "factorial(9)",
        "9!",
        "1 << 99",
        str(2**64),
        "Integer(" + "9" * 5_000 + ")",
        "*".join(f"(a{i} + b{i})" for i in range(30)),
        "*".join(f"a{i}" for i in range(30)),
        "Max(" + ",".join(f"a{i}" for i in range(30)) + ")",
        "(" * 300 + "s0" + ")" * 300,
        "-" * 300 + "s0",
        "+".join(["s0"] * 2_000),
        "1e999",
        "s0\x00",
        "ｓ0",
        "",
    ],
)
def test_anything_else(text):
    with pytest.raises(ValueError, match="no expression of sizes that a network has"):
        check_expression(text)
