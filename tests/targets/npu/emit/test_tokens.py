"""Tokens: every interleaving that they allow respects every hazard; FIFOs never overflow."""

import time
from typing import NamedTuple

import numpy as np
import pytest

from targets.npu.emit.hazards import Needs, hazards
from targets.npu.emit.tokens import derive_tokens
from targets.npu.emit.touched_bytes import Span, TouchedBytes


class Footprint(NamedTuple):
    """An instruction of a unit, of which only the bytes are known that it touches."""

    unit: int
    reads: tuple[Span, ...]
    writes: tuple[Span, ...]


class Waits(NamedTuple):
    """Tokens of an instruction: masks of the units that it pops from and pushes to."""

    pop: int = 0
    push: int = 0


class EarlyPop(NamedTuple):
    """A NOP."""

    position: int
    unit: int
    source: int


Derived = tuple[list[Waits], list[EarlyPop]]


def derived(order: list[int], units: list[int], needs: Needs, depth: int) -> Derived:
    made = derive_tokens(np.array(order, np.int64), np.array(units, np.int64), needs, depth)
    waits = zip(made.pops.tolist(), made.pushes.tolist(), strict=True)
    return [Waits(*each) for each in waits], [EarlyPop(*each) for each in made.early.tolist()]


def tokens_of(program: list[Footprint], depth: int) -> Derived:
    needs = hazards(TouchedBytes.of([(step.reads, step.writes) for step in program]))
    return derived(list(range(len(program))), [step.unit for step in program], needs, depth)


def random_program(rng: np.random.Generator, length: int) -> list[Footprint]:
    def spans(count: int) -> tuple[Span, ...]:
        found = []
        for _ in range(count):
            begin = int(rng.integers(0, 60))
            found.append(Span(f"mem{rng.integers(0, 2)}", begin, begin + int(rng.integers(1, 20))))
        return tuple(found)

    return [
        Footprint(
            int(rng.integers(0, 4)), spans(int(rng.integers(0, 3))), spans(int(rng.integers(0, 2)))
        )
        for _ in range(length)
    ]


def clashes(program: list[Footprint]) -> list[tuple[int, int]]:
    def clash(a: Footprint, b: Footprint) -> bool:
        pairs = [(w, s) for w in a.writes for s in (*b.reads, *b.writes)]
        pairs += [(s, w) for s in a.reads for w in b.writes]
        return any(x.space == y.space and x.begin < y.end and y.begin < x.end for x, y in pairs)

    return [(i, j) for j in range(len(program)) for i in range(j) if clash(program[i], program[j])]


def units(mask: int) -> list[int]:
    return [unit for unit in range(4) if mask >> unit & 1]


def execute(program, waits, early, depth, rng) -> list[int]:
    """Run the queues in a random legal order; returns the order of completion."""
    queues: dict[int, list] = {u: [] for u in range(4)}
    pending = list(early)
    for index, step in enumerate(program):
        while pending and pending[0].position == index:
            pop = pending.pop(0)
            queues[pop.unit].append((None, Waits(pop=1 << pop.source)))
        queues[step.unit].append((index, waits[index]))
    tokens = {(a, b): 0 for a in range(4) for b in range(4)}
    order = []
    while any(queues.values()):
        ready = [
            u
            for u, q in queues.items()
            if q
            and all(tokens[v, u] for v in units(q[0][1].pop))
            and all(tokens[u, v] < depth for v in units(q[0][1].push))
        ]
        assert ready, "deadlock"
        unit = ready[int(rng.integers(0, len(ready)))]
        index, wait = queues[unit].pop(0)
        for v in units(wait.pop):
            tokens[v, unit] -= 1
        for v in units(wait.push):
            tokens[unit, v] += 1
        if index is not None:
            order.append(index)
    assert not any(tokens.values()), "tokens left"
    return order


@pytest.mark.parametrize("depth", [1, 2, 8])
@pytest.mark.parametrize("seed", range(20))
def test_every_interleaving_respects_hazards(seed: int, depth: int) -> None:
    rng = np.random.default_rng(seed)
    program = random_program(rng, 60)
    waits, early = tokens_of(program, depth)
    pairs = clashes(program)
    for _ in range(5):
        position = {index: n for n, index in enumerate(execute(program, waits, early, depth, rng))}
        assert all(position[i] < position[j] for i, j in pairs)


def test_a_missing_token_is_noticed() -> None:
    """Without the one token of a producer and a consumer some interleaving breaks the order."""
    program = [Footprint(0, (), (Span("mem0", 0, 8),)), Footprint(1, (Span("mem0", 4, 5),), ())]
    waits, early = tokens_of(program, 8)
    assert waits == [Waits(push=0b10), Waits(pop=0b1)]
    assert early == []
    orders = {
        tuple(execute(program, [Waits(), Waits()], [], 8, np.random.default_rng(s)))
        for s in range(9)
    }
    assert (1, 0) in orders


def test_waits_that_others_imply_are_left_out() -> None:
    a, b = Span("mem0", 0, 8), Span("mem1", 0, 8)
    program = [Footprint(0, (), (a,)), Footprint(1, (a,), (b,)), Footprint(2, (a, b), ())]
    waits, _ = tokens_of(program, 8)
    assert waits[2].pop == 0b10


def needs_of(*needs: list[int]) -> Needs:
    numbers = [each for some in needs for each in some]
    return Needs(np.array(numbers, np.int64), np.cumsum([len(some) for some in needs]))


def test_an_instruction_before_what_it_needs_is_refused() -> None:
    right = derived([1, 0], [0, 1], needs_of([1], []), 8)
    assert right == ([Waits(push=1), Waits(pop=2)], [])
    with pytest.raises(AssertionError, match="1 is issued before what it needs"):
        derived([1, 0], [0, 1], needs_of([], [0]), 8)


def test_a_full_fifo_is_emptied_early() -> None:
    """Ten loads before their ten readers: with one token per FIFO, NOPs take nine."""
    spans = [Span("mem0", n, n + 1) for n in range(10)]
    program = [Footprint(0, (), (s,)) for s in spans]
    program += [Footprint(1, (s,), (Span("mem1", n, n + 1),)) for n, s in enumerate(spans)]
    waits, early = tokens_of(program, 1)
    assert len(early) == 9
    assert [e.position for e in early] == sorted(e.position for e in early)
    execute(program, waits, early, 1, np.random.default_rng(0))


def test_nops_before_one_instruction_come_in_the_order_of_their_fifos() -> None:
    """The second load overflows both; that to unit 2, whose first token came first, is first."""
    spans = [Span("mem0", n, n + 1) for n in range(2)]
    program = [Footprint(0, (), (s,)) for s in spans]
    program += [Footprint(unit, (spans[n],), ()) for unit, n in ((2, 0), (1, 0), (1, 1), (2, 1))]
    _, early = tokens_of(program, 1)
    assert early == [(1, 2, 0), (1, 1, 0)]


def test_ten_times_the_program_takes_ten_times_the_time() -> None:
    """Loads of their own bytes, as the weights of a long chain are: no step looks at all others."""

    def seconds(loads: int) -> float:
        program = [
            Footprint(
                n % 3,
                (Span("dram0", 64 * n, 64 * n + 64),),
                (Span("mem0", 64 * (n % 512), 64 * (n % 512) + 64),),
            )
            for n in range(loads)
        ]
        begin = time.process_time()
        tokens_of(program, 8)
        return time.process_time() - begin

    short, long = (min(seconds(n) for _ in range(3)) for n in (500, 5000))
    assert long < 40 * short
