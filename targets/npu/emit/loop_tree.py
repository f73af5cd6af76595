"""Read lowered TIR into a small tree that is walked with numbers, and fold affine loops.

The code generator walks this tree with numbers in hand (``visits.py``). What it meets at the leaves
is one statement in a nest of loops: a copy, a fill, or a call of an intrinsic. ``Leaf.fold`` turns
the nest around it into extents and strides, which is what the hardware loops of an instruction are
made of.

    for i, j:                        Leaf("copy", loops=(i, j))
        act[8 * i + j] = x[100 * i + j]    fold: extents (n, m), strides (100, 8) and (1, 1)

A loop joins the leaf's nest if it is wrapped directly around it and each of its steps moves every
offset by the same number of elements. Others, such as those that alternate between two buffers
(``i % 2``) or change an inner extent, stay loops of the tree, and are counted out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tvm
from tvm import tirx

from targets.npu.emit.numbers import Numbers, Table, alike, of_visits
from targets.npu.schedule.intrinsics import read_fields

Env: TypeAlias = Mapping[str, Numbers]
"""Indices of loops."""


class Part(NamedTuple):
    """A summand that is no stride times an index: ``factor * value(env)``, and what it reads."""

    factor: int
    value: Callable[[Env], Numbers]
    reads: frozenset[str]


@dataclass(frozen=True)
class Number:
    """An integer expression of the loops: ``constant + sum(index * stride) + sum(parts)``.

    Attributes:
        constant: its value where all loops are at 0, but for ``parts``.
        strides: by loop, what a step of it adds.
        parts: summands of another form.
        reads: the loops it depends on.
        nonlinear: those it depends on in another way than by a stride.
        products: pairs of loops, each of which has a stride that the other one sets.
    """

    constant: int = 0
    strides: Mapping[str, int] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    reads: frozenset[str] = frozenset()
    nonlinear: frozenset[str] = frozenset()
    products: frozenset[tuple[str, str]] = frozenset()

    def at(self, env: Env) -> Numbers:
        """Its value at given loop indices."""
        value: Numbers = self.constant
        for name, stride in self.strides.items():
            value = value + env[name] * stride
        for part in self.parts:
            value = value + part.factor * part.value(env)
        return value

    def step(self, name: str, start: Env) -> Numbers:
        """What the first step of a loop adds; ``start`` has the loop at 0."""
        added: Numbers = self.strides.get(name, 0)
        for part in self.parts:
            if name in part.reads:
                moved = {**start, name: 1}
                added = added + part.factor * (part.value(moved) - part.value(start))
        return added

    def times(self, factor: int) -> Number:
        """The product with a constant."""
        return replace(
            self,
            constant=self.constant * factor,
            strides={name: stride * factor for name, stride in self.strides.items()},
            parts=tuple(p._replace(factor=p.factor * factor) for p in self.parts),
        )

    def plus(self, other: Number) -> Number:
        """The sum of two."""
        names = self.strides.keys() | other.strides.keys()
        return Number(
            self.constant + other.constant,
            {n: self.strides.get(n, 0) + other.strides.get(n, 0) for n in names},
            self.parts + other.parts,
            self.reads | other.reads,
            self.nonlinear | other.nonlinear,
            self.products | other.products,
        )


@dataclass(frozen=True)
class Offset:
    """An element offset into a buffer."""

    buffer: str
    value: Number


@dataclass(frozen=True)
class Folded:
    """A nest of loops in elements: ``offset[i] = bases[i] + sum(index[n] * strides[n][i])``.

    Bases are those of all visits that it has the same extents and strides in.
    """

    names: tuple[str, ...]
    extents: tuple[int, ...]
    bases: tuple[Numbers, ...]
    strides: tuple[tuple[int, ...], ...]


_Nest: TypeAlias = tuple[tuple[Numbers, ...], tuple[tuple[Numbers, ...], ...]]


@dataclass(frozen=True)
class Leaf:
    """One statement and the loops that nest perfectly around it, outermost first.

    Attributes:
        kind: "copy", "fill" or the intrinsic's name.
        offsets: source then target for a copy, target for a fill, pointers in order for an
            intrinsic.
        fields: of an intrinsic's call; see ``schedule.intrinsics``.
        fill: what a fill writes, and a copy where a bound fails.
        bounds: a copy's conditions.
        loops: (variable, extent).
    """

    kind: str
    offsets: tuple[Offset, ...]
    fields: Any = None
    fill: int = 0
    bounds: tuple[Number, ...] = ()
    loops: tuple[tuple[str, Number], ...] = ()

    def fold(self, env: Env, visits: int) -> Iterator[tuple[Table, Folded]]:
        """Evaluate the nest in so many visits, with the loops around it at ``env``.

        Yields:
            Visits that differ in bases alone, and the nest in these.
        """
        start = {**env, **dict.fromkeys(self._names, 0)}
        bases = [offset.value.at(start) for offset in self.offsets]
        extents, strides = self._steady or self._nest(start)
        numbers = [*extents, *(step for each in strides for step in each)]
        for which in alike(numbers, visits):
            one = which[:1]
            yield (
                which,
                Folded(
                    self._names,
                    tuple(of_visits(extent, one) for extent in extents),
                    tuple(of_visits(base, which) for base in bases),
                    tuple(tuple(of_visits(step, one) for step in each) for each in strides),
                ),
            )

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.loops)

    @cached_property
    def _steady(self) -> _Nest | None:
        """Extents and strides, if they are the same wherever the loops around are."""
        parts = [part for offset in self.offsets for part in offset.value.parts]
        if any(part.reads.intersection(self._names) for part in parts):
            return None
        return None if any(extent.reads for _, extent in self.loops) else self._nest({})

    def _nest(self, start: Env) -> _Nest:
        """Extents and strides; ``start`` has the loops at 0."""
        strides = tuple(
            tuple(offset.value.step(name, start) for offset in self.offsets) for name in self._names
        )
        return tuple(extent.at(start) for _, extent in self.loops), strides

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


Lowered: TypeAlias = tuple[Node, list[Allocation]]
"""A function as a tree, and the scratchpad buffers that it allocates."""


def read_function(func: tirx.PrimFunc) -> Lowered:
    """The tree of a lowered function, and the scratchpad buffers that it allocates."""
    reader = _Reader()
    for buffer in func.params:
        reader.name_buffer(buffer, buffer.name)
    return reader.node(func.body), reader.allocations


_BINARY: dict[type, Callable[[Numbers, Numbers], Numbers]] = {
    tirx.FloorDiv: operator.floordiv,
    tirx.FloorMod: operator.mod,
    tirx.Min: np.minimum,
    tirx.Max: np.maximum,
    tirx.LT: operator.lt,
    tirx.LE: operator.le,
    tirx.GT: operator.gt,
    tirx.GE: operator.ge,
    tirx.EQ: operator.eq,
    tirx.NE: operator.ne,
    tirx.And: np.logical_and,
    tirx.Or: np.logical_or,
}
"""Operators whose value is no sum of strides; the last two work on what a comparison returned."""


class _Reader:
    """Translates statements and expressions; remembers the names it gave to loops and buffers."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []
        self._loops: dict[Any, str] = {}
        self._buffers: dict[Any, str] = {}

    def name_buffer(self, buffer: Any, name: str) -> None:
        self._buffers[buffer] = name

    def node(self, stmt: Any) -> Node:
        match stmt:
            case tirx.SeqStmt():
                return self._sequence(stmt)
            case tirx.For():
                return self._loop(stmt)
            case tirx.IfThenElse():
                return Branch(self._number(stmt.condition), self.node(stmt.then_case))
            case tirx.BufferStore():
                return self._store(stmt)
            case tirx.Evaluate():
                return self._call(stmt.value)
        kind = type(stmt).__name__
        msg = f"the NPU's code generator met a {kind}, which its schedules never write"
        raise AssertionError(msg)

    def _sequence(self, sequence: Any) -> Node:
        nodes = []
        for stmt in sequence.seq:
            if isinstance(stmt, tirx.AllocBuffer):
                self._allocate(stmt.buffer)
            else:
                nodes.append(self.node(stmt))
        return nodes[0] if len(nodes) == 1 else Sequence(tuple(nodes))

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
        """A fill, or a copy; one that reads beyond its source's edge has its bounds in a call."""
        target = self._offset(stmt.buffer, stmt.indices[0])
        value, fill = stmt.value, 0
        bounds: tuple[Number, ...] = ()
        if isinstance(value, tirx.IntImm):
            return Leaf("fill", (target,), fill=int(value.value))
        if isinstance(value, tvm.ir.Call):  # tirx.if_then_else
            condition, value, other = value.args
            bounds = tuple(self._number(c) for c in _conjuncts(condition))
            fill = int(other.value)
        source = self._offset(value.source, value.indices[0])
        return Leaf("copy", (source, target), fill=fill, bounds=bounds)

    def _call(self, call: Any) -> Leaf:
        """An intrinsic: ``call_extern(name, access_ptr(...), ..., integers)``."""
        name, *arguments = call.args
        pointers = [a for a in arguments if isinstance(a, tvm.ir.Call)]
        offsets = tuple(
            Offset(self._buffers[p.args[1].args[0]], self._number(p.args[2])) for p in pointers
        )
        integers = [int(a.value) for a in arguments if isinstance(a, tirx.IntImm)]
        return Leaf(name.value, offsets, read_fields(name.value, integers))

    def _offset(self, buffer: Any, index: Any) -> Offset:
        return Offset(self._buffers[buffer], self._number(index))

    def _number(self, expr: Any) -> Number:
        match expr:
            case tirx.IntImm():
                return Number(int(expr.value))
            case tirx.Var():
                name = self._loops[expr]
                return Number(strides={name: 1}, reads=frozenset({name}))
            case tirx.Cast():
                return self._number(expr.value)
            case tirx.Not():
                return _opaque(np.logical_not, self._number(expr.a))
        left, right = self._number(expr.a), self._number(expr.b)
        match expr:
            case tirx.Add():
                return left.plus(right)
            case tirx.Sub():
                return left.plus(right.times(-1))
            case tirx.Mul():
                return _product(left, right)
        return _opaque(_BINARY[type(expr)], left, right)


def _product(left: Number, right: Number) -> Number:
    if not right.reads:
        return left.times(right.constant)
    if not left.reads:
        return right.times(left.constant)
    crossed = {(a, b) for a in left.reads for b in right.reads}
    both = left.reads | right.reads
    return Number(
        parts=(Part(1, lambda env: left.at(env) * right.at(env), both),),
        reads=both,
        nonlinear=left.nonlinear | right.nonlinear | (left.reads & right.reads),
        products=left.products | right.products | crossed | {(b, a) for a, b in crossed},
    )


def _opaque(function: Callable[..., Numbers], *numbers: Number) -> Number:
    """A function of numbers that no loop moves by strides."""
    reads = frozenset().union(*(n.reads for n in numbers))
    if not reads:
        return Number(int(function(*(n.constant for n in numbers))))
    products = frozenset().union(*(n.products for n in numbers))

    def value(env: Env) -> Numbers:
        return function(*[n.at(env) for n in numbers])

    part = Part(1, value, reads)
    return Number(parts=(part,), reads=reads, nonlinear=reads, products=products)


def _conjuncts(condition: Any) -> list[Any]:
    if isinstance(condition, tirx.And):
        return _conjuncts(condition.a) + _conjuncts(condition.b)
    return [condition]
