"""Convolutions of the host against plain NumPy int64, integer for integer."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from cpu_convolutions import CONVS, conv, conv_reference, extreme_conv, extreme_depthwise
from cpu_kernels import EXECUTED, RANGE, TARGET, call, codes, compiled, features, run
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, tirx

from targets.cpu.geometry import product_of
from targets.cpu.host import CpuFeatures
from targets.cpu.instruction_sets import AVX2, AVX512_VNNI, PLAIN, InstructionSet
from targets.cpu.kernels import cuts_of, make_kernel
from targets.errors import UnsupportedError
from targets.layers import (
    Conv2d,
    Requantize,
    Residual,
    Value,
    Weights,
)
from targets.rounding import FLOOR, HALF_UP, Rounding, RoundingMode
from targets.sum_bounds import bound_sums, neighbours_fit_int16

VECTOR = CpuFeatures.of(TARGET)
SETS = {each.name: each for each in EXECUTED}
SOME = (
    *("stem", "pointwise ragged", "asymmetric", "depthwise ragged", "grouped", "dense wide"),
    *(
        "scaled products in words",
        "multiplier",
        "of 4 bits",
        "depthwise of 4 bits",
        "depthwise 5x5",
    ),
)
"""Of the convolutions, for the sets that this machine would not choose."""
CASES = [
    (name, each)
    for each in SETS
    for name in CONVS
    if name in SOME or SETS[each] in (VECTOR.instructions, PLAIN)
]


@pytest.mark.parametrize(("name", "instructions"), CASES)
def test_convolutions(name: str, instructions: str) -> None:
    layer = conv(**CONVS[name])
    kernel = make_kernel(layer, features(SETS[instructions]))
    built = compiled(kernel, EXECUTED[SETS[instructions]])
    rng = np.random.default_rng(1)
    for n in (1, 3):
        inputs = [codes(rng, n, value) for value in layer.inputs]
        want = conv_reference(layer, inputs)
        np.testing.assert_array_equal(call(built, kernel, layer, inputs), want)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("instructions", SETS)
def test_products_that_saturate_16_bits(instructions: str, dtype: str) -> None:
    """Two products of the ends of both types are beyond int16, which ``vpmaddubsw`` clamps."""
    low, high = RANGE[dtype]
    layer = extreme_conv(dtype)
    kernel = make_kernel(layer, features(SETS[instructions]))
    built = compiled(kernel, EXECUTED[SETS[instructions]])
    for code in (low, high):
        inputs = [np.full((1, *layer.input.shape), code, dtype)]
        got = call(built, kernel, layer, inputs)
        np.testing.assert_array_equal(got, conv_reference(layer, inputs))


def instruction(layer: Conv2d, host: CpuFeatures) -> str:
    product, _ = product_of(layer, host)
    return product.name


IN_WORDS = [name for name in SETS if any(dot.in_words for dot in SETS[name].bytes)]


EXTREME = {"channels": extreme_conv, "rows": extreme_depthwise}
"""By what neighbours are."""


@pytest.mark.parametrize("neighbours", EXTREME)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("instructions", IN_WORDS)
def test_weights_whose_products_just_fit_16_bits(
    instructions: str, dtype: str, neighbours: str
) -> None:
    layer = EXTREME[neighbours](dtype, [(1, 127), (65, 63), (-64, -64), (127, -128)])
    host = features(SETS[instructions])
    assert "pmaddubsw" in instruction(layer, host)
    kernel = make_kernel(layer, host)
    built = compiled(kernel, EXECUTED[SETS[instructions]])
    low, high = RANGE[dtype]
    axis, others = (2, (0, 1)) if neighbours == "channels" else (0, (1, 2))
    for codes_of_pair in ((low, low), (low, high), (high, low), (high, high)):
        of_axis = np.resize(np.array(codes_of_pair, dtype), layer.input.shape[axis])
        x = np.zeros((1, *layer.input.shape), dtype) + np.expand_dims(of_axis, others)
        got = call(built, kernel, layer, [x])
        np.testing.assert_array_equal(got, conv_reference(layer, [x]))


@pytest.mark.parametrize("neighbours", EXTREME)
@pytest.mark.parametrize("pair", [(2, 127), (65, 64), (-65, -64)])
def test_weights_whose_products_do_not_fit_16_bits(pair: tuple[int, int], neighbours: str) -> None:
    layer, host = EXTREME[neighbours]("uint8", [(1, 1), pair]), features(AVX2)
    assert "pmaddwd" in instruction(layer, host)
    few_codes = replace(layer, input=replace(layer.input, bits=4))
    assert "pmaddubsw" in instruction(few_codes, host)
    padded = replace(few_codes, input_zero_point=255)
    assert "pmaddwd" in instruction(padded, host)


@pytest.mark.parametrize("instructions", IN_WORDS)
def test_factors_of_products_count_where_16_bits_hold_two(instructions: str) -> None:
    """Codes of 3 bits, but what is multiplied reaches -96."""
    layer, host = conv(**CONVS["factors beyond 4 bits"]), features(SETS[instructions])
    assert "pmaddwd" in instruction(layer, host)
    inputs = [np.full((1, *layer.input.shape), 255, np.uint8)]
    got = run(make_kernel(layer, host), layer, inputs, EXECUTED[SETS[instructions]])
    np.testing.assert_array_equal(got, conv_reference(layer, inputs))


def test_that_16_bits_hold_two_products_is_proved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    proofs: list[bool] = []

    def proved(*arguments: Any) -> bool:
        proofs.append(neighbours_fit_int16(*arguments))
        return proofs[-1]

    monkeypatch.setattr("targets.layers.neighbours_fit_int16", proved)
    layer, host = conv(**CONVS["of 4 bits"]), features(AVX2)
    for cut in (None, *cuts_of(layer, host).cuts[:2]):
        make_kernel(layer, host, cut)
    assert proofs == [True]


@pytest.mark.parametrize(
    ("dtype", "zero_point", "rows"), [("uint8", 0, 1), ("uint8", 3, 0), ("int8", 0, 0)]
)
def test_products_with_padding_are_left_out_where_it_is_zeros(
    dtype: str, zero_point: int, rows: int
) -> None:
    """Codes of int8 are raised for this instruction, and their padding with them."""
    layer = conv(shape=(7, 7, 64), k=64, dtype=dtype, zero_point=zero_point)
    text = make_kernel(layer, features(AVX512_VNNI)).func.script()
    assert len(re.findall(r"\bif .* >= T.int64\(1\) and .* < T.int64\(8\):", text)) == 2 * rows


@pytest.mark.parametrize(("height", "rows"), [(30, 0), (7, 1)])
def test_rows_of_a_depthwise_window_are_left_out_where_a_branch_is_worth_it(
    height: int, rows: int
) -> None:
    layer = conv(shape=(height, 30, 16), groups=16, dtype="uint8")
    text = make_kernel(layer, features(PLAIN)).func.script()
    assert len(re.findall(rf"\bif .* < T.int64\({height + 1}\):", text)) == rows


def test_another_rounding_is_refused() -> None:
    """Half up in its place, it would quietly be another network."""
    layer = conv(rounding=Rounding(RoundingMode.HALF_EVEN))
    with pytest.raises(UnsupportedError, match="conv: rounds by HALF_EVEN, but the CPU only by"):
        make_kernel(layer, VECTOR)


sides = st.integers(1, 9)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_random_convolutions(data: st.DataObject) -> None:
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 4))
    shape = [draw(sides), draw(sides)]
    for axis in range(2):
        # The dilated window must fit the padded image.
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        shape[axis] = max(shape[axis], reach - padding[axis] - padding[axis + 2])
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    c, k = groups * draw(st.integers(1, 20)), groups * draw(st.integers(1, 40))
    if draw(st.booleans()) and groups > 1:
        groups = k = c
    layer = conv(
        (*shape, c),
        k,
        kernel,
        draw(st.tuples(*[st.integers(1, 3)] * 2)),
        padding,
        dilation,
        groups,
        draw(st.sampled_from(["int8", "uint8"])),
        draw(st.sampled_from(["int8", "uint8"])),
        draw(st.sampled_from([None, "int8", "uint8"])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([0, 2])),
        draw(st.sampled_from([0, 17])),
        draw(st.sampled_from([HALF_UP, FLOOR])),
        draw(st.integers(0, 99)),
        draw(st.sampled_from([8, 2])),
        draw(st.sampled_from([0, 0, 3, 16])),
    )
    inputs = [codes(np.random.default_rng(0), 2, value) for value in layer.inputs]
    found: InstructionSet = draw(st.sampled_from(list(EXECUTED)))
    got = run(make_kernel(layer, features(found)), layer, inputs, EXECUTED[found])
    np.testing.assert_array_equal(got, conv_reference(layer, inputs))


@pytest.mark.parametrize("code", [-128, 127])
@pytest.mark.parametrize("fraction", [0, 11, 12, 15])
def test_sums_at_the_edge_of_int32(code: int, fraction: int) -> None:
    """Terms of sums and residual that only just fit, or do not fit, 32 bits."""
    value, skip = Value("x", (1, 2, 31), "int8"), Value("r", (1, 2, 16), "int8")
    one = np.ones(16, np.int32)
    q = Requantize(
        fraction,
        one,
        one * 24,
        0,
        -128,
        127,
        HALF_UP,
        Residual(skip, 127 if code < 0 else -128, 1, one * 23),
    )
    weight = np.full((16, 1, 1, 31), code, np.int8)
    layer = Conv2d(
        "c",
        "",
        "conv2d",
        value,
        Value("y", (1, 2, 16), "int8"),
        Weights(weight),
        one * 0,
        (1, 1),
        (0,) * 4,
        (1, 1),
        1,
        0,
        q,
        bound_sums(weight, one * 0, -128, 127).reach,
    )
    inputs = [np.full((1, *v.shape), code, np.int8) for v in layer.inputs]
    got = run(make_kernel(layer, VECTOR), layer, inputs)
    np.testing.assert_array_equal(got, conv_reference(layer, inputs))


def test_layers_of_one_shape_share_a_function() -> None:
    a, b = (make_kernel(conv(residual="int8", seed=seed), VECTOR) for seed in (1, 2))
    other = make_kernel(conv(residual="int8", k=32), VECTOR)
    # The residual's zero point is part of the code, the rest is data.
    same = conv(residual="int8", seed=1)
    twin = make_kernel(same, VECTOR)
    assert tvm_ffi.structural_equal(a.func, twin.func)
    assert not tvm_ffi.structural_equal(a.func, other.func)
    assert not np.array_equal(a.constants[0], b.constants[0])


def test_kernels_run_inside_relax() -> None:
    """Scheduled functions must survive Relax's own pipeline: fusion and memory planning."""
    layers = [
        conv(shape=(8, 8, 3), k=20),
        conv(shape=(8, 8, 20), k=20, seed=1),
        conv(shape=(8, 8, 20)),
    ]
    n = tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((n, 8, 8, 3), "int8"))
    bb = relax.BlockBuilder()
    with bb.function("main", [x]):
        with bb.dataflow():
            value = x
            for layer in layers:
                kernel = make_kernel(layer, VECTOR)
                name = bb.add_func(kernel.func, "kernel")
                shape = relax.TensorType((n, *layer.output.shape), "int8")
                constants = [relax.const(array) for array in kernel.constants]
                value = bb.emit(relax.call_tir(name, [value, *constants], shape))
            value = bb.emit_output(value)
        bb.emit_func_output(value)
    vm = relax.VirtualMachine(tvm.compile(bb.get(), target=TARGET), tvm.cpu())
    for batch in (1, 5):
        want = codes(np.random.default_rng(6), batch, layers[0].input)
        got = vm["main"](tvm.runtime.tensor(want)).numpy()
        for layer in layers:
            want = conv_reference(layer, [want])
        np.testing.assert_array_equal(got, want)
