"""Tensors that become weights: which bytes are loaded how, and what that costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from npu_layers import conv, matrices, random_inputs

from targets.layers import Pairing, Weights
from targets.npu.compiler import compile_layers
from targets.npu.constraints import refusal
from targets.npu.convolution.geometry import ConvGeometry
from targets.npu.kinds.table import plan
from targets.npu.machine import isa
from targets.npu.machine.program import INPUTS
from targets.npu.machine.spec import load_spec
from targets.npu.price.layer_costs import price
from targets.npu.schedule.job import Job
from targets.npu.simulate.simulator import Simulator

E256 = load_spec("e256")
WGT = 1


def compiled(layer, spec=E256):
    return compile_layers([layer], list(layer.inputs), [layer.output], spec)


def weight_loads(program, *, fill=False):
    loads = [i for i in program.instructions if isinstance(i, isa.Load) and i.mem == WGT]
    return [i for i in loads if bool(i.fill) == fill]


def sizes(load):
    return load.z, load.y, load.x_bytes


def test_rows_are_turned_and_columns_are_not():
    """13 tokens of 2 heads of 24 or 32 channels: a tile of 13 columns, or two of 16."""
    (turned,) = weight_loads(compiled(matrices(9, 13, 48, 2, Pairing.ROWS)))
    assert turned.transpose
    assert (turned.region, sizes(turned)) == (INPUTS, (13, 2, 24))  # tokens, heads, channels
    assert (turned.dram_zstride, turned.dram_ystride) == (48, 24)  # all of it is one transfer
    assert (turned.spm_zstride, turned.spm_ystride) == (2 * 256, 16)  # two tiles of 16 lanes
    (turned,) = weight_loads(compiled(matrices(9, 13, 64, 2, Pairing.ROWS)))
    assert sizes(turned) == (13, 1, 64)  # heads fill their tiles: lanes go on
    (straight,) = weight_loads(compiled(matrices(9, 13, 64, 2, Pairing.COLUMNS)))
    assert not straight.transpose
    assert sizes(straight) == (13, 4, 16)  # tokens, tiles of both heads, channels
    assert (straight.dram_zstride, straight.dram_ystride) == (64, 16)  # runs that touch
    assert (straight.spm_zstride, straight.spm_ystride) == (16, 256)


def test_lanes_without_an_element_are_zero():
    """Of 16 lanes 13 are tokens; the last three of each of four tiles are cleared."""
    (fill,) = weight_loads(compiled(matrices(9, 13, 64, 2, Pairing.COLUMNS)), fill=True)
    assert sizes(fill) == (1, 4, 3 * 16)
    assert fill.padval == 0
    assert weight_loads(compiled(matrices(9, 16, 64, 2, Pairing.COLUMNS)), fill=True) == []


def test_tiles_at_the_end_of_a_head_come_by_themselves():
    """24 channels of a head are a tile of 16 and one of 8, of 3 heads."""
    whole, rest = weight_loads(compiled(matrices(9, 13, 72, 3, Pairing.COLUMNS)))
    assert (sizes(whole), sizes(rest)) == ((3, 13, 16), (3, 13, 8))
    assert rest.dram_off - whole.dram_off == 16
    assert whole.dram_zstride == rest.dram_zstride == 24


@pytest.mark.parametrize("pairing", [Pairing.ROWS, Pairing.COLUMNS])
def test_it_costs_what_constant_weights_cost_but_for_their_loading(pairing):
    """Four heads of 64 tokens and 64 channels are 16 tiles of 4 blocks of 16 lanes, 64 pixels."""
    layer = matrices(64, 64, 256, 4, pairing)
    priced = price(compiled(layer), E256)
    work = priced.layers[0].units[isa.MM]["work"]
    assert work == 16 * 4 * 64
    assert priced.layers[0].macs == 4 * 64**3 == 256 * work
    loads = weight_loads(priced.program)
    assert sum(i.x_bytes * i.y * i.z for i in loads) == 64 * 256  # each byte once


def test_the_cycles_of_a_small_product():
    """By hand, for 4 tokens times 8 of 16 channels: one GEMM of one tile, one REQ."""
    layer = matrices(4, 8, 16, 1, Pairing.ROWS)
    program = compiled(layer)
    kinds = [i.mnemonic for i in program.instructions]
    assert kinds == ["LD", "LD", "LD", "GEMM", "REQ", "ST", "HALT"]
    timeline = price(program, E256).timeline
    weights, parameters, tokens, gemm, req, st, _ = timeline.runs
    assert weights.bus[1] - weights.bus[0] == 128 // 8
    assert weights.done - weights.bus[1] == 16  # the last square of 16 lines
    assert parameters.bus[1] - parameters.bus[0] == 128 // 8  # 96 bytes are two bursts
    assert tokens.bus[1] - tokens.bus[0] == 64 // 8
    assert gemm.work[1] - gemm.work[0] == 16  # as long as its weights take
    assert gemm.done - gemm.work[1] == 30
    assert req.work == (gemm.done + 4, gemm.done + 4 + 4)  # decoded, then a pixel a cycle
    assert timeline.total > st.bus[1] + 100


def test_a_tensor_times_itself():
    """Both operands are one tensor, which is read twice."""
    layer = matrices(11, 11, 24, 3, Pairing.ROWS)
    layer = replace(layer, right=replace(layer.right, value=layer.input))
    (x,) = random_inputs(matrices(11, 11, 24, 3, Pairing.ROWS))[:1]
    program = compile_layers([layer], [layer.input], [layer.output], E256)
    got = Simulator(E256).run(program, x.tobytes()).view(np.int8)
    twin = matrices(11, 11, 24, 3, Pairing.ROWS)
    want = Simulator(E256).run(compiled(twin), x.tobytes() * 2).view(np.int8)
    np.testing.assert_array_equal(got, want)


def test_many_tokens_share_the_records_of_one_tile():
    """A record for each of 1,000 tokens would not fit half of PAR."""
    layer = matrices(40, 1000, 48, 1, Pairing.ROWS)
    assert refusal(layer, E256) is None
    loads = [i for i in compiled(layer).instructions if isinstance(i, isa.Load) and i.mem == 3]
    assert [i.x_bytes for i in loads] == [16 * 12]
    heads = replace(matrices(40, 700, 96, 2, Pairing.ROWS), bias=np.arange(1400, dtype=np.int32))
    words = "the records of one group (8448 bytes) exceed half of PAR (4096)"
    assert words in str(refusal(heads, E256))


@pytest.mark.parametrize("what", ["bias", "multiplier", "shift", "residual"])
def test_columns_that_differ_have_records_of_their_own(what):
    layer = matrices(4, 40, 48, 1, Pairing.COLUMNS, residual="int8")
    assert ConvGeometry(Job.alone(layer, E256)).one_record
    requantize = layer.requantize
    one_more = np.arange(48, dtype=np.int32) == 47
    if what == "bias":
        layer = replace(layer, bias=layer.bias + one_more)
    elif what == "residual":
        residual = requantize.residual
        residual = replace(residual, shift=residual.shift + one_more)
        layer = replace(layer, requantize=replace(requantize, residual=residual))
    else:
        changed = {what: getattr(requantize, what) + one_more}
        layer = replace(layer, requantize=replace(requantize, **changed))
    assert not ConvGeometry(Job.alone(layer, E256)).one_record


def test_a_row_of_tokens_is_cut_like_rows():
    """197 tokens of 12 heads: a row of scores would take more than ACT."""
    layer = matrices(197, 197, 768, 12, Pairing.COLUMNS, dtype="uint8")
    assert E256.sram.act.bytes < 197 * 12 * 197
    assert refusal(layer, E256) is None
    dense = conv((1, 256, 512), 512, (1, 1), padding=(0, 0, 0, 0))
    column = conv((256, 1, 512), 512, (1, 1), padding=(0, 0, 0, 0))
    row, upright = (plan(Job.alone(each, E256)) for each in (dense, column))
    assert isinstance(dense.right, Weights)
    assert (row.choice, row.cost) == (upright.choice, upright.cost)
    assert 1 < row.choice.rows < 256
