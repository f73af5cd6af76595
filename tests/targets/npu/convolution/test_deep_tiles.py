"""Tiles with more lanes than a GEMM counts: what they multiply lies in bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from machines import varied
from npu_layers import FLAT, conv, meaning, random_inputs

from targets.npu.compiler import compile_layers
from targets.npu.convolution.geometry import MAX_VALID, ConvGeometry
from targets.npu.convolution.tiling import no_tiling_fits
from targets.npu.convolution.tiling_space import misfit
from targets.npu.kinds.table import kind_of
from targets.npu.layer_plan import in_dram
from targets.npu.machine.spec import load_spec
from targets.npu.simulate.simulator import Simulator

DEEP = varied(varied(load_spec("e256"), "array", rows=128, cols=8), "sram.wgt", bytes=2**18)
"""512 lanes of 2-bit codes."""


@pytest.mark.parametrize(("channels", "bits"), [(512, 8), (496, 2)])
def test_layers_of_few_bits_behind_each_other(channels, bits):
    first = conv((4, 4, 8), channels, (1, 1), padding=FLAT, out_bits=2, seed=1)
    between = replace(first.output, name="between")
    last = conv((4, 4, channels), 16, (1, 1), padding=FLAT, bits=2, weight_bits=2, seed=2)
    first, last = replace(first, output=between), replace(last, input=between, name="last")
    planned = in_dram([first, last], {"x", "y"}, DEEP)
    assert {each.job.tensors["between"].bits for each in planned} == {bits}
    (image,) = random_inputs(first, 0)
    program = compile_layers([first, last], [first.input], [last.output], DEEP)
    got = Simulator(DEEP).run(program, image.view(np.uint8).reshape(-1))
    want = meaning(last, [meaning(first, [image])]).astype(np.uint8)
    np.testing.assert_array_equal(got, want.reshape(-1))


def test_a_tiling_says_that_it_is_too_deep():
    layer = conv((4, 4, 512), 16, (1, 1), padding=FLAT, bits=2, weight_bits=2)
    (planned, *_) = in_dram([layer], {"x", "y"}, DEEP)
    job = planned.job
    narrow = {name: replace(each, bits=each.value.bits) for name, each in job.tensors.items()}
    job = replace(job, tensors=narrow)
    g = ConvGeometry(job)
    assert g.most_valid == 512 > MAX_VALID == 511
    assert "512 lanes of the array have work, GEMM counts 511" in no_tiling_fits(g)
    assert "GEMM counts 511 lanes, 512 have work" in misfit(g, planned.choice)
    assert not kind_of(layer).space(job)


def test_passes_of_fewer_channels_are_no_deep_tiles():
    """Each group of channels that have a factor is a tile of its own."""
    layer = conv((4, 4, 512), 16, (1, 1), padding=FLAT, bits=2, weight_bits=2, products=(64, 8))
    (planned, *_) = in_dram([layer], {"x", "y"}, DEEP)
    job = planned.job
    narrow = {name: replace(each, bits=each.value.bits) for name, each in job.tensors.items()}
    job = replace(job, tensors=narrow)
    assert ConvGeometry(job).most_valid == 64
    assert kind_of(layer).space(job)
