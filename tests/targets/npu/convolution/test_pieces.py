"""Layers of which no stripe fits ACT with all its channels and kernel rows: the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from npu_layers import conv, meaning, random_inputs

from targets.layers import Weights
from targets.npu.compiler import compile_layers
from targets.npu.constraints import refusal
from targets.npu.convolution.geometry import ConvGeometry
from targets.npu.convolution.tile_cost import k_blocks, piece_bytes
from targets.npu.convolution.tiling import act_bytes, tilings
from targets.npu.execute.compiled import Executor
from targets.npu.kinds.table import kind_of, plan
from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.npu.price.layer_costs import price
from targets.npu.schedule.job import Job
from targets.npu.simulate.simulator import Simulator

E256 = load_spec("e256")
FLAT = (0, 0, 0, 0)
WIDE = (4, 4, 4, 4)


def pooling(rows, columns, channels, **changes):
    """The mean of an image, as a layer: a window of ones as large as the image."""
    layer = conv(
        (rows, columns, channels),
        channels,
        (rows, columns),
        groups=channels,
        padding=FLAT,
        **changes,
    )
    assert isinstance(layer.right, Weights)
    return replace(layer, right=Weights(np.ones_like(layer.right.codes), 8))


LAYERS = {
    "depthwise": (conv((9, 12, 72), 72, groups=72), 3000),
    "depthwise, strided": (conv((13, 12, 40), 40, groups=40, strides=(2, 2), out="int8"), 2000),
    "depthwise, added to": (conv((9, 8, 72), 72, groups=72, residual="int8"), 2000),
    "pooling": (pooling(9, 9, 40, multiply=True), 1000),
    "pooling of many pixels": (pooling(40, 41, 24, multiply=True), 6000),
    "dilated": (conv((9, 8, 80), 24, dilation=(4, 4), padding=WIDE), 3000),
    "dilated, added to": (
        conv((9, 8, 72), 72, dilation=(4, 4), padding=WIDE, residual="uint8", fraction=2),
        3000,
    ),
    "dilated, strided": (conv((17, 9, 40), 24, dilation=(3, 2), strides=(2, 1)), 1500),
    "sums": (conv((9, 8, 72), 24, dilation=(4, 4), padding=WIDE, out="int32"), 3000),
    "groups": (conv((9, 8, 96), 48, groups=3, dilation=(2, 2)), 2500),
    "one pixel of many channels": (conv((1, 3, 900), 20, (1, 1), padding=FLAT), 1500),
    "four bits": (conv((9, 8, 80), 24, bits=4, weight_bits=4, out_bits=4), 2000),
    "depthwise of four bits": (conv((9, 8, 80), 80, groups=80, bits=4, weight_bits=4), 1500),
}
"""Layers, and bytes of ACT that are too few for a row of the image and its window."""


def machine(act, **sram):
    text = E256.model_dump()
    for name, size in {"act": act, **sram}.items():
        text["sram"][name]["bytes"] = size
    return type(E256).model_validate(text)


def packed(inputs):
    return np.concatenate([x.reshape(-1).view(np.uint8) for x in inputs])


def check(layer, spec, executor):
    """Compile the layer, which must be in pieces, and compare what it computes with NumPy."""
    assert plan(Job.alone(layer, spec)).choice.in_pieces
    program = compile_layers([layer], layer.inputs, [layer.output], spec)
    inputs = random_inputs(layer)
    got = executor(program, packed(inputs))
    codes = got.view(layer.output.dtype).reshape(layer.output.shape)
    np.testing.assert_array_equal(codes, meaning(layer, inputs))
    return program


@pytest.mark.parametrize("name", LAYERS)
def test_what_does_not_fit_whole_is_right_in_pieces(name):
    layer, act = LAYERS[name]
    spec = machine(act)
    assert refusal(layer, spec) is None
    check(layer, spec, Simulator(spec).run)


@pytest.mark.slow  # the executor of a machine with so little ACT has to be compiled
@pytest.mark.parametrize("name", ["dilated, added to", "pooling of many pixels"])
def test_the_executor_agrees(name):
    layer, _ = LAYERS[name]
    spec = machine(5000)
    executor = Executor(spec)
    check(layer, spec, lambda program, data: executor.run(program, data[None])[0])


@pytest.mark.parametrize("name", LAYERS)
def test_all_ways_to_cut_it_are_right(name):
    """Blocks of kernel rows, of channels and of tiles, whole ones and with a rest."""
    layer, act = LAYERS[name]
    job, inputs = Job.alone(layer, machine(act)), random_inputs(layer)
    kinds = {}
    for tiling in tilings(ConvGeometry(job)):
        assert tiling.in_pieces
        kinds.setdefault((*k_blocks(ConvGeometry(job), tiling), tiling.tiles), tiling)
    assert len(kinds) > 1
    taken = list(kinds.values())
    for tiling in [*taken[:: max(1, len(taken) // 4)], taken[-1]]:
        forced = _Forced(tiling)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(kind_of(layer)), "choose", forced)
            check_forced = compile_layers([layer], layer.inputs, [layer.output], job.spec)
        got = Simulator(job.spec).run(check_forced, packed(inputs))
        codes = got.view(layer.output.dtype).reshape(layer.output.shape)
        np.testing.assert_array_equal(codes, meaning(layer, inputs), err_msg=str(tiling))


class _Forced:
    """In place of a kind's choice."""

    def __init__(self, tiling):
        self.tiling = tiling

    def __get__(self, kind, _owner):
        return lambda _job: self.tiling


def test_of_what_fits_whole_only_the_channels_of_depthwise_layers_are_cut():
    for layer, _ in LAYERS.values():
        g = ConvGeometry(Job.alone(layer, E256))
        pieces = [t for t in tilings(g) if t.in_pieces]
        assert bool(pieces) == (g.depthwise and g.tiles > 1)
        assert all(k_blocks(g, t) == (1, 1) for t in pieces)


def test_a_depthwise_layer_of_many_channels_loads_no_row_twice():
    """Stripes of all 672 channels would be two rows high, and four rows would come for each."""
    layer = conv((20, 20, 672), 672, groups=672)
    choice = plan(Job.alone(layer, E256)).choice
    assert choice.in_pieces
    assert choice.rows > 2
    program = check(layer, E256, Simulator(E256).run)
    data = packed(random_inputs(layer))
    (got,) = Executor(E256).run(program, data[None])
    np.testing.assert_array_equal(got, Simulator(E256).run(program, data))


def test_weights_of_many_taps_come_in_blocks_of_kernel_rows():
    """The window of a pooling of all pixels takes more of WGT than there is."""
    layer = pooling(40, 41, 24, multiply=True)
    spec = machine(1 << 18, wgt=4096)
    check(layer, spec, Simulator(spec).run)


def test_a_layer_reads_a_piece_of_each_pixel():
    layer, act = LAYERS["dilated"]
    g = ConvGeometry(Job.alone(layer, machine(act)))
    for tiling in tilings(g):
        assert piece_bytes(g, tiling) == min(tiling.k0 * 16, 80)
        assert act_bytes(g, tiling) <= act


def test_a_large_window_is_few_instructions():
    """40 x 41 taps are two rows of 31 x 31, one of 22 x 31 and a rest; not one for each tap."""
    layer = pooling(40, 41, 16, multiply=True)
    program = compile_layers([layer], layer.inputs, [layer.output], E256)
    windows = [(i.kh, i.kw) for i in program.instructions if isinstance(i, isa.Depthwise)]
    assert windows == [(31, 31), (21, 31), (1, 28)]
    assert sum(kh * kw for kh, kw in windows) == 40 * 41
    inputs = random_inputs(layer)
    got = Simulator(E256).run(program, packed(inputs)).view(layer.output.dtype)
    np.testing.assert_array_equal(got.reshape(layer.output.shape), meaning(layer, inputs))


@pytest.mark.parametrize("kernel", [(40, 3), (3, 40), (40, 40)])
def test_a_large_window_on_a_larger_image_is_right(kernel):
    layer = conv((41, 42, 16), 16, kernel, groups=16, padding=FLAT)
    program = compile_layers([layer], layer.inputs, [layer.output], E256)
    inputs = random_inputs(layer)
    got = Simulator(E256).run(program, packed(inputs)).view(layer.output.dtype)
    np.testing.assert_array_equal(got.reshape(layer.output.shape), meaning(layer, inputs))


@pytest.mark.parametrize("name", ["depthwise", "dilated", "pooling of a detector"])
def test_estimates_of_pieces_are_near_the_priced_programs(name):
    large = {"pooling of a detector": (pooling(20, 20, 672, multiply=True), E256.sram.act.bytes)}
    layer, act = {**LAYERS, **large}[name]
    spec = machine(act)
    cycles = plan(Job.alone(layer, spec)).cost.cycles
    program = compile_layers([layer], layer.inputs, [layer.output], spec)
    assert 0.75 < cycles / price(program, spec).timeline.total < 1.3
