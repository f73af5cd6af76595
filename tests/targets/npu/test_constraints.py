"""Fields and sums of a layer may be used to their ends; one further, and the rule is named."""

from dataclasses import replace

import numpy as np
import pytest
from npu_layers import LAYERS, norm, softmax

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


SOFTMAX, NORM = LAYERS["softmax"], LAYERS["norm"]


def _ends(layer, **changes):
    return replace(layer, requantize=replace(layer.requantize, **changes))


def _exponentials(place, value):
    table = SOFTMAX.table.copy()
    table[place] = value
    return replace(SOFTMAX, table=table)


def _scale(layer=NORM, **changes):
    return replace(layer, scale=replace(layer.scale, **changes))


@pytest.mark.parametrize(
    ("layer", "last", "words"),
    [
        (lambda n: softmax((1, 1, n)), 1 << 15, "rows of 32769 codes"),
        (lambda n: softmax((1, 1, n), n), 4095, "4096 heads"),
        (lambda n: _ends(SOFTMAX, shift=np.array([n])), 47, "right shifts run from 48 to 48"),
        (lambda n: _ends(SOFTMAX, shift=np.array([22, n])), 22, "shifts from 22 to 23"),
        (lambda n: _ends(NORM, multiplier=np.array([1, n])), 1, "multipliers from 1 to 2"),
        (lambda n: _ends(SOFTMAX, fraction=n), 0, "a sum can reach 2147483648"),
        (lambda n: _exponentials(5, n), 65535, "exponentials from 0 to 65536, the first 32768"),
        (lambda n: _exponentials(0, -n), -(1 << 15), "the first 32767"),
        (
            lambda n: _scale(norm((1, 1, 2), step=1), lift=n, fraction=0),
            18,
            "is added to variances",
        ),
        (lambda n: _scale(epsilon=-n, lift=10, fraction=10), -1024, "1023 is added to variances"),
        (lambda n: _scale(fraction=n), 15, "16 fraction bits of what is normalized"),
        (lambda n: _scale(gain=np.full(48, n, np.int32)), 32767, "factors from 32768 to 32768"),
        (lambda n: norm((1, 1, n)), 1366, "has 8192, and 1367 are not cut into at most 64"),
    ],
)
def test_rows_are_taken_to_the_end_of_their_fields(layer, last, words):
    assert refusal(layer(last), SPEC) is None
    assert words in str(refusal(layer(last + 1), SPEC))


def test_roundings_that_are_not_compiled_are_refused():
    """REQ to the floor, too; VADD has no field for it."""
    for layer, roundings in (
        *((layer, [HALF_UP, FLOOR]) for layer in (CONV, SOFTMAX, NORM)),
        (ADD, [HALF_UP]),
    ):
        for mode in RoundingMode:
            rounding = Rounding(mode, (bytes(255),) if mode is RoundingMode.BORDER else ())
            if layer is ADD:
                changed = replace(layer, rounding=rounding)
            else:
                changed = _ends(layer, rounding=rounding)
            why = refusal(changed, SPEC)
            if rounding in roundings:
                assert why is None
            else:
                assert why is not None
                assert why.advice == Rule.ROUNDING.advice
                many = layer is CONV and mode is RoundingMode.BORDER
                assert why.here == ("it has 255 borders" if many else f"it rounds by {mode.name}")


@pytest.mark.parametrize("levels", [15, 16])
def test_borders_are_of_at_most_four_bits(levels):
    rounding = Rounding(RoundingMode.BORDER, (bytes([128] * levels),))
    ends = replace(CONV.requantize, rounding=rounding, low=0, high=levels, zero_point=0)
    why = refusal(replace(CONV, requantize=ends), SPEC)
    if levels == 15:
        assert why is None
    else:
        assert why.here == "it has 16 borders"
        assert why.advice == Rule.ROUNDING.advice
