"""The order of issue: every hazard is kept, layers overlap, and nothing changes without a gain."""

import numpy as np
import pytest

from targets.npu.choices import FREE, ORDERS, WRITTEN
from targets.npu.emit.emitted import Emission, Emitted
from targets.npu.emit.hazards import hazards
from targets.npu.emit.touched_bytes import Span, TouchedBytes
from targets.npu.issue_order import IssueClock
from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.npu.written import Written

SPEC = load_spec("e256")


def random_program(rng: np.random.Generator, length: int) -> list[Emitted]:
    """Instructions of all units on a few bytes, some long and some short."""

    def spans(count: int) -> tuple[Span, ...]:
        begins = rng.integers(0, 200, count)
        spaces = rng.integers(0, 2, count)
        return tuple(
            Span(f"mem{space}", int(at), int(at + rng.integers(1, 12)))
            for space, at in zip(spaces, begins, strict=True)
        )

    def instruction() -> isa.Instruction:
        size = int(rng.integers(1, 900))
        kinds = (
            isa.Load(x_bytes=size),
            isa.Gemm(m0=size),
            isa.Lut(len=size),
            isa.Store(x_bytes=size),
        )
        return kinds[rng.integers(0, 4)]

    return [
        Emitted(instruction(), spans(int(rng.integers(0, 3))), spans(int(rng.integers(0, 2))))
        for _ in range(length)
    ]


def clock_of(program: list[Emitted], owners: list[int]) -> IssueClock:
    return IssueClock(Written.of(Emission.of(program, owners), SPEC), SPEC)


def in_layers(count: int, layers: int) -> list[int]:
    """The owners of some instructions, in layers of as many each."""
    return [n * layers // count for n in range(count)]


def clash(a: Emitted, b: Emitted) -> bool:
    pairs = [(w, s) for w in a.writes for s in (*b.reads, *b.writes)]
    pairs += [(s, w) for s in a.reads for w in b.writes]
    return any(x.space == y.space and x.begin < y.end and y.begin < x.end for x, y in pairs)


@pytest.mark.parametrize("seed", range(12))
def test_what_touches_the_same_bytes_keeps_its_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    program = random_program(rng, 80)
    clock = clock_of(program, in_layers(80, 5))
    orders = [clock.order(name).tolist() for name in ORDERS]
    led = clock.with_leads(clock.order(ORDERS[-1]), rng.integers(-40, 40, 80)).tolist()
    assert led != orders[-1]
    for found in (*orders, led):
        assert sorted(found) == list(range(80))
        place = {index: n for n, index in enumerate(found)}
        for later in range(80):
            for earlier in range(later):
                if clash(program[earlier], program[later]):
                    assert place[earlier] < place[later]


def test_random_programs_are_reordered() -> None:
    """Or the test above would hold of the identity."""
    programs = [random_program(np.random.default_rng(seed), 80) for seed in range(12)]
    clocks = [clock_of(program, in_layers(80, 5)) for program in programs]
    for name in ORDERS[1:]:
        assert sum(clock.order(name).tolist() != list(range(80)) for clock in clocks) >= 6


def act(begin: int, end: int) -> Span:
    return Span("mem0", begin, end)


def acc(begin: int, end: int) -> Span:
    return Span("mem2", begin, end)


def two_layers() -> list[Emitted]:
    """Four GEMMs and their REQs, then a table on what each has made."""
    written = []
    for n in range(4):
        sums, codes = acc(n * 64, n * 64 + 64), act(n * 64, n * 64 + 64)
        written.append(Emitted(isa.Gemm(m0=1000), (), (sums,)))
        written.append(Emitted(isa.Requantize(m0=100, nvalid=16), (sums,), (codes,)))
    for n in range(4):
        codes, made = act(n * 64, n * 64 + 64), act(512 + n * 64, 576 + n * 64)
        written.append(Emitted(isa.Lut(len=2000), (codes,), (made,)))
    return written


def test_a_layer_begins_before_the_one_before_it_ends() -> None:
    order = clock_of(two_layers(), [0] * 8 + [1] * 4).order(FREE)
    names = [two_layers()[n].instruction.mnemonic for n in order]
    vector = [name for name in names if name in ("REQ", "LUT")]
    assert vector == ["REQ", "LUT"] * 4


def test_an_order_that_gains_nothing_is_left_as_written() -> None:
    alone = [each for each in two_layers() if not isinstance(each.instruction, isa.Lut)]
    (name, order), *_ = clock_of(alone, [0] * 8).fastest()
    assert (name, order.tolist()) == (WRITTEN, list(range(8)))
    ((name, order),) = clock_of([], []).fastest()
    assert (name, order.tolist()) == (WRITTEN, [])


def three_layers() -> list[Emitted]:
    """Two loads of one byte's place and what reads it; then a long load for each of two layers."""
    small, sums = act(0, 8), acc(0, 8)
    written = []
    for _ in range(2):
        written.append(Emitted(isa.Load(x_bytes=8), (), (small,)))
        written.append(Emitted(isa.Gemm(m0=200), (small,), (sums,)))
    for n in (1, 2):
        there = act(64 * n, 64 * n + 8)
        written.append(Emitted(isa.Load(x_bytes=20_000), (), (there,)))
        written.append(Emitted(isa.Gemm(m0=100), (there,), (sums,)))
    return written


def test_loads_begin_so_many_layers_ahead() -> None:
    """The second one waits for the first GEMM, and long ones behind it may take its bus or not."""
    clock = clock_of(three_layers(), [0] * 4 + [1] * 2 + [2] * 2)
    loads = {name: [n for n in clock.order(name) if n in (0, 2, 4, 6)] for name in ORDERS}
    assert loads[WRITTEN] == loads["loads-0"] == loads["loads-1"] == [0, 2, 4, 6]
    assert loads["loads-2"] == [0, 4, 2, 6]
    assert loads["loads-3"] == loads[FREE] == [0, 4, 6, 2]


def test_the_fastest_order_by_the_clock_comes_first() -> None:
    program, owners = three_layers(), [0] * 4 + [1] * 2 + [2] * 2
    clock = clock_of(program, owners)
    found = clock.fastest()
    cycles = [clock.clocked(name).cycles for name, _ in found]
    assert cycles == sorted(cycles)
    assert cycles[0] == min(clock.clocked(name).cycles for name in ORDERS) < cycles[-1]
    assert len({tuple(order) for _, order in found}) == len(found) == 4
    by_name = dict(found)
    assert all(np.array_equal(by_name[name], clock.order(name)) for name in by_name)
    both = [clock.clocked(name).cycles for name in (WRITTEN, FREE)]
    assert clock.least() == min(both)


def test_a_writer_follows_all_readers_of_what_it_overwrites() -> None:
    """Readers of one unit no longer keep their order, so that the last one is not enough."""
    read = [Emitted(isa.Lut(len=1), (act(0, 8),), (act(64 * n, 64 * n + 8),)) for n in (1, 2, 3)]
    over = Emitted(isa.Load(x_bytes=8), (), (act(4, 12),))
    first = Emitted(isa.Load(x_bytes=8), (), (act(0, 8),))
    program = [first, *read, over]
    needs = hazards(TouchedBytes.of([(each.reads, each.writes) for each in program]))
    assert [set(each) for each in np.split(needs.numbers, needs.ends[:-1])] == [
        set(),
        {0},
        {0},
        {0},
        {0, 1, 2, 3},
    ]


def led(clock: IssueClock, order: list[int], leads: list[int]) -> list[int]:
    return clock.with_leads(np.array(order), np.array(leads)).tolist()


def test_who_leads_comes_so_many_earlier() -> None:
    free = [Emitted(isa.Load(x_bytes=1), (), (act(n, n + 1),)) for n in range(8)]
    written = list(range(8))
    clock = clock_of(free, written)
    assert led(clock, written, [0] * 8) == written
    assert led(clock, written, [0, 0, 0, 0, 0, 0, 3, 0]) == [0, 1, 2, 3, 6, 4, 5, 7]
    assert led(clock, written[::-1], [0, 0, 0, 0, 0, 0, -8, 0]) == [7, 5, 4, 3, 2, 1, 0, 6]
    behind_what_it_needs = [*range(8), 11, 8, 9, 10]
    clock = clock_of(two_layers(), [0] * 8 + [1] * 4)
    assert led(clock, list(range(12)), [0] * 11 + [99]) == behind_what_it_needs
