"""Weights that fill no tile of the array: what WGT has beside them counts for nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from machines import varied
from npu_layers import FLAT, conv, meaning, random_inputs

from targets.layers import Conv2d, Weights
from targets.npu.compiler import compile_layers
from targets.npu.convolution.geometry import ConvGeometry
from targets.npu.convolution.tile_cost import ConvTiling
from targets.npu.convolution.tiling_space import misfit
from targets.npu.execute.compiled import Executor
from targets.npu.kinds.table import KINDS
from targets.npu.machine.spec import load_spec
from targets.npu.schedule.job import Job
from targets.npu.simulate.simulator import Simulator
from targets.npu.simulate.state import Machine

E256 = load_spec("e256")
STORED = {
    "a kernel row is one reduction": (conv((5, 5, 3), 5), (9, 5)),
    "a reduction for each tap": (conv((5, 9, 9), 5, dilation=(1, 2)), (9, 5)),
    "of one channel": (conv((4, 4, 1), 1, (1, 1), padding=FLAT), (1, 2)),
    "two tiles of columns": (conv((4, 4, 5), 20), (15, 16)),
    "two tiles of lanes": (conv((4, 4, 20), 3), (16, 3)),
    "of 4 bits": (conv((4, 4, 6), 10, (1, 1), bits=4, weight_bits=4, out_bits=4), (6, 10)),
    "of 2 bits": (conv((4, 4, 4), 12, (1, 1), bits=2, weight_bits=2, out_bits=2), (4, 12)),
    "weights in whole bytes": (conv((4, 4, 5), 3, weight_bits=2), (15, 4)),
    "sums": (conv((4, 4, 5), 3, (1, 1), padding=FLAT, out="int32"), (5, 3)),
    "groups": (conv((4, 4, 12), 9, groups=3), (4, 3)),
    "depthwise": (conv((6, 6, 5), 5, groups=5), (1, 5)),
    "depthwise of 4 bits": (
        conv((6, 6, 6), 6, groups=6, bits=4, weight_bits=4, out_bits=4),
        (1, 6),
    ),
    "depthwise of one channel": (conv((6, 6, 1), 1, groups=1), (3, 2)),
    "a row that k1 can't count": (
        conv((1, 70, 3), 4, (1, 33), padding=FLAT, dilation=(1, 2)),
        (16, 4),
    ),
    "a column that k2 can't count": (conv((40, 1, 3), 4, (33, 1), padding=FLAT), (16, 4)),
}


def simulated(layer: Conv2d, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """On a machine whose WGT is full of other numbers."""
    program = compile_layers([layer], list(layer.inputs), [layer.output], E256)
    start = Machine.start

    def full(*arguments: object) -> Machine:
        machine = start(*arguments)
        machine.wgt[:] = np.random.default_rng(1).integers(0, 256, len(machine.wgt))
        return machine

    monkeypatch.setattr(Machine, "start", full)
    inputs = [x.reshape(-1).view(np.uint8) for x in random_inputs(layer)]
    got = Simulator(E256).run(program, np.concatenate(inputs))
    return got.view(layer.output.dtype)


@pytest.mark.parametrize("name", STORED)
def test_the_array_looks_at_no_other_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, stored = STORED[name]
    geometry = ConvGeometry(Job.alone(layer, E256))
    assert geometry.stored_tile == stored
    want = meaning(layer, random_inputs(layer))
    np.testing.assert_array_equal(simulated(layer, monkeypatch), want.reshape(-1))


def test_blocks_of_kernel_rows_are_as_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = conv((6, 6, 5), 5, groups=5)
    cut = ConvTiling(3, 1, 1, 3, 6, rows_outer=False, kernel_rows=2, in_pieces=True)
    assert not misfit(ConvGeometry(Job.alone(layer, E256)), cut)
    monkeypatch.setattr(KINDS[Conv2d], "choose", lambda job: cut)
    want = meaning(layer, random_inputs(layer))
    np.testing.assert_array_equal(simulated(layer, monkeypatch), want.reshape(-1))


def test_dram_holds_no_zeros_beside_them() -> None:
    """A network of few channels on an array of many."""
    spec = load_spec("m2048")
    layer = conv((8, 8, 5), 6)
    program = compile_layers([layer], list(layer.inputs), [layer.output], spec)
    right = layer.right
    assert isinstance(right, Weights)
    records = 6 * 12 + 64
    assert right.codes.size <= len(program.constants) <= right.codes.size + records


def test_weights_of_layers_before_are_none_of_a_layers() -> None:
    """In a WGT so small that it is used again; compiled, as it runs."""
    spec = varied(load_spec("m2048"), "sram.wgt", bytes=49152)
    first = conv((6, 6, 64), 64)
    sizes = ((64, 5), (5, 7), (7, 64), (64, 3))
    layers: list[Conv2d] = [first]
    for n, (inputs, outputs) in enumerate(sizes):
        layer = conv((6, 6, inputs), outputs, seed=n)
        output = replace(layer.output, name=f"v{n}")
        layers.append(replace(layer, input=layers[-1].output, output=output))
    program = compile_layers(layers, list(first.inputs), [layers[-1].output], spec)
    (image,) = random_inputs(first)
    value = image
    for layer in layers:
        value = meaning(layer, [value])
    got = Executor(spec).run(program, image.reshape(1, -1))
    np.testing.assert_array_equal(got.view(layers[-1].output.dtype), value.reshape(1, -1))
    assert Simulator(spec).run(program, image).tobytes() == got.tobytes()
