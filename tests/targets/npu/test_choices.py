"""Choices in place of the compiler's: the same numbers, and refused where they can't be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from npu_layers import FLAT, code_limits, conv, matrices, meaning, random_inputs
from pydantic import ValidationError
from random_networks import machine as random_machine
from random_networks import network as random_network

from targets.errors import CapacityError
from targets.layers import MaxPool2d, Pairing, Value
from targets.npu.choices import (
    NO_CHOICES,
    ORDERS,
    WRITTEN,
    CascadeChoice,
    Choices,
    Leads,
    Turns,
)
from targets.npu.compiler import compile_layers, cycles_together
from targets.npu.convolution.geometry import ConvGeometry
from targets.npu.convolution.tile_cost import ConvTiling
from targets.npu.convolution.tiling import tilings
from targets.npu.convolution.tiling_space import misfit, tiling_space
from targets.npu.kinds.table import kind_of
from targets.npu.layer_plan import plan_layers
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.npu.schedule.job import Job
from targets.npu.simulate.simulator import Simulator

E256 = load_spec("e256")
LAYERS = {
    "dense": conv((9, 7, 40), 50),
    "deep": conv((6, 5, 70), 170),
    "strided": conv((13, 9, 24), 34, strides=(2, 2)),
    "shallow": conv((17, 13, 3), 20, (5, 5), strides=(2, 2), padding=(2, 2, 2, 2)),
    "depthwise": conv((12, 9, 80), 80, groups=80),
    "grouped": conv((8, 6, 64), 64, groups=2),
    "added": conv((6, 5, 70), 90, residual="uint8"),
    "sums": conv((1, 1, 300), 100, (1, 1), padding=FLAT, out="int32"),
    "matrices": matrices(12, 10, 32, 2, Pairing.ROWS),
    "scaled": conv((6, 5, 64), 48, products=(32, 48)),
}


NONE = dict.fromkeys(("v0", "v1", "v2"), CascadeChoice(1, 1))
"""No cascade of the layers below."""


def layers_in_a_row() -> list:
    """A convolution, a pooling of it, one that is small, and one more."""
    first = conv((32, 32, 3), 32, out_bits=8)
    pool = MaxPool2d(
        "pool", "", first.output, Value("p", (16, 16, 32), "uint8", 8), (3, 3), (2, 2), (1, 1, 1, 1)
    )
    third = conv((16, 16, 32), 24, seed=2)
    fourth = conv((16, 16, 24), 8, (1, 1), padding=FLAT, seed=3)
    chain: list = []
    for n, layer in enumerate((first, pool, third, fourth)):
        source = {"input": chain[-1].output} if chain else {}
        chain.append(replace(layer, **source, output=replace(layer.output, name=f"v{n}")))
    return chain


def program_of(layers, spec: NpuSpec = E256, choices: Choices = NO_CHOICES):
    return compile_layers(layers, layers[0].inputs, [layers[-1].output], spec, choices)


def run(layers, spec: NpuSpec, choices: Choices) -> np.ndarray:
    inputs = random_inputs(layers[0])
    packed = np.concatenate([x.reshape(-1).view(np.uint8) for x in inputs])
    return Simulator(spec).run(program_of(layers, spec, choices), packed)


def expected(layers) -> np.ndarray:
    operands = random_inputs(layers[0])
    for layer in layers:
        operands = [meaning(layer, operands).astype(layer.output.dtype)]
    return np.ascontiguousarray(operands[0]).reshape(-1).view(np.uint8)


@pytest.mark.parametrize("name", LAYERS)
def test_every_cut_of_the_space_computes_the_same(name):
    layer = LAYERS[name]
    job = Job.alone(layer, E256)
    space = kind_of(layer).space(job)
    assert len(space) == len(set(space)) > 1
    rng = np.random.default_rng(len(name))
    want = expected([layer])
    for n in rng.choice(len(space), min(5, len(space)), replace=False):
        choices = Choices({layer.output.name: space[n]})
        np.testing.assert_array_equal(run([layer], E256, choices), want, err_msg=str(space[n]))


@pytest.mark.parametrize("name", LAYERS)
def test_the_rules_own_cuts_are_allowed(name):
    g = ConvGeometry(Job.alone(LAYERS[name], E256))
    found = list(tilings(g))
    assert found
    assert [misfit(g, t) for t in found] == [""] * len(found)


def test_the_space_is_larger_than_the_rules():
    g = ConvGeometry(Job.alone(conv((56, 56, 64), 128), E256))
    assert len(tiling_space(g)) > 3 * len(list(tilings(g))) > 30


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rows": 0}, "rows of 0"),
        ({"tiles": 99}, "tiles of 99, there are 11"),
        ({"k0": 2, "tiles": 9}, "sums of 9 column tiles wait in ACC$"),
        ({"chunk_rows": 7}, "chunk_rows of 7"),
        ({"k0": 2, "rows_outer": True}, "blocks as the outer loop"),
        ({"kernel_rows": 1}, "blocks of kernel rows are pieces"),
        ({"k0": 2, "chunk_columns": 2}, "those of a whole stripe"),
    ],
)
def test_a_cut_that_can_not_be_is_refused_in_words(changed, words):
    layer = LAYERS["deep"]
    fine = ConvTiling(6, 2, 5, 6, 5, rows_outer=False, kernel_rows=3)
    program_of([layer], choices=Choices({layer.output.name: fine}))
    wrong = replace(fine, **changed)
    with pytest.raises(CapacityError, match=words):
        program_of([layer], choices=Choices({layer.output.name: wrong}))


def test_a_memory_that_is_too_small_is_named():
    layer = conv((64, 64, 128), 128)
    whole = ConvTiling(64, 8, 8, 1, 64, False, 3)
    with pytest.raises(CapacityError, match="bytes of WGT"):
        program_of([layer], choices=Choices({layer.output.name: whole}))


def test_a_pooling_is_cut_as_it_is_told():
    layers = layers_in_a_row()
    choices = Choices({"v1": 3}, {}, NONE)
    plan = plan_layers(layers, layers[0].inputs, [layers[-1].output], E256, None, choices)
    assert plan.layers[1].choice == 3
    np.testing.assert_array_equal(run(layers, E256, choices), expected(layers))


@pytest.mark.parametrize("cut", [17, ConvTiling(1, 1, 1, 1, 1, False, 1)])
def test_a_pooling_refuses_what_is_no_height_of_its_own(cut):
    with pytest.raises(CapacityError, match="pool: can't be cut"):
        program_of(layers_in_a_row(), choices=Choices({"v1": cut}))


def test_a_tensor_stays_or_not_as_it_is_told():
    layers = layers_in_a_row()
    for stays in (False, True):
        choices = Choices({}, {"v2": stays}, NONE)
        plan = plan_layers(layers, layers[0].inputs, [layers[-1].output], E256, None, choices)
        assert ("v2" in {name for each in plan.residents for name in each.names}) == stays
        np.testing.assert_array_equal(run(layers, E256, choices), expected(layers))


def test_what_can_not_stay_is_named():
    layers = layers_in_a_row()
    with pytest.raises(CapacityError, match="v3: can't stay"):  # an output of the program
        program_of(layers, choices=Choices({}, {"v3": True}))


@pytest.mark.parametrize("given", [CascadeChoice(2, 1), CascadeChoice(2, 4), CascadeChoice(1, 1)])
def test_a_cascade_is_as_it_is_told(given):
    layers = layers_in_a_row()
    choices = Choices({}, {}, {**NONE, "v0": given})
    plan = plan_layers(layers, layers[0].inputs, [layers[-1].output], E256, None, choices)
    assert [each.span for each in plan.cascades] == [range(2)] * (given.layers - 1)
    np.testing.assert_array_equal(run(layers, E256, choices), expected(layers))


@pytest.mark.parametrize("given", [CascadeChoice(2, 99), CascadeChoice(5, 1)])
def test_a_cascade_that_can_not_be_is_refused(given):
    with pytest.raises(CapacityError, match="can't work in stripes"):
        program_of(layers_in_a_row(), choices=Choices({}, {}, {"v0": given}))


@pytest.mark.parametrize(("seed", "order"), [*enumerate(("", *ORDERS))])
def test_instructions_in_other_turns_compute_the_same(seed, order):
    layers = layers_in_a_row()
    rng = np.random.default_rng(seed)
    leads = {f"v{n}": Leads(*(int(lead) for lead in rng.integers(-40, 40, 4))) for n in range(4)}
    choices = Choices(turns=Turns(order, leads))
    told = program_of(layers, choices=choices)
    assert told.instructions != program_of(layers).instructions
    np.testing.assert_array_equal(run(layers, E256, choices), expected(layers))


def test_choices_of_what_nobody_makes_are_refused():
    with pytest.raises(CapacityError, match="nothing_of_that_name"):
        program_of(layers_in_a_row(), choices=Choices({"nothing_of_that_name": 1}))


def test_no_choices_are_the_rules_program():
    layers = layers_in_a_row()
    plan = plan_layers(layers, layers[0].inputs, [layers[-1].output], E256)
    cuts = {p.job.output.value.name: p.choice for p in plan.layers}
    told = program_of(layers, choices=Choices(cuts))
    assert told.to_bytes() == program_of(layers).to_bytes()


def test_json_gives_the_same_choices():
    tiling = ConvTiling(6, 2, 5, 6, 5, False, 3, in_pieces=True)
    turns = Turns("loads-2", {"e": Leads(1, -2, 3, 0)})
    choices = Choices({"a": tiling, "b": 4}, {"c": True}, {"d": CascadeChoice(2, 8)}, turns)
    assert Choices.from_json(choices.as_json()) == choices
    assert not NO_CHOICES
    assert Choices.from_json({}) == NO_CHOICES


def test_files_of_before_may_say_that_the_order_is_that_of_writing():
    for said, order in ((True, WRITTEN), (False, "")):
        assert Choices.from_json({"turns": {"as_written": said}}) == Choices(turns=Turns(order))


@pytest.mark.parametrize(
    "wrong",
    [
        {"cuts": {"a": 0}},
        {"cuts": {"a": {"rows": 1}}},
        {"cuts": {"a": True}},
        {"stays": {"a": 1}},
        {"cascades": {"a": [2]}},
        {"others": {}},
        {"turns": {"order": "loads-9"}},
        [],
    ],
)
def test_what_is_no_choice_is_refused(wrong):
    with pytest.raises(ValidationError):
        Choices.from_json(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_any_choices_of_any_network_compute_the_same(seed):
    """Random layers on a random machine, each cut somehow within its space."""
    rng = np.random.default_rng(seed)
    spec = random_machine(rng)
    drawn = random_network(rng, spec)
    if not drawn.layers:
        pytest.skip("the machine refuses every layer that was drawn")
    plan = plan_layers(drawn.layers, [drawn.input], drawn.outputs, spec, cycles_together)
    cuts = {}
    for each in plan.layers:
        if not each.idle:
            space = kind_of(each.job.layer).space(each.job)
            if space:
                cuts[each.job.output.value.name] = space[int(rng.integers(len(space)))]
    program = compile_layers(drawn.layers, [drawn.input], drawn.outputs, spec, Choices(cuts))
    low, high = code_limits(drawn.input)
    x = rng.integers(low, high + 1, drawn.input.shape).astype(drawn.input.dtype)
    got = Simulator(spec).run(program, x.reshape(-1).view(np.uint8))
    np.testing.assert_array_equal(got, drawn.meaning(x))
