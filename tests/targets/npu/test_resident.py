"""Tensors that stay in ACT: same numbers, no way through DRAM, and only where it pays."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from npu_layers import FLAT, code_limits, conv, matrices, meaning, norm, random_inputs, softmax

from targets.layers import Add, Layer, MaxPool2d, Move, Operand, Pairing, Piece, Value
from targets.npu.compiler import compile_layers
from targets.npu.execute.compiled import Executor
from targets.npu.layer_plan import plan_layers
from targets.npu.machine import isa
from targets.npu.machine.program import ARENA, INPUTS, Program
from targets.npu.machine.spec import load_spec
from targets.npu.simulate.interleave import at_random, interleaved, youngest
from targets.npu.simulate.simulator import Simulator
from targets.rounding import HALF_UP

E256 = load_spec("e256")


@functools.cache
def executor(machine: str) -> Executor:
    return Executor(load_spec(machine))


def chained(*layers: Layer) -> list[Layer]:
    """The layers, each reading what the one before it makes."""
    chain: list[Layer] = []
    for n, layer in enumerate(layers):
        output = replace(layer.output, name=f"v{n}")
        if chain:
            layer = replace(layer, input=chain[-1].output)
        chain.append(replace(layer, output=output))
    return chain


def with_residual(layer: Layer, value: Value) -> Layer:
    residual = replace(layer.requantize.residual, value=value)
    return replace(layer, requantize=replace(layer.requantize, residual=residual))


def pooled(source: Value, padding=FLAT) -> MaxPool2d:
    height, width = ((n + padding[0] + padding[2] - 3) // 2 + 1 for n in source.shape[:2])
    output = Value("pooled", (height, width, source.shape[2]), source.dtype, source.bits)
    return MaxPool2d("pool", "", source, output, (3, 3), (2, 2), padding)


def network(bits=8, weight_bits=8, channels=20, dtype="uint8", multiply=False) -> list[Layer]:
    """All that can work on a tensor in ACT, with borders that differ from side to side."""
    kind = {"bits": bits, "out_bits": bits, "dtype": dtype, "out": dtype, "multiply": multiply}
    kind["weight_bits"] = weight_bits
    shape = (13, 11, channels)
    layers = chained(
        conv((13, 11, 3), channels, **{**kind, "bits": 8}, seed=1),
        conv(shape, channels, residual=dtype, dilation=(2, 1), padding=(3, 2, 1, 0), **kind),
        conv(shape, channels, (5, 5), groups=channels, padding=(2, 2, 2, 2), **kind, seed=3),
        conv(shape, channels, (1, 1), strides=(2, 2), padding=FLAT, **kind, seed=4),
        conv((7, 6, channels), 2 * channels, (1, 3), padding=(0, 2, 0, 0), **kind, seed=5),
        conv((7, 6, 2 * channels), channels, padding=(0, 1, 2, 1), **kind, seed=6),
    )
    layers[1] = with_residual(layers[1], layers[0].output)
    layers.append(pooled(layers[-1].output))
    flat_shape = (1, 1, int(np.prod(layers[-1].output.shape)))
    flat = Value("flat", flat_shape, dtype, bits)
    if bits == 8:
        piece = Piece.box(
            layers[-1].output, (0, 0, 0), (1, 1, 1), layers[-1].output.shape, (0, 0, 0)
        )
        layers.append(Move("reshape", "", (piece,), flat, 0, reshape=True))
        last = conv(flat_shape, 10, (1, 1), padding=FLAT, dtype=dtype, out="int32", seed=7)
        layers.append(replace(last, input=flat))
    return layers


def expected(layers: list[Layer], x: np.ndarray) -> np.ndarray:
    known = {layers[0].inputs[0].name: x}
    for layer in layers:
        result = meaning(layer, [known[v.name] for v in layer.inputs])
        known[layer.output.name] = result.astype(layer.output.dtype).reshape(layer.output.shape)
    return known[layers[-1].output.name]


def compiled(layers: list[Layer], machine: str = "e256") -> Program:
    outputs = [layers[-1].output]
    return compile_layers(layers, [layers[0].inputs[0]], outputs, load_spec(machine))


def moved(program: Program) -> tuple[list[isa.Load], list[isa.Store]]:
    """Loads of tensors, and stores."""
    loads = [
        i
        for i in program.instructions
        if isinstance(i, isa.Load) and not i.fill and i.region in (INPUTS, ARENA)
    ]
    return loads, [i for i in program.instructions if isinstance(i, isa.Store)]


@pytest.mark.parametrize("machine", ["e256", "m2048"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": "int8", "channels": 33},
        {"multiply": True, "channels": 7},
        {"bits": 4, "weight_bits": 4, "channels": 32},
        {"bits": 2, "weight_bits": 8, "channels": 16, "dtype": "int8"},
    ],
    ids=str,
)
def test_a_network_that_stays_in_act_computes_the_same(settings: dict, machine: str) -> None:
    layers = network(**settings)
    images = [random_inputs(layers[0], seed)[0] for seed in range(3)]
    program = compiled(layers, machine)
    packed = np.stack([x.reshape(-1).view(np.uint8) for x in images])
    got = executor(machine).run(program, packed)
    want = np.stack([expected(layers, x) for x in images])
    values = np.ascontiguousarray(got).view(want.dtype).reshape(want.shape)
    np.testing.assert_array_equal(values, want)
    one = Simulator(load_spec(machine)).run(Program.from_bytes(program.to_bytes()), packed[0])
    np.testing.assert_array_equal(one, got[0])
    assert program.arena_bytes == 0
    loads, stores = moved(program)
    first, last = program.layers[0], program.layers[-1]
    assert all(i in first.of(program.instructions) for i in loads)
    assert all(i in last.of(program.instructions) for i in stores)


def tokens(shape: tuple[int, int, int]) -> list[Layer]:
    """Layer norm before and softmax behind a product, as in attention."""
    channels = shape[2]
    return chained(
        conv((*shape[:2], 3), channels, (1, 1), padding=FLAT, seed=1),
        norm(shape, dtype="uint8", out="int8"),
        conv(shape, channels, (1, 1), padding=FLAT, dtype="int8", seed=2),
        softmax(shape, 3, dtype="uint8", multiplier=40001),
        conv(shape, 7, (1, 1), padding=FLAT, seed=3),
    )


@pytest.mark.parametrize("shape", [(1, 17, 24), (5, 4, 33)])
def test_rows_are_read_and_made_in_act(shape: tuple[int, int, int]) -> None:
    layers = tokens(shape)
    program = compiled(layers)
    assert program.arena_bytes == 0
    images = [random_inputs(layers[0], seed)[0] for seed in range(3)]
    got = executor("e256").run(program, np.stack([x.reshape(-1) for x in images]))
    want = np.stack([expected(layers, x).reshape(-1) for x in images])
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(Simulator(E256).run(program, images[0].tobytes()), got[0])
    (rows,) = [i for i in program.instructions if isinstance(i, isa.Norm)][:1]
    assert rows.m0 * rows.m1 > 1, "a run of pixels is one instruction"


def test_rows_lie_within_the_border_that_others_want() -> None:
    """Layer norm makes, and softmax reads, a tensor with the padding of a convolution around it."""
    shape = (6, 5, 24)
    first, normed, padded = chained(
        conv((6, 5, 3), 24, seed=1),
        norm(shape, dtype="uint8", out="int8"),
        conv(shape, 9, (3, 3), dtype="int8", padding=(1, 2, 0, 1), seed=2),
    )
    shares = softmax(shape, 3)
    shares = replace(shares, input=normed.output, output=replace(shares.output, name="shares"))
    layers, ends = [first, normed, padded, shares], [padded.output, shares.output]
    residents = plan_layers(layers, [first.input], ends, E256).residents
    assert [r.tensor.border for r in residents] == [(0, 0, 0, 0), (1, 2, 0, 1)]
    program = compile_layers(layers, [first.input], ends, E256)
    x = random_inputs(first)[0]
    got = Simulator(E256).run(program, x.tobytes())
    want = [expected(layers[:3], x), expected([first, normed, shares], x)]
    np.testing.assert_array_equal(got, np.concatenate([y.reshape(-1) for y in want]))


def test_any_order_of_the_units_leaves_the_same_bytes() -> None:
    layers = network(channels=16)
    program = compiled(layers)
    data = random_inputs(layers[0], 0)[0].tobytes()
    want = Simulator(E256).run(program, data)
    for choose in (youngest, *(at_random(seed) for seed in range(3))):
        got = Simulator(E256).run(program, data, interleaved(choose))
        np.testing.assert_array_equal(got, want)


def test_a_layer_beside_a_tensor_in_act_keeps_below_it() -> None:
    """Alone, the first layer would load its whole input, so that weights are loaded only once."""
    layers = chained(
        conv((16, 16, 900), 512, (1, 1), padding=FLAT, seed=1),
        conv((16, 16, 512), 16, (1, 1), padding=FLAT, seed=2),
    )
    first, second = layers
    assert 16 * 16 * 900 <= E256.sram.act.bytes < 16 * 16 * (900 + 512)
    program = compiled(layers)
    assert program.arena_bytes == 0
    x = random_inputs(first)[0]
    got = Simulator(E256).run(program, x.tobytes()).view(np.uint8)
    np.testing.assert_array_equal(got.reshape(second.output.shape), expected(layers, x))


def test_a_tensor_that_does_not_fit_goes_through_dram() -> None:
    side = 80
    layers = chained(conv((side, side, 64), 64, seed=1), conv((side, side, 64), 64, seed=2))
    assert side * side * 64 > E256.sram.act.bytes
    assert compiled(layers).arena_bytes >= side * side * 64


def test_what_a_table_or_an_addition_reads_goes_through_dram() -> None:
    first, second = chained(conv((8, 8, 16), 16, seed=1), conv((8, 8, 16), 16, seed=2))
    total = Value("total", (8, 8, 16), "uint8")
    a, b = Operand(first.output, 0, 1, 0), Operand(second.output, 0, 1, 1)
    layers = [first, second, Add("add", "", a, b, total, 1, 0, *code_limits(total), HALF_UP)]
    assert plan_layers(layers, [first.input], [total], E256).residents == []


def test_the_left_of_two_factors_stays_in_act_and_the_right_goes_through_dram() -> None:
    """Queries, keys and values of 9 tokens; scores are the left factor of the sums of values."""
    x = Value("x", (1, 9, 24), "int8")

    def dense(name: str, source: Value, seed: int) -> Layer:
        made = conv((1, 9, 24), 24, (1, 1), padding=FLAT, dtype="int8", out="int8", seed=seed)
        made = replace(made, input=source, input_zero_point=0)
        return replace(made, name=name, output=replace(made.output, name=name))

    def product(name: str, left: Value, right: Value, pairing: Pairing) -> Layer:
        made = matrices(9, 9, 24, 3, pairing)
        factor = replace(made.right, value=right)
        output = replace(made.output, name=name)
        return replace(made, name=name, input=left, right=factor, output=output)

    q, k, v = (dense(name, x, n) for n, name in enumerate("qkv"))
    scores = product("scores", q.output, k.output, Pairing.ROWS)
    sums = product("sums", scores.output, v.output, Pairing.COLUMNS)
    layers = [q, k, v, scores, sums, dense("y", sums.output, 4)]
    residents = plan_layers(layers, [x], [layers[-1].output], E256).residents
    assert [sorted(r.names) for r in residents] == [["q"], ["scores"], ["sums"]]
    codes = random_inputs(q)[0]
    known = {"x": codes}
    for layer in layers:
        known[layer.output.name] = meaning(layer, [known[value.name] for value in layer.inputs])
    program = compiled(layers)
    assert program.arena_bytes == 64 * -(-9 * 24 // 64) + 9 * 24  # keys and values
    got = executor("e256").run(program, codes.reshape(1, -1))[0].view(np.int8)
    np.testing.assert_array_equal(got.reshape(known["y"].shape), known["y"])


def test_a_tensor_with_borders_of_two_codes_goes_through_dram() -> None:
    """The convolution pads with 5, the pooling beside it with the lowest code, 0."""
    first, second = chained(conv((12, 12, 16), 16, seed=1), conv((12, 12, 16), 16, seed=2))
    pool = pooled(first.output, (1, 1, 1, 1))
    ends = [second.output, pool.output]
    assert plan_layers([first, second, pool], [first.input], ends, E256).residents == []
    level = replace(second, input_zero_point=0)
    residents = plan_layers([first, level, pool], [first.input], ends, E256).residents
    assert [r.tensor.border for r in residents] == [(1, 1, 1, 1)]


def test_tensors_that_are_live_together_do_not_share_bytes() -> None:
    layers = network(channels=24)
    residents = plan_layers(layers, [layers[0].inputs[0]], [layers[-1].output], E256).residents
    assert len(residents) == 7
    spans = [
        (r.first, r.last, r.address, r.address + np.prod(r.tensor.shape) + E256.array.overrun)
        for r in residents
    ]
    for n, (first, last, begin, end) in enumerate(spans):
        assert end <= E256.sram.act.bytes
        for other_first, other_last, other_begin, other_end in spans[:n]:
            together = first <= other_last and other_first <= last
            assert not together or end <= other_begin or other_end <= begin


def test_a_strided_1x1_layer_loads_only_the_pixels_it_reads() -> None:
    """What a stride of two jumps over stays in DRAM, in both directions."""
    layer = conv((28, 28, 128), 32, (1, 1), strides=(2, 2), padding=FLAT)
    program = compiled([layer])
    loads, _ = moved(program)
    assert sum(i.x_bytes * i.y * i.z for i in loads) == 14 * 14 * 128
