"""Free steps moved until ratios are 16-bit multipliers: minutely, and for good."""

import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from targets.scale import nearest_multiplier
from tvmq.plan.snap import snap_operand_step, snap_output_step, snap_steps, snap_weight_step
from tvmq.regions import Layer, Regions

STEPS = st.floats(1e-6, 1e3)


def _exact(ratio):
    multiplier, shift = nearest_multiplier(ratio)
    return abs(Fraction(multiplier) / Fraction(2) ** shift / ratio - 1) < Fraction(1, 2**50)


@given(STEPS, STEPS, STEPS)
def test_snapped_steps_are_exact_and_close(source, weight, output):
    snapped = snap_weight_step(weight, source, output)
    assert abs(snapped / weight - 1) <= 2.0**-16
    assert _exact(Fraction(source) * Fraction(snapped) / Fraction(output))
    assert snap_weight_step(snapped, source, output) == snapped


@given(STEPS, STEPS)
def test_additions_snap_either_side(operand, output):
    other = snap_output_step(output, operand)
    assert _exact(Fraction(operand) / Fraction(other))
    assert abs(other / output - 1) <= 2.0**-15
    mine = snap_operand_step(operand, output)
    assert _exact(Fraction(mine) / Fraction(output))
    assert snap_output_step(other, operand) == other


def _additions(*triples):
    """A network of additions alone, each (operand, operand, output)."""
    names = sorted({name for triple in triples for name in triple})
    layers = {output: Layer(output, "add", (a, b), output) for a, b, output in triples}
    regions = Regions({}, layers, {}, {}, frozenset(), frozenset())
    return regions, [(name,) for name in names]


@given(st.lists(STEPS, min_size=5, max_size=5))
def test_a_tree_of_additions_is_snapped_minutely(steps):
    snapped, coarse = snap_steps(*_additions("abc", "cde"), steps)
    a, b, c, d, e = map(Fraction, snapped)
    assert coarse == set()
    assert all(map(_exact, (a / c, b / c, c / e, d / e)))
    assert all(abs(new / old - 1) < 2.0**-13 for new, old in zip(snapped, steps, strict=True))


@given(st.lists(STEPS, min_size=4, max_size=4))
def test_in_a_cycle_all_ratios_are_powers_of_two_and_no_step_clips_much(steps):
    snapped, coarse = snap_steps(*_additions("abc", "acd"), steps)
    assert coarse == {0, 1, 2, 3}
    assert all(math.log2(step / snapped[0]).is_integer() for step in snapped)
    for new, old in zip(snapped, steps, strict=True):
        assert 2.0**-0.26 <= new / old <= 2.0**0.76
