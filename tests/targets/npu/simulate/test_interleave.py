"""Races: programs under every order of the units, and with tokens taken out."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from npu_layers import LAYERS, conv, random_inputs

from targets.errors import TrapError
from targets.npu.compiler import compile_layers
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.npu.simulate.interleave import at_random, by_priority, interleaved, youngest
from targets.npu.simulate.simulator import Order, Simulator, program_order

E256, M2048 = load_spec("e256"), load_spec("m2048")
QUICK = ["square", "depthwise_strided_5x5", "residual_with_multipliers", "add", "max_pool", "lut"]


def compiled(layer, spec):
    program = compile_layers([layer], layer.inputs, [layer.output], spec)
    data = b"".join(array.tobytes() for array in random_inputs(layer))
    return program, data


def image(spec: NpuSpec, program, data: bytes, choose) -> list[bytes]:
    return memories(spec, program, data, interleaved(choose))


def memories(spec: NpuSpec, program, data: bytes, order: Order) -> list[bytes]:
    """All bytes at the end: DRAM regions, then scratchpads."""
    simulator = Simulator(spec)
    simulator.run(program, data, order)
    return [memory.tobytes() for memory in (*simulator.machine.dram, *simulator.machine.memories)]


def adversaries(program):
    """The youngest unit first, one unit ahead of all others and one behind, and at random."""
    yield youngest
    for units in permutations(range(4)):
        yield by_priority(units, program)
    for seed in range(4):
        yield at_random(seed)


def in_order(spec, program, data) -> list[bytes]:
    return memories(spec, program, data, program_order)


@pytest.mark.parametrize("spec", [E256, M2048], ids=lambda spec: spec.name)
@pytest.mark.parametrize("name", [*QUICK, "concat_slice_and_fill", "stem_7x7_of_3_channels"])
def test_any_order_of_the_units_leaves_the_same_bytes(name, spec):
    program, data = compiled(LAYERS[name], spec)
    expected = in_order(spec, program, data)
    for choose in adversaries(program):
        assert image(spec, program, data, choose) == expected


def token_bits(program):
    """(position, "pop" or "push", unit) of every token bit."""
    for index, instruction in enumerate(program.instructions):
        for kind in ("pop", "push"):
            mask = getattr(instruction, kind)
            yield from ((index, kind, unit) for unit in range(4) if mask >> unit & 1)


def without(program, *removed):
    instructions = list(program.instructions)
    for index, kind, unit in removed:
        mask = getattr(instructions[index], kind) & ~(1 << unit)
        instructions[index] = replace(instructions[index], **{kind: mask})
    return replace(program, instructions=tuple(instructions))


def token_pairs(program):
    """Both ends of every token, as two bits for ``without``."""
    sent = {}
    for index, kind, unit in token_bits(program):
        own = program.instructions[index].unit
        if kind == "push":
            sent.setdefault((own, unit), []).append(index)
    taken = {}
    for index, kind, unit in token_bits(program):
        own = program.instructions[index].unit
        if kind == "pop":
            taken.setdefault((unit, own), []).append(index)
    for (source, target), pushes in sent.items():
        for push, pop in zip(pushes, taken[source, target], strict=True):
            yield (push, "push", target), (pop, "pop", source)


def noticed(spec, program, data, expected) -> bool:
    try:
        return any(image(spec, program, data, each) != expected for each in adversaries(program))
    except TrapError:  # a deadlock, or HALT with tokens left
        return True


@pytest.mark.parametrize("name", ["pointwise_strided", "residual"])
def test_every_deleted_token_bit_is_noticed(name):
    program, data = compiled(LAYERS[name], E256)
    expected = in_order(E256, program, data)
    bits = list(token_bits(program))
    assert len(bits) > 20
    for bit in bits:
        assert noticed(E256, without(program, bit), data, expected), bit


def test_a_token_deleted_at_both_ends_is_a_race_that_some_order_shows():
    """The harder mutation: no FIFO gives it away, only bytes do.

    Weights come once: those that are loaded again for each stripe may be late, being the same.
    """
    layer = conv((16, 16, 16), 96)
    program, data = compiled(layer, E256)
    expected = in_order(E256, program, data)
    pairs = list(token_pairs(program))
    missed = [pair for pair in pairs if not noticed(E256, without(program, *pair), data, expected)]
    assert len(pairs) > 10
    assert not missed


def test_orders_differ():
    """The adversaries are not all the same one."""
    program, data = compiled(LAYERS["residual"], E256)
    orders = set()
    for choose in adversaries(program):
        order = []

        def spy(heads, choose=choose, order=order):
            order.append(choose(heads))
            return order[-1]

        image(E256, program, data, spy)
        orders.add(tuple(order))
    assert len(orders) > 10


def test_deadlock_is_named():
    program, data = compiled(LAYERS["square"], E256)
    first = next(bit for bit in token_bits(program) if bit[1] == "push")
    with pytest.raises(TrapError, match="deadlock: no unit can go on"):
        image(E256, without(program, first), data, youngest)
    assert np.frombuffer(data, np.uint8).size == program.input_bytes
