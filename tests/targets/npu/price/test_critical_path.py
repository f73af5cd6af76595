"""The chain that ends last: what waited for a unit or the bus that another instruction had."""

import numpy as np
import pytest
from machines import varied
from random_programs import random_program

from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.npu.price.critical_path import HeldUp, held_up
from targets.npu.price.timing import simulate_timing, steps_of

E256 = load_spec("e256")
GEMM = isa.Gemm(m0=10, m1=10, k0=4, nvalid=16, kvalid=16)
LONG = isa.Gemm(m0=100, m1=10, k0=4, nvalid=16, kvalid=16)


def delays(*program: isa.Instruction, spec=E256) -> list[HeldUp]:
    return held_up(simulate_timing(program, spec), steps_of(program, spec))


def test_nothing_holds_up_what_is_alone() -> None:
    assert delays(GEMM, isa.Halt()) == []
    assert delays(isa.Halt()) == []
    assert delays() == []


def test_a_unit_does_one_after_the_other() -> None:
    assert delays(LONG, GEMM, GEMM, isa.Halt()) == [(1, 2), (0, 1)]


def test_what_ends_before_the_end_is_no_part_of_it() -> None:
    """The vector unit is done long before the array, wherever its instructions stand."""
    table = isa.Lut(len=8)
    assert delays(table, table, LONG, LONG, table, isa.Halt()) == [(2, 3)]


def test_a_chain_goes_on_through_tokens() -> None:
    """The table waits for the second product, which waits for the array that the first one has."""
    program = [LONG, isa.Gemm(m0=10, m1=10, push=4), isa.Lut(len=8, pop=2), isa.Halt()]
    assert delays(*program) == [(0, 1)]


def test_a_transfer_waits_for_the_bus_that_another_unit_has() -> None:
    assert delays(isa.Store(x_bytes=6400), isa.Load(x_bytes=6400), isa.Halt()) == [(0, 1)]


def test_who_only_waits_for_the_decoding_of_a_load_is_not_held_up_by_its_transfer() -> None:
    """The fill starts while the load before it still waits for the bus."""
    program = [isa.Nop(on=isa.VU), isa.Store(x_bytes=6400)]
    program += [isa.Load(x_bytes=64), isa.Load(fill=1, x_bytes=60_000)]
    _, store, load, fill = simulate_timing(program, E256).runs
    assert fill.start == load.decoded < store.bus[1] == load.bus[0]
    assert delays(*program, isa.Halt()) == [(2, 3)]


def test_a_load_waits_for_one_in_flight() -> None:
    loads = [isa.Load(x_bytes=64 * n) for n in (1, 2, 3)]
    one = varied(E256, "dma", outstanding=1)
    assert delays(*loads, isa.Halt(), spec=one) == [(1, 2), (0, 1)]
    two = varied(E256, "dma", outstanding=2)
    assert delays(*loads, isa.Halt(), spec=two) == [(0, 2)]


@pytest.mark.parametrize("seed", range(20))
def test_who_holds_up_has_what_is_waited_for(seed: int) -> None:
    rng = np.random.default_rng(seed)
    program = random_program(rng)
    runs = simulate_timing(program, E256).runs
    found = delays(*program)
    for earlier, later in found:
        has, waits = runs[earlier], runs[later]
        by_bus = has.bus[1] == waits.bus[0] > waits.asked
        assert by_bus or (program[earlier].unit == program[later].unit and has.start < waits.start)
