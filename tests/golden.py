"""What every golden-IR test of a pass asks: Before becomes Expected, numbers stay, Before stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from annotated_networks import run_tvm
from tvm import IRModule, relax

from relay_passes.relax_nodes import Array

HALF = 0.5 + 2.0**-34
FLOOR = 2.0**-34
"""What a quantize that rounds half up, or to the floor, adds before it rounds down, once more."""


def check(transform: Any, before: IRModule, expected: IRModule, *inputs: Array) -> IRModule:
    """Run a pass and hold it to what it promises.

    Args:
        transform: class of the pass.
        before: the module it is given.
        expected: the module it must give, up to names.
        inputs: one array per parameter of ``main``; both modules must give the same numbers.

    Returns:
        The module that the pass gave.
    """
    text, copy = before.script(), tvm.ir.load_json(tvm.ir.save_json(before))
    after = transform()(before)
    tvm.ir.assert_structural_equal(after, expected)
    relax.analysis.well_formed(after)
    assert before.script() == text, "the pass edited the module that it was given"
    tvm.ir.assert_structural_equal(before, copy)  # the constants, too
    want, got = run_tvm(before, *inputs), run_tvm(after, *inputs)
    assert any(np.unique(array).size > 1 for array in want), "equal constants would prove nothing"
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(b, a)
        assert b.dtype == a.dtype
    return after


def unchanged(transform: Any, module: IRModule) -> None:
    """What the pass is not for stays as it is."""
    tvm.ir.assert_structural_equal(transform()(module), module)


def codes(dtype: str, *shape: int) -> Array:
    """Every code there is, in seeded order, with both ends first."""
    limits = np.iinfo(dtype)
    values = np.arange(limits.min, limits.max + 1)
    drawn = np.random.default_rng(0).choice(values, shape)
    drawn.reshape(-1)[:2] = limits.min, limits.max
    return drawn.astype(dtype)


def reals(*shape: int, step: float = 0.125) -> Array:
    """Float64 on and between the grid of ``step``, ties included, beyond every range of codes."""
    return np.random.default_rng(0).integers(-2400, 2400, shape) * (step / 8)
