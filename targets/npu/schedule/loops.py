"""Write loop nests in TIR: loops that may shrink at the border, blocks bound to the loops around.

A thin layer over TVM's IRBuilder. Extents such as ``min(h, OH - s * h)`` stay expressions: the
code generator walks the outer loops with numbers in hand, so that a border tile needs no code of
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from targets.npu.machine.spec import NpuSpec
from targets.npu.schedule.intrinsics import ACT
from targets.npu.schedule.storage import Stored

Expr = Any
"""A TIR expression or a Python int; TVM ships no types."""


class LoopNest:
    """The loops that are open at the moment, outermost first."""

    def __init__(self) -> None:
        self._open: list[tuple[Any, int]] = []

    @contextmanager
    def serial(self, extent: Expr, limit: int | None = None) -> Iterator[Any]:
        """Open a loop over [0, extent).

        Args:
            extent: int or expression of the loops around.
            limit: the largest value of ``extent``; needed where it is an expression.
        """
        with T.serial(0, extent) as var:
            self._open.append((var, int(extent) if limit is None else limit))
            yield var
            self._open.pop()

    @contextmanager
    def grid(self, *extents: Expr | tuple[Expr, int]) -> Iterator[list[Any]]:
        """Open several loops; an extent that is an expression comes as (expression, limit)."""
        with ExitStack() as stack:
            yield [
                stack.enter_context(self.serial(*e) if isinstance(e, tuple) else self.serial(e))
                for e in extents
            ]

    @contextmanager
    def steps(self, *extents: Expr | tuple[Expr, int]) -> Iterator[list[Any]]:
        """As ``grid``, but where there is one step there is no loop, and its index is 0.

        Blocks have an axis for each loop around them, and TVM takes time for each axis.
        """
        with ExitStack() as stack:
            yield [
                tirx.IntImm("int32", 0)
                if isinstance(extent, int) and extent == 1
                else stack.enter_context(self.serial(extent, limit))
                for extent, limit in (e if isinstance(e, tuple) else (e, None) for e in extents)
            ]

    def number(self, dtype: str) -> tirx.Buffer:
        """A number that the steps of the loops around it keep between blocks."""
        return T.sblock_alloc_buffer((1,), dtype)

    @contextmanager
    def block(self, name: str, *, reduce: tuple[Any, ...] = ()) -> Iterator[Callable[[Expr], Expr]]:
        """Open a block bound to all open loops; yields a function that puts its axes for loops."""
        with T.sblock(name):
            axes = {}
            for var, limit in self._open:
                kind = T.axis.reduce if any(var.same_as(r) for r in reduce) else T.axis.spatial
                axes[var] = kind((0, limit), var)
            yield lambda e: _rebind(e, axes)


def _rebind(expr: Expr, axes: dict[Any, Any]) -> Expr:
    """``expr`` with loops replaced by block axes."""
    if not isinstance(expr, tvm.ir.Expr):
        return expr
    return tvm_ffi.structural_map(expr, (tvm.ir.Var, lambda v: axes.get(v, v)), order="post")


def smaller(a: Expr, b: Expr) -> Expr:
    """The minimum, as a number where both are numbers."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return tirx.min(a, b)


@contextmanager
def prim_func(name: str) -> Iterator[IRBuilder]:
    """Open a schedulable function; ``get()`` of what it yields is the PrimFunc, after the block."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        yield builder


def buffer_argument(name: str, elements: int, dtype: str, scope: str = "global") -> tirx.Buffer:
    """Add a flat buffer to the function's parameters; it lies in DRAM, or in a memory."""
    return T.arg(name, T.Buffer((elements,), dtype, scope=scope))


def tensor_argument(name: str, tensor: Stored, spec: NpuSpec) -> tirx.Buffer:
    """Add a tensor to the function's parameters: in DRAM, or in ACT if it stays there."""
    if not tensor.near:
        return buffer_argument(name, tensor.elements, tensor.dtype)
    return buffer_argument(name, tensor.bordered_bytes + spec.array.overrun, tensor.dtype, ACT)


def scratchpad(name: str, elements: int, dtype: str, scope: str) -> tirx.Buffer:
    """Allocate a flat buffer in one of the machine's memories."""
    buffer = T.sblock_alloc_buffer((elements,), dtype, scope=scope)
    IRBuilder.name(name, buffer)
    return buffer


def root() -> Any:
    """The block that holds a function's body."""
    return T.sblock("root")


def store(buffer: tirx.Buffer, index: Expr, value: Expr) -> None:
    """``buffer[index] = value``."""
    T.buffer_store(buffer, value, [index])


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """Statements that run where ``condition`` holds."""
    if isinstance(condition, bool):
        assert condition, "a branch that is never taken should not be written"
        yield
        return
    with T.If(condition), T.Then():
        yield
