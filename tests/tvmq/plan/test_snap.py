"""Free steps moved until ratios are 16-bit multipliers: minutely, and for good."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from targets.scale import nearest_multiplier
from tvmq.plan.snap import snap_operand_step, snap_output_step, snap_weight_step

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
