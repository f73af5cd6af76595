"""Prices before anything is compiled, of layers on either device."""

from dataclasses import replace

import pytest
from npu_layers import conv

from relay_passes.estimate import estimate
from relay_passes.place import placements
from relay_passes.read_layers import IntegerNetwork, OpaqueLayer
from targets.layers import Value
from targets.npu.compiler import compile_layers
from targets.npu.kinds.table import plan
from targets.npu.machine.spec import load_spec
from targets.npu.price.layer_costs import BOUNDS, price
from targets.npu.schedule.job import Job

SPEC = load_spec("e256")
A, B, C, D = (Value(name, (14, 14, 64), "uint8") for name in "abcd")
FIRST = replace(conv((14, 14, 64), 64), name="first", input=A, output=B)
SECOND = replace(conv((14, 14, 64), 64), name="second", input=B, output=C)
THIRD = replace(conv((14, 14, 64), 64), name="third", input=C, output=D)


def _estimated(*layers):
    network = IntegerNetwork(layers, (layers[0].inputs[0],), (layers[-1].output,))
    placed = placements(network, SPEC)
    return placed, estimate(network, placed, SPEC)


def test_layers_of_a_program_are_priced_together():
    placed, estimates = _estimated(FIRST, SECOND, THIRD)
    program = compile_layers([FIRST, SECOND, THIRD], [A], [D], SPEC)
    assert [p.device for p in placed] == ["npu"] * 3
    total = price(program, SPEC).timeline.total
    assert sum(each.cycles for each in estimates) == pytest.approx(total, rel=0.15)
    assert {each.bound for each in estimates} <= set(BOUNDS)


def test_a_refused_layer_costs_what_it_would_without_the_rule():
    refused = replace(SECOND, max_sum=2**40)
    placed, estimates = _estimated(FIRST, refused, THIRD)
    assert [p.device for p in placed] == ["npu", "cpu", "npu"]
    assert estimates[1].cycles == plan(Job.alone(SECOND, SPEC)).cost.cycles


def test_a_layer_that_does_not_fit_is_priced_on_larger_memories():
    huge = conv((7, 2**17, 3), 16, (7, 7))
    (placement,), (price_of,) = _estimated(huge)
    assert (placement.device, placement.reason[:7]) == ("cpu", "One row")
    assert price_of.cycles > 7 * 2**17 * (3 + 16) / SPEC.dma.bytes_per_cycle


def test_an_expression_that_no_layer_describes_costs_moving_its_tensors():
    opaque = OpaqueLayer("opaque", "", (B,), C, "transposes")
    _, estimates = _estimated(FIRST, opaque, THIRD)
    assert estimates[1].cycles == 2 * 14 * 14 * 64 // SPEC.dma.bytes_per_cycle
    assert estimates[1].bound == "DMA"


def test_a_machine_that_does_not_multiply_bytes_still_has_prices():
    spec = SPEC.model_copy(update={"array": SPEC.array.model_copy(update={"precisions": (4,)})})
    network = IntegerNetwork((FIRST,), (A,), (B,))
    placed = placements(network, spec)
    assert placed[0].device == "cpu"
    assert estimate(network, placed, spec)[0].cycles > 0
