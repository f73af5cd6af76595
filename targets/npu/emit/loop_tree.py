"""Read lowered TIR into a small tree whose expressions are Python functions, and fold affine loops.

The code generator walks this tree with numbers in hand. What it meets at the leaves is one
statement in a nest of
loops: a copy, a fill, or a call of an intrinsic. ``Leaf.fold`` turns the nest around it into
extents and strides,
which is what the hardware loops of an instruction are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from tvm import tirx

Env: TypeAlias = dict[str, int]


@dataclass(frozen=True)
class Number:
    """An integer expression of the loops.

    Attributes:
        at: its value at given loop indices.
        reads: the loops it depends on.
        nonlinear: those it depends on in another way than by a stride.
        products: pairs of loops, each of which has a stride that the other one sets.
    """

    at: Callable[[Env], int]
    reads: frozenset[str]
    nonlinear: frozenset[str]
    products: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Offset:
    """An element offset into a buffer."""

    buffer: str
    value: Number


@dataclass(frozen=True)
class Folded:
    """A nest of loops in elements: ``offset[i] = bases[i] + sum(index[n] * strides[n][i])``."""

    names: tuple[str, ...]
    extents: tuple[int, ...]
    bases: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Leaf:
    """One statement and the loops that nest perfectly around it, outermost first.

    Attributes:
        kind: "copy", "fill" or the intrinsic's name.
        offsets: source then target for a copy, target for a fill, pointers in order for an
            intrinsic.
        immediates: the fill value, or the intrinsic's integers.
        bounds: a copy's conditions; where one fails the target gets ``immediates[0]``.
        loops: (variable, extent).
    """

    kind: str
    offsets: tuple[Offset, ...]
    immediates: tuple[int, ...]
    bounds: tuple[Number, ...] = ()
    loops: tuple[tuple[str, Number], ...] = ()

    def fold(self, env: Env) -> Folded:
        """Evaluate the nest with the loops around it at ``env``."""
        names = tuple(name for name, _ in self.loops)
        zero = {**env, **dict.fromkeys(names, 0)}
        bases = tuple(offset.value.at(zero) for offset in self.offsets)
        strides = tuple(
            tuple(
                offset.value.at({**zero, name: 1}) - base
                for offset, base in zip(self.offsets, bases, strict=True)
            )
            for name in names
        )
        return Folded(names, tuple(extent.at(env) for _, extent in self.loops), bases, strides)

    def can_fold(self, name: str) -> bool:
        """Whether a loop moves every offset by a constant and changes no extent."""
        pairs = {(name, inner) for inner, _ in self.loops}
        return all(
            name not in offset.value.nonlinear and not pairs & offset.value.products
            for offset in self.offsets
        ) and all(name not in extent.reads for _, extent in self.loops)


@dataclass(frozen=True)
class Loop:
    """Statements repeated for ``var`` in [0, extent)."""

    var: str
    extent: Number
    body: Node


@dataclass(frozen=True)
class Branch:
    """Statements under a condition."""

    condition: Number
    body: Node


@dataclass(frozen=True)
class Sequence:
    """Statements in order."""

    nodes: tuple[Node, ...]


Node: TypeAlias = Loop | Branch | Sequence | Leaf


@dataclass(frozen=True)
class Allocation:
    """A scratchpad buffer: elements of a dtype in a storage scope."""

    name: str
    elements: int
    dtype: str
    scope: str


def read_function(func: tirx.PrimFunc) -> tuple[Node, list[Allocation]]:
    """The tree of a lowered function, and the scratchpad buffers that it allocates."""
    reader = _Reader()
    for buffer in func.params:
        reader.name_buffer(buffer, buffer.name)
    return reader.node(func.body), reader.allocations


_OPERATORS = {
    "Add": "+",
    "Sub": "-",
    "Mul": "*",
    "FloorDiv": "//",
    "FloorMod": "%",
    "LT": "<",
    "LE": "<=",
    "GT": ">",
    "GE": ">=",
    "EQ": "==",
    "NE": "!=",
    "And": "and",
    "Or": "or",
}
_LINEAR = {"Add", "Sub"}


class _Reader:
    """Translates statements and expressions; remembers the names it gave to loops and buffers."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []
        self._loops: dict[Any, str] = {}
        self._buffers: dict[Any, str] = {}

    def name_buffer(self, buffer: Any, name: str) -> None:
        self._buffers[buffer] = name

    def node(self, stmt: Any) -> Node:
        kind = type(stmt).__name__
        if kind == "SeqStmt":
            for child in stmt.seq:
                if type(child).__name__ == "AllocBuffer":
                    self._allocate(child.buffer)
            nodes = [self.node(s) for s in stmt.seq if type(s).__name__ != "AllocBuffer"]
            return nodes[0] if len(nodes) == 1 else Sequence(tuple(nodes))
        if kind == "For":
            return self._loop(stmt)
        if kind == "IfThenElse":
            return Branch(self._number(stmt.condition), self.node(stmt.then_case))
        if kind == "BufferStore":
            return self._store(stmt)
        if kind == "Evaluate":
            return self._call(stmt.value)
        msg = f"the NPU's code generator met a {kind}, which its schedules never write"
        raise AssertionError(msg)

    def _allocate(self, buffer: Any) -> None:
        name = f"{buffer.name}.{len(self.allocations)}"
        self.name_buffer(buffer, name)
        elements = int(buffer.shape[0])
        self.allocations.append(Allocation(name, elements, str(buffer.dtype), buffer.scope()))

    def _loop(self, stmt: Any) -> Node:
        name = f"i{len(self._loops)}"
        self._loops[stmt.loop_var] = name
        extent, body = self._number(stmt.extent), self.node(stmt.body)
        if isinstance(body, Leaf) and body.can_fold(name):
            return replace(body, loops=((name, extent), *body.loops))
        return Loop(name, extent, body)

    def _store(self, stmt: Any) -> Leaf:
        target = self._offset(stmt.buffer, stmt.indices[0])
        value = stmt.value
        bounds: tuple[Number, ...] = ()
        border: tuple[int, ...] = ()
        if type(value).__name__ == "Call" and value.op.name.endswith("if_then_else"):
            condition, value, other = value.args
            bounds = tuple(self._number(c) for c in _conjuncts(condition))
            border = (int(other.value),)
        if type(value).__name__ == "IntImm":
            return Leaf("fill", (target,), (int(value.value),))
        return Leaf("copy", (self._offset(value.source, value.indices[0]), target), border, bounds)

    def _call(self, call: Any) -> Leaf:
        name, *arguments = call.args
        pointers = [a for a in arguments if type(a).__name__ == "Call"]
        offsets = tuple(
            Offset(self._buffers[p.args[1].args[0]], self._number(p.args[2])) for p in pointers
        )
        immediates = tuple(int(a.value) for a in arguments if type(a).__name__ == "IntImm")
        return Leaf(name.value, offsets, immediates)

    def _offset(self, buffer: Any, index: Any) -> Offset:
        return Offset(self._buffers[buffer], self._number(index))

    def _number(self, expr: Any) -> Number:
        source, reads, nonlinear, products = self._translate(expr)
        at = eval(f"lambda v: {source}", {"min": min, "max": max})
        return Number(at, frozenset(reads), frozenset(nonlinear), frozenset(products))

    def _translate(self, expr: Any) -> tuple[str, set[str], set[str], set[tuple[str, str]]]:
        """Python source, loops read, loops read nonlinearly, and pairs (both ways) of products."""
        kind = type(expr).__name__
        if kind == "IntImm":
            return str(int(expr.value)), set(), set(), set()
        if kind == "Var":
            name = self._loops[expr]
            return f"v[{name!r}]", {name}, set(), set()
        if kind == "Cast":
            return self._translate(expr.value)
        if kind == "Not":
            source, reads, _, _ = self._translate(expr.a)
            return f"not ({source})", reads, reads, set()
        left, reads_a, nonlinear_a, products_a = self._translate(expr.a)
        right, reads_b, nonlinear_b, products_b = self._translate(expr.b)
        reads = reads_a | reads_b
        nonlinear, products = nonlinear_a | nonlinear_b, products_a | products_b
        if kind == "Mul":
            nonlinear |= reads_a & reads_b
            crossed = {(a, b) for a in reads_a for b in reads_b}
            products |= crossed | {(b, a) for a, b in crossed}
        elif kind not in _LINEAR:
            nonlinear = reads
        if kind in ("Min", "Max"):
            return f"{kind.lower()}({left}, {right})", reads, nonlinear, products
        return f"({left} {_OPERATORS[kind]} {right})", reads, nonlinear, products


def _conjuncts(condition: Any) -> list[Any]:
    if type(condition).__name__ == "And":
        return _conjuncts(condition.a) + _conjuncts(condition.b)
    return [condition]
