"""Inputs in blocks of pixels: the same sums, packed by the host, where that is faster."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from npu_layers import FLAT, code_limits, conv, meaning, random_inputs

from targets.cpu.host import host_target
from targets.layers import MaxPool2d, Value
from targets.npu.compiler import compile_layers
from targets.npu.execute.host_calls import pack_inputs
from targets.npu.input_blocks import in_blocks, over_blocks
from targets.npu.machine.spec import load_spec
from targets.npu.price.layer_costs import price
from targets.npu.simulate.simulator import Simulator

E256, M2048 = load_spec("e256"), load_spec("m2048")

ALL = (3, 3, 3, 3)
CASES = {
    "stem": conv((24, 32, 3), 24, (7, 7), strides=(2, 2), padding=ALL),
    "signed": conv((20, 20, 3), 16, (3, 3), strides=(2, 2), dtype="int8"),
    "no_block_more": conv((21, 22, 3), 16, (5, 5), strides=(2, 2), padding=(1, 2, 1, 1)),
    "only_behind": conv((18, 18, 4), 8, (3, 3), strides=(2, 2), padding=(0, 0, 1, 1)),
    "patches": conv((18, 17, 3), 20, (4, 4), strides=(4, 4), padding=FLAT),
    "more_padding_than_a_block": conv((9, 9, 3), 8, (11, 11), strides=(4, 4), padding=(5,) * 4),
    "gaps_between_windows": conv((17, 17, 3), 8, (2, 2), strides=(3, 3), padding=(1, 0, 2, 2)),
    "single_pixels": conv((9, 9, 3), 8, (1, 1), strides=(2, 2), padding=FLAT),
    "rows": conv((1, 40, 6), 8, (1, 7), strides=(1, 2), padding=(0, 3, 0, 3)),
    "unequal": conv((20, 21, 3), 8, (6, 5), strides=(3, 2), padding=(2, 1, 2, 1)),
    "narrow": conv((16, 16, 3), 16, strides=(2, 2), bits=4, weight_bits=4, out_bits=4),
    "residual": conv((16, 16, 3), 16, strides=(2, 2), residual="uint8", multiply=True, fraction=2),
    "sums": conv((12, 12, 3), 10, strides=(2, 2), out="int32"),
}  # fmt: skip


def packed(layer, codes):
    """The tensor that a program reads in blocks; written by the host's function."""
    _, blocks = over_blocks(layer, layer.input)
    shape = blocks.packed(layer.input).shape
    out = tvm.runtime.tensor(np.zeros((1, np.prod(shape)), np.int8))
    pack = pack_inputs([layer.input], {layer.input.name: blocks})
    tvm.compile(pack, target=host_target())(tvm.runtime.tensor(codes[None]), out)
    return out.numpy().view(layer.input.dtype).reshape(shape)


@pytest.mark.parametrize("name", CASES)
def test_the_convolution_of_blocks_is_that_of_pixels(name):
    layer = CASES[name]
    written, _ = over_blocks(layer, layer.input)
    first, *others = random_inputs(layer)
    blocks = packed(layer, first)
    np.testing.assert_array_equal(
        meaning(written, [blocks, *others]), meaning(layer, [first, *others])
    )
    assert written.strides == (1, 1)
    assert written.macs == layer.macs


@pytest.mark.parametrize("name", ["stem", "signed", "patches", "residual", "rows", "sums"])
@pytest.mark.parametrize("spec", [E256, M2048], ids=lambda spec: spec.name)
def test_the_program_that_reads_blocks_computes_the_layer(name, spec):
    layer = CASES[name]
    written, _ = over_blocks(layer, layer.input)
    program = compile_layers([written], list(written.inputs), [written.output], spec)
    first, *others = random_inputs(layer)
    data = [packed(layer, first), *others]
    got = Simulator(spec).run(program, np.concatenate([x.reshape(-1).view(np.uint8) for x in data]))
    want = meaning(layer, [first, *others])
    np.testing.assert_array_equal(got.view(layer.output.dtype).reshape(want.shape), want)


def test_the_image_begins_with_a_block_and_its_border_is_the_zero_point():
    layer = replace(conv((5, 4, 1), 4, (7, 7), strides=(2, 2), padding=ALL), input_zero_point=9)
    codes = np.arange(20, dtype=np.uint8).reshape(5, 4, 1) + 100
    written, blocks = over_blocks(layer, layer.input)
    assert (blocks.count, blocks.before) == ((3, 2), (0, 0))
    assert written.weight_shape == (4, 4, 4, 4)
    want = np.full((6, 4), 9)
    want[:5] = codes[..., 0]
    want = want.reshape(3, 2, 2, 2).transpose(0, 2, 1, 3).reshape(3, 2, 4)
    np.testing.assert_array_equal(packed(layer, codes), want)


def chosen(layers, spec, outputs=None):
    inputs = [layers[0].inputs[0]]
    return in_blocks(layers, inputs, outputs or [layers[-1].output], spec)


STEM = conv((64, 64, 3), 32, (7, 7), strides=(2, 2), padding=ALL)
SMALL = conv((64, 64, 3), 32, (3, 3), strides=(2, 2))


def test_blocks_are_chosen_where_they_save_tiles():
    for layer, spec, better in (
        (STEM, M2048, True),
        (STEM, E256, True),
        (SMALL, M2048, True),
        (SMALL, E256, False),  # four tiles instead of three
    ):
        found = chosen([layer], spec)
        assert bool(found.blocks) == better
        assert found.inputs == [found.layers[0].input]
        if better:
            before, after = (
                price(compile_layers([x], [x.input], [x.output], spec), spec).timeline.total
                for x in (layer, found.layers[0])
            )
            assert after < before


def test_inputs_that_others_read_too_stay_as_they_are():
    pool = MaxPool2d("pool", "", STEM.input, Value("p", (32, 32, 3), "uint8"), (2, 2), (2, 2), FLAT)
    assert not chosen([STEM, pool], M2048, [STEM.output, pool.output]).blocks
    assert not chosen([STEM], M2048, [STEM.output, STEM.input]).blocks
    assert not chosen([pool], M2048).blocks


@pytest.mark.parametrize(
    "layer",
    [
        conv((64, 64, 3), 32),
        conv((64, 64, 3), 32, (7, 7), strides=(2, 2), dilation=(2, 2), padding=ALL),
        conv((64, 64, 4), 32, (7, 7), strides=(2, 2), groups=2, padding=ALL),
        conv((64, 64, 4), 32, (7, 7), strides=(2, 2), padding=ALL, products=(2, 32)),
        conv((1, 1, 3), 4, strides=(6, 6), padding=(4, 4, 0, 0)),
    ],
    ids=["no_stride", "dilated", "groups", "scaled_products", "all_windows_in_the_padding"],
)
def test_other_convolutions_read_pixels(layer):
    assert over_blocks(layer, layer.input) is None
    assert not chosen([layer], M2048).blocks


def test_an_input_that_is_added_to_its_own_convolution_stays_as_it_is():
    layer = conv((8, 8, 3), 3, (1, 1), strides=(2, 2), padding=(4,) * 4, residual="uint8")
    residual = replace(layer.requantize.residual, value=layer.input)
    layer = replace(layer, requantize=replace(layer.requantize, residual=residual))
    assert over_blocks(layer, layer.input) is not None
    assert not chosen([layer], E256).blocks
    assert not chosen([layer], M2048).blocks


def test_a_residual_from_outside_stays_as_it_is():
    layer = CASES["residual"]
    added = layer.requantize.residual.value
    found = in_blocks([layer], list(layer.inputs), [layer.output], M2048)
    assert list(found.blocks) == [layer.input.name]
    assert found.inputs == list(found.layers[0].inputs)
    assert found.inputs[1] == added
    assert code_limits(found.inputs[0]) == code_limits(layer.input)
