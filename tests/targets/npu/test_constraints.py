"""Fields and sums of a layer may be used to their ends; one further, and the rule is named."""

from dataclasses import replace

import numpy as np
import pytest
from npu_layers import LAYERS

from targets.arithmetic import INT32_MAX
from targets.npu.constraints import refusal
from targets.npu.kinds.kind import Rule
from targets.npu.machine.spec import load_spec
from targets.rounding import FLOOR, HALF_UP, Rounding, RoundingMode

SPEC = load_spec("e256")
CONV, ADD = LAYERS["residual_with_multipliers"], LAYERS["add"]
CHANNELS = len(CONV.bias)


def _requantized(**changes):
    return replace(CONV, requantize=replace(CONV.requantize, **changes))


def _first(value, others):
    return np.array([value] + [others] * (CHANNELS - 1), np.int32)


def _residual(**changes):
    return _requantized(residual=replace(CONV.requantize.residual, **changes))


@pytest.mark.parametrize(
    ("layer", "last", "words"),
    [
        (lambda n: replace(CONV, max_sum=n), INT32_MAX, "a sum can reach 2147483648"),
        (
            lambda n: replace(_requantized(fraction=n), max_sum=1 << 14),
            15,
            "16 fraction bits",
        ),
        (lambda n: _requantized(shift=_first(n, 40)), 47, "right shifts run from 40 to 48"),
        (lambda n: _requantized(shift=_first(n, 10)), 25, "right shifts run from 10 to 26"),
        (lambda n: _requantized(shift=_first(-n, 10)), 0, "right shifts run from -1 to 10"),
        (lambda n: _requantized(multiplier=_first(n, 1)), 65535, "multipliers of [65536]"),
        (lambda n: _requantized(multiplier=_first(-n, 1)), -1, "multipliers of [0]"),
        (lambda n: _residual(shift=_first(n, 0)), 31, "the residual's shifts run from 0 to 32"),
        (lambda n: _residual(multiplier=n), 65535, "multipliers of [65536]"),
        (lambda n: replace(ADD, shift=n), 47, "shifts of [48]"),
        (lambda n: replace(ADD, a=replace(ADD.a, shift=n)), 31, "shifts of [32]"),
        (lambda n: replace(ADD, b=replace(ADD.b, multiplier=n)), 65535, "multipliers of [65536]"),
    ],
    ids=[
        *("sum", "fraction", "shift", "spread", "negative shift", "multiplier", "no multiplier"),
        *("residual's shift", "residual's multiplier", "add's shift", "side's shift", "side"),
    ],
)
def test_a_field_is_used_to_its_end_and_no_further(layer, last, words):
    assert refusal(layer(last), SPEC) is None
    assert words in str(refusal(layer(last + 1), SPEC))


def test_roundings_that_are_not_compiled_are_refused():
    """REQ to the floor, too; VADD has no field for it."""
    for layer, roundings in ((CONV.requantize, [HALF_UP, FLOOR]), (ADD, [HALF_UP])):
        for mode in RoundingMode:
            rounding = Rounding(mode, (bytes(255),) if mode is RoundingMode.BORDER else ())
            changed = replace(layer, rounding=rounding)
            changed = changed if layer is ADD else replace(CONV, requantize=changed)
            why = refusal(changed, SPEC)
            if rounding in roundings:
                assert why is None
            else:
                assert why is not None
                assert why.advice == Rule.ROUNDING.advice
                assert why.here == f"it rounds by {mode.name}"
