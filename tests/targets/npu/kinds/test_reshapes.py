"""A reshape costs nothing where bytes can be shared, and is a copy where they can't."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from machines import varied
from npu_layers import FLAT, conv, meaning, random_inputs

from targets.layers import Layer, Move, Piece, Value
from targets.npu.compiler import compile_layers
from targets.npu.machine.program import Program
from targets.npu.machine.spec import load_spec
from targets.npu.simulate.simulator import Simulator

E256 = load_spec("e256")


def reshape(source: Value, name: str) -> Move:
    shape = (1, 1, int(np.prod(source.shape)))
    piece = Piece.box(source, (0, 0, 0), (1, 1, 1), source.shape, (0, 0, 0))
    return Move(name, "", (piece,), replace(source, name=name, shape=shape), 0, reshape=True)


def run(program: Program, image: np.ndarray) -> np.ndarray:
    return Simulator(E256).run(program, image)


def compiled(layers: list[Layer], *outputs: Value) -> Program:
    return compile_layers(layers, [layers[0].inputs[0]], outputs, E256)


def test_an_input_reshaped_into_an_output_is_copied() -> None:
    flat = reshape(Value("x", (5, 7, 3), "uint8"), "flat")
    image = np.arange(105, dtype=np.uint8)
    np.testing.assert_array_equal(run(compiled([flat], flat.output), image), image)


def test_a_chain_of_reshapes_is_copied_once() -> None:
    first = reshape(Value("x", (5, 7, 3), "uint8"), "first")
    second = reshape(first.output, "second")
    program = compiled([first, second], second.output)
    image = np.arange(105, dtype=np.uint8)
    np.testing.assert_array_equal(run(program, image), image)
    assert [bool(span.runs) for span in program.layers] == [False, True]


def test_an_output_that_is_also_reshaped_into_outputs_is_copied() -> None:
    layer = conv((6, 6, 8), 8)
    flat, again = reshape(layer.output, "flat"), reshape(layer.output, "again")
    (image,) = random_inputs(layer, 0)
    want = meaning(layer, [image]).astype(np.uint8).reshape(-1)
    program = compiled([layer, flat, again], layer.output, flat.output, again.output)
    np.testing.assert_array_equal(run(program, image), np.tile(want, 3))


def test_a_copied_reshape_goes_through_act_pixel_by_pixel() -> None:
    """A row of tokens may be longer than ACT, and whoever asks for both tensors gets both."""
    spec = varied(load_spec("e256"), "sram.act", bytes=2048)
    layer = conv((1, 200, 8), 16, (1, 1), padding=FLAT)
    flat = reshape(layer.output, "flat")
    (image,) = random_inputs(layer, 0)
    want = meaning(layer, [image]).astype(np.uint8).reshape(-1)
    program = compile_layers([layer, flat], [layer.input], [layer.output, flat.output], spec)
    assert spec.sram.act.bytes < 200 * 16
    np.testing.assert_array_equal(Simulator(spec).run(program, image), np.tile(want, 2))


def test_a_reshape_between_layers_has_no_instruction() -> None:
    layer = conv((6, 6, 8), 8)
    flat = reshape(layer.output, "flat")
    program = compiled([layer, flat], flat.output)
    assert program.layers[1].runs == ()
