"""Trials are timed exactly as what a build would run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from npu_layers import FLAT, by_borders, conv

from targets.errors import CapacityError
from targets.layers import Layer
from targets.npu.choices import WRITTEN, Choices, Leads, Turns
from targets.npu.compiler import Emissions, compile_layers, together
from targets.npu.emit.emitted import PAR
from targets.npu.machine import isa
from targets.npu.machine.legality import parameter_bytes
from targets.npu.machine.spec import load_spec
from targets.npu.price.timing import simulate_timing
from targets.npu.trials import Delay, Part, Structure, Trials, Window

E256 = load_spec("e256")


def chain(channels: int = 48, count: int = 4, size: int = 14) -> list[Layer]:
    layers: list[Layer] = []
    for n in range(count):
        layer = conv((size, size, channels), channels, seed=n)
        source = {"input": layers[-1].output} if layers else {}
        layers.append(replace(layer, **source, output=replace(layer.output, name=f"v{n}")))
    last = conv((size, size, channels), 8, (1, 1), padding=FLAT, seed=9)
    last = replace(last, input=layers[-1].output, output=replace(last.output, name="last"))
    return [*layers, last]


def ends(layers: list[Layer]):
    return layers[0].inputs, [layers[-1].output]


def cycles_of_a_build(layers: list[Layer], choices: Choices) -> int:
    program = compile_layers(layers, *ends(layers), E256, choices)
    return simulate_timing(program.instructions, E256).total


def cut_at(trials: Trials, layer: int, cut) -> Structure:
    name = trials.rule.plan.layers[layer].job.output.value.name
    return trials.structure(replace(trials.rule.choices, cuts={name: cut}))


@pytest.fixture(scope="module")
def trials() -> Trials:
    layers = chain()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("targets.npu.trials.SMALL", 0)
        made = Trials(layers, *ends(layers), E256)
        assert not made.small
    return made


def test_a_small_program_is_timed_whole(trials):
    layers = chain()
    small = Trials(layers, *ends(layers), E256, trials.rule.choices)
    assert small.small
    assert small.window(small.rule, range(2, 3)) is None


def test_the_rules_program(trials):
    """Its order of issue is spelt out, so that a trial needn't look for the fastest one."""
    assert trials.cycles(trials.rule) == cycles_of_a_build(trials.layers, Choices())
    assert trials.rule.choices.turns.order


def test_programs_by_choices(trials):
    for layer in (0, 2, 4):
        space = [cut for _, cut in trials.space(trials.rule, layer)]
        for cut in (space[1], space[len(space) // 2], space[-1]):
            made = cut_at(trials, layer, cut)
            name = made.plan.layers[layer].job.output.value.name
            choices = Choices({name: cut}, turns=trials.rule.choices.turns)
            assert trials.cycles(made) == cycles_of_a_build(trials.layers, choices)


def test_programs_by_what_stays(trials):
    assert "v1" in trials.may_stay
    changed = replace(trials.rule.choices, stays={"v1": False})
    here = [each.names for each in trials.rule.plan.residents]
    assert any("v1" in names for names in here)
    made = trials.structure(changed)
    choices = Choices({}, {"v1": False}, turns=changed.turns)
    assert trials.cycles(made) == cycles_of_a_build(trials.layers, choices)


def timed(trials: Trials, structure: Structure) -> tuple[list[object], ...]:
    """All that time depends on: layers, steps, and the bytes that are touched."""
    made = trials._written(structure, list(together(structure.plan)))
    arrays = made.owners, made.steps, made.urgent, *made.touched
    return tuple(each.tolist() for each in arrays)


def test_what_is_remembered_changes_nothing(trials):
    """The same cut again, and between two others, behind which scratchpads lie elsewhere."""
    space = [cut for _, cut in trials.space(trials.rule, 1)]
    few, many = (choose(space, key=lambda cut: cut.tiles * cut.chunk_rows) for choose in (min, max))
    choices = trials.rule.choices
    name, cascade = next(each for each in trials.possible_cascades if trials.made_by[each[0]] == 2)
    together_2 = replace(choices, cascades={**choices.cascades, name: cascade})
    cuts = [few, many, few, space[len(space) // 2], many]
    structures = [
        *(cut_at(trials, 1, cut) for cut in cuts),
        *(
            trials.structure(replace(together_2, cuts={"v1": cut}))
            for cut in (few, many, space[len(space) // 2])
        ),
    ]
    again = [timed(trials, each) for each in structures]
    forgetful = Trials(trials.layers, *ends(trials.layers), E256)
    forgetful._emissions = Emissions()
    assert again == [timed(forgetful, each) for each in structures]
    places = {str(spans[ends[owners.index(4) - 1][1] :]) for owners, _, _, spans, ends in again}
    assert len(places) > 2  # of the last layer, which was the same all the time


def test_a_window_has_the_layers_beside(trials):
    assert trials.window(trials.rule, range(1)) == (range(2), range(1))
    window = trials.window(trials.rule, range(2, 3))
    assert window == (range(1, 4), range(2, 3))
    assert 0 < trials.cycles(trials.rule, window) < trials.cycles(trials.rule)


def test_a_window_ends_some_instructions_beside_what_is_changed(trials, monkeypatch):
    """Of layers that take long the rest is left out, as it was before and after the change."""
    window = trials.window(trials.rule, range(2, 3))
    whole = trials.cycles(trials.rule, window)
    monkeypatch.setattr("targets.npu.trials.BESIDE", 4)
    few = trials.cycles(trials.rule, window)
    monkeypatch.setattr("targets.npu.trials.BESIDE", 0)
    alone = trials.cycles(trials.rule, window)
    assert alone == trials.cycles(trials.rule, Window(range(2, 3), range(2, 3)))
    assert alone < few < whole


def test_cuts_come_by_their_estimate(trials):
    prices = [price for price, _ in trials.space(trials.rule, 0)]
    assert prices == sorted(prices)
    assert len(prices) > 10


def test_a_cut_that_can_not_be_is_refused(trials):
    (_, cut), *_ = trials.space(trials.rule, 0)
    with pytest.raises(CapacityError):
        cut_at(trials, 0, replace(cut, tiles=99))


def test_the_description_of_a_window_is_of_what_its_cycles_depend_on(trials):
    window = Window(range(1, 4), range(2, 3))
    same = Trials(chain(), *ends(trials.layers), E256)
    whole = trials.description(trials.rule)
    inside = trials.description(trials.rule, window, 2)
    assert (same.description(same.rule), same.description(same.rule, window, 2)) == (whole, inside)
    for layers in (chain(channels=32), chain(count=5), chain(size=12)):
        other = Trials(layers, *ends(layers), E256)
        assert other.description(other.rule) != whole
    cut = next(
        cut for _, cut in trials.space(trials.rule, 1) if cut != trials.rule.plan.layers[1].choice
    )
    changed = cut_at(trials, 1, cut)
    assert trials.description(changed, window, 2) != inside
    assert trials.description(changed, window, 1) == trials.description(trials.rule, window, 1)
    assert trials.description(changed) == whole
    leads = {"v2": Leads(mm=3)}
    turns = replace(trials.rule.choices.turns, leads=leads)
    turned = trials.structure(replace(trials.rule.choices, turns=turns))
    assert trials.description(turned, window, 2) != inside
    behind = Window(range(3, 5), range(4, 5))
    assert trials.description(turned, behind, 4) == trials.description(trials.rule, behind, 4)
    other = window._replace(changed=range(2, 4))
    assert trials.description(trials.rule, other, 2) != inside


def test_programs_by_turns(trials):
    """Their instructions are others, if only in another order."""
    by_rule = compile_layers(trials.layers, *ends(trials.layers), E256)
    turns = Turns(leads={"v1": Leads(vu=16), "v2": Leads(ld=-64)})
    made = trials.structure(replace(trials.rule.choices, turns=turns))
    program = compile_layers(trials.layers, *ends(trials.layers), E256, Choices(turns=turns))
    assert program.instructions != by_rule.instructions
    assert trials.cycles(made) == simulate_timing(program.instructions, E256).total


def test_choices_about_no_layer_are_refused(trials):
    with pytest.raises(CapacityError, match="nothing"):
        trials.structure(replace(trials.rule.choices, turns=Turns(leads={"nothing": Leads(1)})))


def test_what_waits_for_another_layer_is_found(trials):
    """The first layer waits for its image while the loads of a later one come before."""
    assert trials.held_up(trials.rule) == []
    turns = Turns(WRITTEN, {"v2": Leads(ld=200)})
    early = trials.structure(replace(trials.rule.choices, turns=turns))
    assert trials.held_up(early) == [Delay(by=Part(2, isa.LD), of=Part(0, isa.LD))]


@pytest.mark.parametrize("rows", [1, 40])
def test_all_that_a_requantization_reads_of_its_parameters_is_said(rows):
    """The last row of borders, too: the records of the next block may not be loaded over it."""
    layer = conv((6, 6, 16), 40, out_bits=4, rounding=by_borders(rows))
    small = Trials([layer], *ends([layer]), E256)
    made = small._written(small.rule, list(together(small.rule.plan)))
    requantizing = np.flatnonzero(made.urgent)
    assert len(requantizing)
    for n in requantizing:
        spans, ((reads, _),) = made.touched.part(n, n + 1)
        ((begin, end),) = [span[1:] for span in spans[:reads] if span[0] == PAR]
        req = made.instruction(n, 0, 0)
        assert (begin, end - begin) == (4 * req.par_addr, parameter_bytes(req))
