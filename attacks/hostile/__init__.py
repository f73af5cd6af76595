"""Grammars of hostile files, a module per kind of file, and the ways in which tvmq loads them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

CANARY = "canary"
"""A file in the working folder that code from a hostile file makes when it runs."""

PAYLOADS = (
    f"open('{CANARY}','w')",
    f"__import__('os').system('touch {CANARY}')",
    f"[open('{CANARY}','w') for _ in '1']",
    f"x=open('{CANARY}','w')):\n    pass\n#",
    f"self, x):\n    open('{CANARY}','w')\n    return x\ndef g(",
    f"a\n    open('{CANARY}','w')",
    f'x"] or open("{CANARY}","w")#',
    f"getattr(__builtins__,'open')('{CANARY}','w')",
    f"(lambda: open('{CANARY}','w'))()",
    "torch.os.system",
    "__class__.__init__.__globals__",
    "L['x'].size()[0] == 2 and " + f"open('{CANARY}','w')",
    "9**9**9**9",
    "\x1b[2J\x1b]0;owned\x07",
    "../../../../etc/passwd",
    "x" * 100_000,
    "ｏｐｅｎ",
    "\ud800",
    "",
    "0",
    "lambda",
)
"""Texts for every place that holds a text."""

ODD_VALUES = (
    None, True, -1, 0, 2**31, 2**63, -(2**63), 10**400, 1e308, 0.5, "NaN", "", "1", [], {}, [[]],
    [None], {"": 0}, {"as_int": 1}, [1] * 10_000, float("nan"), float("inf"),
)  # fmt: skip
"""Values for every place that holds anything."""


class Hostile(NamedTuple):
    """A kind of hostile file.

    Attributes:
        name: what is wrong with it.
        way: how it is loaded, a key of ``ways.make_loads``.
        make: writes one into a file, from the honest ones in a folder.
        varied: each is another one, so that trying many is worth it.
    """

    name: str
    way: str
    make: Callable[[random.Random, Path, Path], None]
    varied: bool = False


def nested(opening: str, closing: str, depth: int, core: str = "") -> str:
    """Brackets within brackets."""
    return opening * depth + core + closing * depth
