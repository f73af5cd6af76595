"""Layers that overlap: equal numbers in any order of the units, fewer cycles, fair estimates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from npu_layers import FLAT, conv, meaning, norm, random_inputs, softmax

from targets.layers import Layer
from targets.npu import compiler
from targets.npu.choices import FREE, NO_CHOICES, ORDERS, WRITTEN, Choices, Order, Turns
from targets.npu.compiler import compile_layers
from targets.npu.layer_plan import plan_layers
from targets.npu.machine.program import Program
from targets.npu.machine.spec import load_spec
from targets.npu.price.layer_costs import price
from targets.npu.simulate.interleave import at_random, interleaved, youngest
from targets.npu.simulate.simulator import Simulator

TOKENS, WIDTH = 200, 192
E256 = load_spec("e256")


def block() -> list[Layer]:
    """Dense layers around a layer norm and a softmax, as in a transformer."""
    shape = (1, TOKENS, WIDTH)
    layers = [
        conv(shape, WIDTH, (1, 1), padding=FLAT, dtype="int8", seed=1),
        norm(shape, dtype="uint8", out="int8"),
        conv(shape, WIDTH, (1, 1), padding=FLAT, dtype="int8", seed=2),
        softmax(shape, 2, dtype="uint8", multiplier=40001),
        conv(shape, WIDTH, (1, 1), padding=FLAT, seed=3),
    ]
    chain: list[Layer] = []
    for n, layer in enumerate(layers):
        source = {"input": chain[-1].output} if chain else {}
        chain.append(replace(layer, **source, output=replace(layer.output, name=f"v{n}")))
    return chain


def compiled(layers: list[Layer], choices: Choices = NO_CHOICES) -> Program:
    return compile_layers(layers, layers[0].inputs, [layers[-1].output], E256, choices)


def test_overlapping_layers_compute_the_same() -> None:
    layers = block()
    program = compiled(layers)
    assert any(len(span.runs) > 1 for span in program.layers)
    (x,) = random_inputs(layers[0], 0)
    want = x
    for layer in layers:
        want = meaning(layer, [want]).astype(layer.output.dtype).reshape(layer.output.shape)
    program = Program.from_bytes(program.to_bytes())
    for order in ({}, {"order": interleaved(at_random(0))}, {"order": interleaved(youngest)}):
        got = Simulator(E256).run(program, x.reshape(-1).view(np.uint8), **order)
        np.testing.assert_array_equal(got.view(want.dtype), want.reshape(-1))


def cycles_by(order: Order) -> int:
    program = compiled(block(), Choices(turns=Turns(order)))
    return price(program, E256).timeline.total


def test_the_rule_takes_the_order_of_fewest_cycles() -> None:
    cycles = price(compiled(block()), E256).timeline.total
    by_order = {order: cycles_by(order) for order in ORDERS}
    assert cycles == min(by_order.values())
    assert cycles < 0.9 * by_order[WRITTEN]
    assert cycles < by_order[FREE]


def test_large_programs_take_the_order_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing all of them would take too long; one instruction short of two, none is timed."""
    count = len(compiled(block()).instructions)
    monkeypatch.setattr(compiler, "TIMED", count)
    monkeypatch.setattr(compiler, "cycles_of", None)
    program = compiled(block())
    assert price(program, E256).timeline.total < 0.95 * cycles_by(WRITTEN)


def test_the_estimate_knows_of_the_overlap() -> None:
    layers = block()
    plan = plan_layers(layers, layers[0].inputs, [layers[-1].output], E256)
    total = price(compiled(layers), E256).timeline.total
    assert sum(plan.cycles) == pytest.approx(total, rel=0.15)
    assert sum(plan.cycles) < 0.9 * sum(each.cost.cycles for each in plan.layers)


def test_layers_beside_long_work_of_the_vector_unit_are_cut_into_stripes() -> None:
    layers = block()
    plan = plan_layers(layers, layers[0].inputs, [layers[-1].output], E256)
    for each in plan.layers[::2]:
        assert each.job.beside > 0
        assert each.choice.rows < TOKENS // 2
        assert each.choice.rows_outer or each.choice.tiles == WIDTH // E256.array.cols
    alone = plan_layers(layers[:1], layers[0].inputs, [layers[0].output], E256)
    assert alone.layers[0].job.beside == 0
