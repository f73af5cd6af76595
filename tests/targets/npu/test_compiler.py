"""Programs of whole layers: the compiled executor and the NumPy simulator give what NumPy gives."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from layer_programs import program_of
from machines import varied
from npu_layers import LAYERS, code_limits, conv, meaning, random_inputs

from targets.errors import CapacityError
from targets.layers import Add, Layer, MaxPool2d, Operand, Value
from targets.npu.compiler import compile_layers
from targets.npu.execute.compiled import Executor
from targets.npu.kinds.table import plan
from targets.npu.machine import isa
from targets.npu.machine.program import Program
from targets.npu.machine.spec import load_spec
from targets.npu.schedule.job import Job
from targets.npu.schedule.storage import Stored
from targets.npu.simulate.simulator import Simulator
from targets.rounding import HALF_UP

IMAGES = 3


@functools.cache
def executor(machine: str) -> Executor:
    return Executor(load_spec(machine))


def images(layer: Layer) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """Inputs of several images, and the bytes that the program reads, uint8[images, n]."""
    inputs = [random_inputs(layer, seed) for seed in range(IMAGES)]
    packed = [np.concatenate([x.reshape(-1).view(np.uint8) for x in image]) for image in inputs]
    return inputs, np.stack(packed)


def unpack(outputs: np.ndarray, value: Value) -> np.ndarray:
    return np.ascontiguousarray(outputs).view(value.dtype).reshape(-1, *value.shape)


@pytest.mark.parametrize("machine", ["e256", "m2048"])
@pytest.mark.parametrize("name", LAYERS)
def test_program_of_a_layer_computes_the_layer(name: str, machine: str) -> None:
    layer = LAYERS[name]
    program = program_of(name, machine)
    inputs, packed = images(layer)
    want = np.stack([meaning(layer, image) for image in inputs])

    got = executor(machine).run(program, packed)
    np.testing.assert_array_equal(unpack(got, layer.output), want)
    one = Simulator(load_spec(machine)).run(Program.from_bytes(program.to_bytes()), packed[0])
    np.testing.assert_array_equal(one, got[0])


def block() -> list[Layer]:
    """Two convolutions, and a sum of what comes in with what comes out; 12x12x32 codes."""
    first = conv((12, 12, 32), 32, seed=1)
    x, hidden = first.inputs[0], Value("hidden", (12, 12, 32), "uint8")
    second = conv((12, 12, 32), 32, seed=2)
    end = Value("end", (12, 12, 32), "uint8")
    total = Value("total", (12, 12, 32), "uint8")
    return [
        replace(first, output=hidden),
        replace(second, input=hidden, output=end),
        Add("add", "", Operand(x, 0, 1, 0), Operand(end, 0, 1, 1), total, 1, 0, 0, 255, HALF_UP),
    ]


def test_layers_of_a_program_pass_tensors_on() -> None:
    layers = block()
    spec = load_spec("e256")
    program = compile_layers(layers, [layers[0].inputs[0]], [layers[-1].output], spec)
    inputs, packed = images(layers[0])
    want = []
    for (x,) in inputs:
        hidden = meaning(layers[0], [x]).astype(np.uint8)
        end = meaning(layers[1], [hidden]).astype(np.uint8)
        want.append(meaning(layers[2], [x, end]))
    got = executor("e256").run(program, packed)
    np.testing.assert_array_equal(unpack(got, layers[-1].output), np.stack(want))


def narrow_block(bits: int, weight_bits: int, channels: int, dtype: str) -> list[Layer]:
    """Convolutions of all kinds, a residual, a sum and a pooling, on codes of few bits."""

    def value(name: str, channels: int = channels, size: int = 10) -> Value:
        return Value(name, (size, size, channels), dtype, bits)

    kind = {
        "dtype": dtype,
        "out": dtype,
        "bits": bits,
        "out_bits": bits,
        "weight_bits": weight_bits,
    }
    stem = conv((10, 10, 3), channels, **{**kind, "dtype": "uint8", "bits": 8}, seed=1)
    square = conv((10, 10, channels), channels, **kind, residual=dtype, seed=2)
    single = conv((10, 10, channels), channels, **kind, groups=channels, seed=3)
    point = conv((10, 10, channels), 2 * channels, (1, 1), padding=(0,) * 4, **kind, seed=4)
    groups = 2 if channels % 2 == 0 else 7
    grouped = conv((10, 10, 2 * channels), channels, **kind, groups=groups, seed=5)
    last = conv((5, 5, channels), 7, **{**kind, "out": "int32", "out_bits": 8}, seed=6)
    low, high = code_limits(value("x"))
    requantize = replace(
        square.requantize, residual=replace(square.requantize.residual, value=value("a"))
    )
    return [
        replace(stem, output=value("a")),
        replace(square, input=value("a"), output=value("b"), requantize=requantize),
        replace(single, input=value("b"), output=value("c")),
        replace(point, input=value("c"), output=value("d", 2 * channels)),
        replace(grouped, input=value("d", 2 * channels), output=value("e")),
        Add(
            "add",
            "",
            Operand(value("a"), 1, 3, 0),
            Operand(value("e"), 0, 1, 1),
            value("f"),
            2,
            0,
            low,
            high,
            HALF_UP,
        ),
        MaxPool2d("pool", "", value("f"), value("g", size=5), (3, 3), (2, 2), (1, 1, 0, 0)),
        replace(last, input=value("g", size=5)),
    ]


@pytest.mark.parametrize("machine", ["e256", "m2048"])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize(
    "bits", [(4, 4, 32), (2, 2, 32), (4, 2, 20), (2, 4, 24), (4, 8, 6), (8, 4, 7)]
)
def test_layers_of_few_bits(bits: tuple[int, int, int], dtype: str, machine: str) -> None:
    layers = narrow_block(*bits, dtype)
    spec = load_spec(machine)
    program = compile_layers(layers, [layers[0].inputs[0]], [layers[-1].output], spec)
    inputs, packed = images(layers[0])
    want = []
    for (x,) in inputs:
        known = {layers[0].inputs[0].name: x}
        for layer in layers:
            result = meaning(layer, [known[v.name] for v in layer.inputs])
            known[layer.output.name] = result.astype(layer.output.dtype)
        want.append(known[layers[-1].output.name])
    got = executor(machine).run(program, packed)
    np.testing.assert_array_equal(unpack(got, layers[-1].output), np.stack(want))
    np.testing.assert_array_equal(Simulator(spec).run(program, packed[0]), got[0])
    packs = bits[0] < 8 and bits[2] * bits[0] % 8 == 0
    widths = {i.act_bits for i in program.instructions if isinstance(i, isa.Gemm)}
    assert (isa.WIDTHS.index(bits[0]) in widths) == (packs or bits[0] == 8)


def test_arena_is_reused_once_nobody_reads_a_tensor() -> None:
    table = LAYERS["lut"]
    chain = [table]
    for n in range(6):
        name = Value(f"v{n}", table.output.shape, "uint8")
        chain.append(replace(table, input=chain[-1].output, output=name))
    program = compile_layers(chain, [table.input], [chain[-1].output], load_spec("e256"))
    length = -(-(9 * 7 * 5) // 64) * 64
    assert program.arena_bytes == length + 9 * 7 * 5


def test_each_instruction_but_halt_is_of_one_layer() -> None:
    layers = block()
    spec = load_spec("e256")
    program = compile_layers(layers, [layers[0].inputs[0]], [layers[-1].output], spec)
    positions = range(len(program.instructions))
    owned = [n for span in program.layers for n in span.of(positions)]
    assert sorted(owned) == list(positions[:-1])


def test_equal_constants_are_stored_once() -> None:
    first = conv((12, 12, 32), 32, seed=1)
    middle = Value("middle", first.output.shape, "uint8")
    again = replace(first, input=middle)
    one = compile_layers([first], list(first.inputs), [first.output], load_spec("e256"))
    two = compile_layers(
        [replace(first, output=middle), again],
        list(first.inputs),
        [again.output],
        load_spec("e256"),
    )
    assert two.constants == one.constants


def test_a_layer_that_fits_with_bytes_only_reads_bytes() -> None:
    """Two-bit codes fill four times the lanes, so that a tile has more weights than WGT holds."""
    spec = varied(load_spec("e256"), "sram.wgt", bytes=600)
    hidden = Value("hidden", (6, 6, 8), "uint8", 2)
    first = conv((6, 6, 8), 8, (1, 1), padding=(0, 0, 0, 0), weight_bits=2, out_bits=2)
    second = conv((6, 6, 8), 16, bits=2, weight_bits=2)
    narrow = Stored(second.input, 2), Stored(second.output)
    tensors = {stored.value.name: stored for stored in narrow}
    with pytest.raises(CapacityError):
        plan(Job(second, tensors, spec, spec.sram.act.bytes))
    layers = [replace(first, output=hidden), replace(second, input=hidden)]
    program = compile_layers(layers, [first.input], [second.output], spec)
    (x,) = random_inputs(first, 0)
    expected = meaning(layers[1], [meaning(layers[0], [x]).astype("uint8")])
    got = Simulator(spec).run(program, x.tobytes())
    np.testing.assert_array_equal(unpack(got, second.output)[0], expected)
