"""Kernels cut otherwise than by rule give the same integers; what doesn't fit is refused."""

from __future__ import annotations

import numpy as np
import pytest
from cpu_convolutions import CONVS, conv, conv_reference
from cpu_kernels import EXECUTED, codes, features, run
from pydantic import ValidationError

from targets.cpu.cuts import Cut, cut_from_json, cuts_as_json, cuts_from_json
from targets.cpu.instruction_sets import AVX512_VNNI
from targets.cpu.kernels import cuts_of, make_kernel
from targets.errors import CapacityError

SET, TARGET = next(iter(EXECUTED.items()))
HOST = features(SET)
VNNI = features(AVX512_VNNI)
CUT = (
    *("square", "pointwise ragged", "pointwise unsigned", "depthwise", "depthwise pool"),
    *("grouped full", "dense wide", "grouped by blocks", "multiplier"),
)


def drawn(name: str, count: int) -> list[Cut]:
    """Cuts of a layer's space: its first, its last and some between."""
    cuts = cuts_of(conv(**CONVS[name]), HOST).cuts
    rng = np.random.default_rng(len(name))
    return [cuts[i] for i in {0, len(cuts) - 1, *rng.integers(len(cuts), size=count)}]


@pytest.mark.parametrize("name", CUT)
def test_a_cut_changes_no_integer(name: str) -> None:
    layer = conv(**CONVS[name])
    rng = np.random.default_rng(1)
    inputs = [codes(rng, 2, value) for value in layer.inputs]
    want = conv_reference(layer, inputs)
    for cut in drawn(name, 2):
        kernel = make_kernel(layer, HOST, cut)
        np.testing.assert_array_equal(run(kernel, layer, inputs, TARGET), want, err_msg=str(cut))


@pytest.mark.parametrize("name", CUT)
def test_the_rules_cut_is_one_of_them(name: str) -> None:
    layer = conv(**CONVS[name])
    space = cuts_of(layer, HOST)
    assert space.rule in space
    assert len(set(space.cuts)) == len(space.cuts)
    by_rule = make_kernel(layer, HOST)
    assert make_kernel(layer, HOST, space.rule).func.script() == by_rule.func.script()


def test_an_images_tasks_are_parts_of_it_before_they_are_channels() -> None:
    """Two cores that write channels of one pixel would share lines of their caches."""
    options = {"kernel": (1, 1), "padding": (0,) * 4}
    wide = cuts_of(conv((28, 28, 40), 240, **options), VNNI).rule
    assert wide.flat
    assert 28 // wide.rows == 2 * VNNI.cores
    assert wide.chunk * VNNI.instructions.lanes == 240
    odd = cuts_of(conv((7, 7, 160), 960, **options), VNNI).rule  # seven rows aren't two halves
    assert odd.rows == 7
    assert odd.chunk * VNNI.instructions.lanes < 960


def test_weights_that_exceed_the_nearest_cache_are_used_by_several_pixels() -> None:
    tokens = conv((1, 197, 768), 192, kernel=(1, 1), padding=(0,) * 4)  # a prime number
    assert cuts_of(tokens, VNNI).rule.pixels > 1


def test_weights_of_16_bits_are_twice_as_many_bytes() -> None:
    shape = {"shape": (1, 197, 128), "k": 192, "kernel": (1, 1), "padding": (0,) * 4}
    of_bytes, of_words = (cuts_of(conv(**shape, products=n), VNNI).rule for n in (0, 16))
    assert of_bytes.pixels == 1 < of_words.pixels


def test_what_does_not_fit_is_refused() -> None:
    layer = conv(**CONVS["square"])
    rule = cuts_of(layer, HOST).rule
    for wrong in (
        Cut(3, rule.pixels, rule.vectors, rule.chunk),
        Cut(rule.rows, 99, rule.vectors, rule.chunk),
        Cut(rule.rows, rule.pixels, rule.vectors, rule.chunk, not rule.flat),
    ):
        with pytest.raises(CapacityError, match="conv: its kernel on the CPU can't be cut into"):
            make_kernel(layer, HOST, wrong)


def test_cuts_are_read_as_they_were_written() -> None:
    cuts = {"y": Cut(2, 3, 4, 8, True), "x": Cut()}
    assert cuts_from_json(cuts_as_json(cuts)) == cuts
    assert cut_from_json(cuts["y"].as_json()) == cuts["y"]
    for wrong in ({"rows": 0}, {"pixels": "7"}, {"more": 1}):
        with pytest.raises(ValidationError):
            cut_from_json(Cut().as_json() | wrong)


def test_rows_in_parts_that_are_one_change_no_integer() -> None:
    layer = conv(**CONVS["pointwise"])
    cut = next(each for each in cuts_of(layer, HOST).cuts if each.flat and 1 < each.rows < 6)
    inputs = [codes(np.random.default_rng(1), 2, layer.input)]
    got = run(make_kernel(layer, HOST, cut), layer, inputs, TARGET)
    np.testing.assert_array_equal(got, conv_reference(layer, inputs))
