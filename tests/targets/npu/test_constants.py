"""Tensors that belong to the network: read among the constants, copied only if they leave."""

from __future__ import annotations

import numpy as np
from npu_layers import code_limits, conv, meaning

from relay_passes.place import NO_INPUT, refusals
from relay_passes.read_layers import IntegerNetwork
from targets.layers import Add, Constant, Move, Operand, Piece, Value
from targets.npu.compiler import compile_layers
from targets.npu.execute.compiled import Executor
from targets.npu.machine import isa
from targets.npu.machine.program import CONSTANTS, INPUTS, OUTPUTS
from targets.npu.machine.spec import load_spec
from targets.npu.simulate.simulator import Simulator
from targets.rounding import HALF_UP

E256 = load_spec("e256")
WHOLE = {"start": (0, 0, 0), "step": (1, 1, 1)}


def held(name, shape, seed):
    codes = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    return Constant(name, "", Value(name, shape, "uint8"), codes)


def embedded():
    """A class token in front of the pixels, a position added to each, and a reshape of those."""
    x = Value("x", (1, 6, 12), "uint8")
    token, position = held("token", (1, 1, 12), 1), held("position", (7, 1, 12), 2)
    row = Value("row", (1, 7, 12), "uint8")
    whole = Piece.box(position.output, **WHOLE, size=(7, 1, 12), at=(0, 0, 0))
    joined = Value("joined", (1, 7, 12), "uint8")
    pieces = (
        Piece.box(token.output, **WHOLE, size=(1, 1, 12), at=(0, 0, 0)),
        Piece.box(x, **WHOLE, size=(1, 6, 12), at=(0, 1, 0)),
    )
    total = Value("total", (1, 7, 12), "uint8")
    sides = Operand(joined, 0, 1, 0), Operand(row, 128, 1, 0)
    layers = [
        token,
        position,
        Move("reshape", "", (whole,), row, 0, reshape=True),
        Move("cat", "", pieces, joined, 0),
        Add("add", "", *sides, total, 1, 3, *code_limits(total), HALF_UP),
    ]
    return x, layers


def check(x, layers, outputs):
    program = compile_layers(layers, [x], outputs, E256)
    codes = np.random.default_rng(0).integers(0, 256, x.shape).astype(np.uint8)
    known = {x.name: codes}
    for layer in layers:
        known[layer.output.name] = meaning(layer, [known[v.name] for v in layer.inputs])
    want = np.concatenate([known[v.name].astype(np.uint8).reshape(-1) for v in outputs])
    np.testing.assert_array_equal(Simulator(E256).run(program, codes), want)
    got = Executor(E256).run(program, codes.reshape(1, -1).view(np.int8))
    np.testing.assert_array_equal(got.view(np.uint8)[0], want)
    return program


def test_constants_are_read_where_they_lie():
    x, layers = embedded()
    program = check(x, layers, [layers[-1].output])
    loads = [i for i in program.instructions if isinstance(i, isa.Load)]
    assert {i.region for i in loads[:2]} == {CONSTANTS, INPUTS}
    assert len(program.constants) == 64 + 7 * 12
    assert [s.runs for s in program.layers[:3]] == [()] * 3
    assert program.arena_bytes == 7 * 12  # of what is joined


def test_constants_that_leave_are_copied():
    x, layers = embedded()
    token, position, row = (layer.output for layer in layers[:3])
    program = check(x, layers, [layers[-1].output, token])
    stores = [i for i in program.instructions if isinstance(i, isa.Store) and i.region == OUTPUTS]
    assert [i.x_bytes for i in stores if i.dram_off >= 84] == [12]
    check(x, layers, [layers[-1].output, row])
    check(x, layers, [layers[-1].output, row, position])


def test_constants_alone_are_no_program():
    """The first has nobody beside it on the NPU but the refused addition; the second has."""
    x, layers = embedded()
    token, position, *_ = layers
    total = Value("total", (1, 1, 12), "int32")
    sides = Operand(token.output, 0, 1, 0), Operand(token.output, 0, 1, 0)
    refused = Add("add", "", *sides, total, 1, 3, 0, 9, HALF_UP)
    last = conv((1, 6, 12), 8, (1, 1), padding=(0, 0, 0, 0))
    network = IntegerNetwork((token, refused, position, last), (x,), (last.output,))
    first, why, *rest = refusals(network, E256)
    assert first == NO_INPUT
    assert "total is int32" in str(why)
    assert rest == [None, None]
