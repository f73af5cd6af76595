"""All visits of a tree at once: in the same order, and to the same instructions, as one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from npu_layers import LAYERS

from targets.npu.emit.call_nest import Axis, Call
from targets.npu.emit.compute import emit_call
from targets.npu.emit.dma import emit_copy, emit_fill
from targets.npu.emit.emitted import ACT, Emission, Emitted, Place, Rolling, Rows
from targets.npu.emit.loop_tree import Branch, Leaf, Loop, Node, Number, Sequence
from targets.npu.emit.rolling import RolledCall, rolled
from targets.npu.emit.touched_bytes import Span, TouchedBytes
from targets.npu.emit.visits import Visits, visits
from targets.npu.kinds.table import plan
from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.npu.schedule.job import Job

E256 = load_spec("e256")
Visit = tuple[Leaf, dict[str, int]]


def one_by_one(node: Node, env: dict[str, int]) -> Iterator[Visit]:
    if isinstance(node, Leaf):
        yield node, env
    elif isinstance(node, Sequence):
        for child in node.nodes:
            yield from one_by_one(child, env)
    elif isinstance(node, Branch):
        if node.condition.at(env):
            yield from one_by_one(node.body, env)
    else:
        for n in range(node.extent.at(env)):
            yield from one_by_one(node.body, {**env, node.var: n})


def in_order(tree: Node) -> list[Visit]:
    found: dict[int, Visit] = {}
    for each in visits(tree):
        assert (np.diff(each.turns) > 0).all()
        for n, turn in enumerate(each.turns.tolist()):
            assert turn not in found
            found[turn] = each.leaf, {name: int(at[n]) for name, at in each.env.items()}
    return [found[turn] for turn in sorted(found)]


def index(name: str, stride: int = 1, constant: int = 0) -> Number:
    return Number(constant, {name: stride}, reads=frozenset({name}))


def test_loops_that_shrink_and_branches() -> None:
    """The last step of the outer loop has an inner one that ends before it begins."""
    a, b, c = (Leaf(name, ()) for name in "abc")
    inner = Loop("j", index("i", -1, 2), Sequence((b, Branch(index("j"), c))))
    tree = Sequence((a, Loop("i", Number(4), Sequence((inner, a))), b))
    assert "".join(leaf.kind for leaf, _ in in_order(tree)) == "a" + "bbca" + "ba" + "a" + "a" + "b"
    assert in_order(tree) == [*one_by_one(tree, {})]


@pytest.mark.parametrize("name", LAYERS)
def test_visits_of_layers(name: str) -> None:
    tree, _ = plan(Job.alone(LAYERS[name], E256)).lowered
    assert in_order(tree) == [*one_by_one(tree, {})]


def made(each: Visits, places: dict[str, Place]) -> dict[int, list[object]]:
    """By visit, instructions and what they touch."""
    kinds = {"copy": emit_copy, "fill": emit_fill}
    if each.leaf.kind in kinds:
        found = kinds[each.leaf.kind](each, places)
    else:
        found = emit_call(each, places, E256, initialise=True)
    return {
        int(visit): [content(emitted, place) for emitted in several]
        for which, several in found
        for place, visit in enumerate(which)
    }


def content(emitted: Emitted, place: int) -> tuple[object, ...]:
    one = Emission([emitted], np.array([[0, 0, place]]))
    touched = TouchedBytes.of([(emitted.reads, emitted.writes)], one.order[:, 1:])
    spans = [each.tolist() for each in touched]
    return emitted.at(place), spans, one.takes, one.makes


@pytest.mark.parametrize("name", LAYERS)
def test_a_visit_gives_the_same_beside_others(name: str) -> None:
    planned = plan(Job.alone(LAYERS[name], E256))
    tree, allocations = planned.lowered
    memories = {"global.act": 0, "global.wgt": 1, "global.acc": 2, "global.par": 3}
    sizes = {"int32": 4}
    places = {
        a.name: Place(memories[a.scope], 0, sizes.get(a.dtype, 1), dram=False) for a in allocations
    }
    for buffer in planned.scheduled.func.params:
        places[buffer.name] = Place(0, 0, sizes.get(str(buffer.dtype), 1), dram=True)
    for each in visits(tree):
        together = made(each, places)
        for n in range(0, len(each), 1 + len(each) // 16):
            alone = made(each.part(np.array([n])), places)
            assert together.get(n) == alone.get(0)


@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_rows_that_roll_are_cut_alike_beside_others(overlap: int) -> None:
    """Windows of the tensor before are taken, rows of the one behind are made."""
    source = Place(ACT, 64, 1, dram=False, rolling=Rolling(8, 6, 2))
    target = Place(ACT, 1024, 1, dram=False, rolling=Rolling(4, 5, overlap))
    rows = np.arange(20)
    axes = (Axis(3, (16, 4)), Axis(4, (1, 1)))

    def cut(which: np.ndarray) -> Iterator[tuple[int, list[tuple[object, ...]]]]:
        starts = 64 + 16 * which, 1024 + 4 * which
        call = Call(starts, axes, None, initialise=False)
        for group, calls in rolled(call, (source, target), (1, 1), len(which)):
            for place, visit in enumerate(group):
                yield int(which[visit]), [at(each, place) for each in calls]

    def at(each: RolledCall, place: int) -> tuple[object, ...]:
        numbers = (*each.call.starts, *(each.takes or ()), *(each.makes or ()))
        return each.call.axes, [int(n[place]) if np.ndim(n) else n for n in numbers]

    together = dict(cut(rows))
    assert together == {int(row): dict(cut(np.array([row])))[row] for row in rows}
    assert len(together[4]) > 1  # rows 4, 5 and 6 are beyond the end of a period


def test_bytes_of_several_in_any_order() -> None:
    several = (Span("mem0", np.array([0, 8, 16]), np.array([4, 12, 20])),), ()
    one = (Span("mem1", 0, 4),), (Span("mem0", 64, 68),)
    order = np.array([[0, 1], [1, 0], [0, 0], [0, 1]])
    touched = TouchedBytes.of([several, one], order)
    assert touched.spans.tolist() == [[0, 8, 12], [1, 0, 4], [0, 64, 68], [0, 0, 4], [0, 8, 12]]
    assert touched.ends.tolist() == [[1, 1], [2, 3], [4, 4], [5, 5]]


def test_rows_of_several_and_of_none() -> None:
    several = Emitted(isa.Lut(), (), (), makes=Rows(np.array([0, 2]), np.array([2, 4])))
    alike = Emitted(isa.Lut(), (), (), makes=Rows(5, 6))
    neither = Emitted(isa.Lut(), (), ())
    order = np.array([[0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 2, 0]])
    emission = Emission([several, alike, neither], order)
    assert emission.makes == [(2, 4), (5, 6), (5, 6), None]
    assert emission.takes == [None] * 4
