"""Winograd's algorithm in whole numbers: the same integers as the direct sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cpu_convolutions import conv, conv_reference
from cpu_kernels import EXECUTED, RANGE, call, codes, compiled, features
from hypothesis import given, settings
from hypothesis import strategies as st
from npu_layers import by_borders

from targets.cpu.cuts import Cut
from targets.cpu.geometry import cut_by_rule
from targets.cpu.instruction_sets import ARM_DOTPROD, AVX2, AVX512, AVX512_VNNI, PLAIN, X86_64
from targets.cpu.kernels import cuts_of, make_kernel
from targets.cpu.winograd import build_winograd, sums_fit_int32, winograd_cuts
from targets.layers import Conv2d, Weights
from targets.sum_bounds import bound_sums

SETS = {each.name: each for each in EXECUTED if each.words is not None}
HOST = features(AVX2)
LAYERS = {
    "whole tiles": {},
    "overhanging tiles": {"shape": (7, 9, 16), "zero_point": -3},
    "one pixel": {"shape": (1, 1, 16), "k": 32, "dtype": "uint8", "zero_point": 200},
    "no padding": {"shape": (9, 6, 16), "padding": (0,) * 4, "dtype": "uint8"},
    "padding of some sides": {"shape": (5, 8, 16), "padding": (0, 3, 2, 1), "zero_point": 7},
    "few channels": {"shape": (6, 6, 10), "k": 48, "dtype": "uint8", "zero_point": 131},
    "residual": {"shape": (7, 7, 16), "residual": "int8", "fraction": 3},
    "multiplier": {
        "multiplier": True, "zero_point": 3, "fraction": 4, "residual": "uint8", "k": 32,
    },
    "raw": {"raw": True, "shape": (3, 5, 16), "k": 32},
    "borders": {
        "multiplier": True, "rounding": by_borders(16, first=-7), "limits": (-6, 7),
        "zero_point": 3,
    },
    "scaled products": {"shape": (6, 7, 20), "k": 32, "products": 4, "dtype": "uint8"},
}  # fmt: skip


def drawn(layer: Conv2d, instructions: str, count: int) -> list[Cut]:
    """Some cuts of a layer, whether or not it would have one."""
    space = winograd_cuts(layer, features(SETS[instructions]))
    assert space is not None
    rng = np.random.default_rng(len(space.cuts))
    return [space.rule, *(space.cuts[i] for i in rng.integers(len(space.cuts), size=count))]


def check(layer: Conv2d, inputs: list[np.ndarray], instructions: str, cut: Cut) -> None:
    instruction_set = SETS[instructions]
    kernel = build_winograd(layer, features(instruction_set), cut)
    got = call(compiled(kernel, EXECUTED[instruction_set]), kernel, layer, inputs)
    np.testing.assert_array_equal(got, conv_reference(layer, inputs), err_msg=str(cut))


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, instructions: str) -> None:
    layer, rng = conv(**LAYERS[name]), np.random.default_rng(1)
    inputs = [codes(rng, 3, value) for value in layer.inputs]
    blocks = layer.output.shape[2] // SETS[instructions].lanes
    for rows, chunk in ((1, blocks), (-(-layer.output.shape[0] // 2), 1)):
        check(layer, inputs, instructions, Cut(rows, 3, 1, chunk, winograd=True))


@pytest.mark.parametrize("instructions", SETS)
def test_cuts_of_the_space(instructions: str) -> None:
    layer = conv((12, 10, 32), 64, dtype="uint8", products=4)  # in words on all sets
    inputs = [codes(np.random.default_rng(0), 1, value) for value in layer.inputs]
    for cut in drawn(layer, instructions, 4):
        check(layer, inputs, instructions, cut)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("instructions", SETS)
def test_the_largest_sums(instructions: str, dtype: str) -> None:
    """Weights and codes at the ends, by patterns for which each of the points is largest."""
    low, high = RANGE[dtype]
    ends = np.array([-128, 127], np.int8)
    signs = np.random.default_rng(0).integers(2, size=(16, 3, 3, 1))
    signs[:2] = np.array([0, 1])[:, None, None, None]
    weight = np.repeat(ends[signs], most_channels(dtype), axis=3)
    layer = of_weights(weight, dtype)
    assert sums_fit_int32(layer)
    stripes = np.indices((6, 6)) % 2
    for pattern in (stripes[0], stripes[1], stripes.sum(axis=0) % 2, np.ones((6, 6), int)):
        code = np.where(pattern, high, low).astype(dtype)[None, ..., None]
        x = np.broadcast_to(code, (1, *layer.input.shape)).copy()
        check(layer, [x], instructions, Cut(3, 2, 1, 1, winograd=True))


def of_weights(weight: np.ndarray, dtype: str) -> Conv2d:
    k, _, _, c = weight.shape
    layer = conv((6, 6, c), k, dtype=dtype, raw=True)
    reach = bound_sums(weight, layer.bias, *RANGE[dtype]).reach
    return replace(layer, right=Weights(weight), max_sum=reach)


def most_channels(dtype: str) -> int:
    """How many have sums that fit, all weights -128."""
    weight = np.full((1, 3, 3, 512), -128, np.int8)
    return next(c for c in range(512, 0, -2) if sums_fit_int32(of_weights(weight[..., :c], dtype)))


def test_what_an_output_is_summed_from_is_bounded() -> None:
    """Nine points, of weights 2, 3 and 3 times 128 by rows and columns, and codes of two ranges."""
    for dtype, difference, total in (("uint8", 255, 255), ("int8", 255, 128)):
        reach = 128 * ((8 * 8 - 3 * 3) * 2 * difference + 3 * 3 * 4 * total)
        assert most_channels(dtype) == (2**31 - 1) // reach // 2 * 2


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_sums_that_may_not_fit_are_summed_directly(dtype: str) -> None:
    weight = np.full((16, 3, 3, most_channels(dtype) + 2), -128, np.int8)
    layer = of_weights(weight, dtype)
    assert not sums_fit_int32(layer)
    assert winograd_cuts(layer, HOST) is None
    assert winograd_cuts(of_weights(weight // 2, dtype), HOST) is not None


def test_weights_of_which_words_do_not_hold_nine_are_multiplied_directly() -> None:
    layer = conv(products=4)
    assert winograd_cuts(layer, HOST) is not None
    scaled = layer.right.factors
    for factor, fits in ((28, True), (29, False)):  # 9 * 128 * factor
        large = replace(scaled, factors=np.full_like(scaled.factors, factor))
        weight = np.full_like(layer.right.codes, -128)
        found = winograd_cuts(replace(layer, right=Weights(weight, 8, large)), HOST)
        assert (found is not None) == fits


@given(st.data())
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
def test_random_layers(data: st.DataObject) -> None:
    draw = data.draw
    instructions = draw(st.sampled_from(list(SETS)))
    lanes = SETS[instructions].lanes
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)), 2 * draw(st.integers(1, 20)))
    top, left, bottom, right = (draw(st.integers(0, 3)) for _ in range(4))
    padding = (top, left, max(bottom, 3 - top - shape[0]), max(right, 3 - left - shape[1]))
    dtype = draw(st.sampled_from(["uint8", "int8"]))
    blocks = draw(st.integers(1, 4))
    layer = conv(
        shape, blocks * lanes, padding=padding, dtype=dtype,
        zero_point=draw(st.integers(*RANGE[dtype])),
        out_dtype=draw(st.sampled_from(["uint8", "int8"])),
        residual=draw(st.sampled_from([None, "uint8", "int8"])),
        multiplier=draw(st.booleans()), products=draw(st.sampled_from([0, 3])),
        seed=draw(st.integers(0, 99)),
    )  # fmt: skip
    height, width = (-(-size // 2) for size in layer.output.shape[:2])
    rows = draw(st.sampled_from([d for d in range(1, height + 1) if height % d == 0]))
    vectors = draw(st.sampled_from([d for d in range(1, blocks + 1) if blocks % d == 0]))
    chunk = vectors * draw(
        st.sampled_from([d for d in range(1, blocks // vectors + 1) if blocks // vectors % d == 0])
    )
    pixels = draw(st.integers(1, min(6, rows * width)))
    inputs = [codes(np.random.default_rng(0), 2, value) for value in layer.inputs]
    check(layer, inputs, instructions, Cut(rows, pixels, vectors, chunk, winograd=True))


def by_tiles(layer: Conv2d, instructions) -> bool:
    return cuts_of(layer, features(instructions)).rule.winograd


def test_it_is_the_rule_where_it_takes_fewer_instructions() -> None:
    layer = conv((28, 28, 64), 64)
    few_bits = conv((28, 28, 64), 64, weight_bits=4)
    for each in (X86_64, AVX2, AVX512):
        assert by_tiles(layer, each)
        assert by_tiles(few_bits, each)
    for each in (AVX512_VNNI, ARM_DOTPROD, PLAIN):  # four products in an instruction; no words
        assert not by_tiles(layer, each)
    assert by_tiles(
        conv((28, 28, 64), 64, products=4, weight_bits=4), AVX512_VNNI
    )  # in words already
    assert not by_tiles(conv((3, 3, 8), 8, weight_bits=4), AVX2)


@pytest.mark.parametrize(
    "other",
    [
        {"strides": (2, 2)}, {"dilation": (2, 2)}, {"groups": 2}, {"kernel": (3, 5)},
        {"shape": (28, 28, 63)}, {"k": 60},
    ],
)  # fmt: skip
def test_it_is_for_plain_windows_and_whole_vectors(other: dict) -> None:
    layer = conv(**({"shape": (28, 28, 64), "k": 64} | other))
    assert not by_tiles(layer, AVX2)
    assert winograd_cuts(layer, HOST) is None


def test_a_kernel_can_be_cut_to_sum_directly() -> None:
    layer = conv((8, 8, 32), 32)
    space, direct = cuts_of(layer, HOST), cut_by_rule(layer, HOST)
    assert space.rule.winograd
    assert direct in space
    weight = make_kernel(layer, HOST, direct).constants[0]
    assert weight.size < make_kernel(layer, HOST).constants[0].size


def test_tasks_of_large_images_are_small_parts_of_them() -> None:
    space = winograd_cuts(conv((540, 1920, 16), 16), HOST)
    assert space is not None
    assert space.rule in space.cuts
    # of 270 rows of tiles, 16 points of 960 tiles in 16 channels, and sums of a vector at least
    assert max(cut.rows for cut in space.cuts) * 16 * 960 * (16 * 2 + 8 * 4) <= 16 * 2**20
