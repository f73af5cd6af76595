"""Cycles of single instructions on e256, with their derivations, and of layers."""

from dataclasses import replace

import pytest

from targets.npu import isa
from targets.npu.cycles import dram_bytes, instruction_cycles, layer_cycles
from targets.npu.program import LayerSpan, Program
from targets.npu.spec import load_spec

E256 = load_spec("e256")
DECODE = E256.issue.decode
FILL = E256.array.fill_cycles
GEMM = isa.Gemm(m0=16, m1=10, k0=2, k1=3, k2=3, nvalid=16)


def changed(part: str, **fields):
    return E256.model_copy(update={part: getattr(E256, part).model_copy(update=fields)})


def test_gemm_streams_pixels_through_every_tile():
    # 18 tiles of 160 pixels behind the first tile's weights, then the pipeline drains.
    expected = DECODE + E256.array.weight_cycles + 18 * 160 + FILL
    assert instruction_cycles(GEMM, E256) == expected


def test_gemm_of_few_pixels_waits_for_weights():
    spec = changed("array", weight_rows_per_cycle=1)  # 16 cycles for a tile's weights
    expected = DECODE + 16 + 18 * 16 + FILL
    assert instruction_cycles(replace(GEMM, m0=2, m1=2), spec) == expected


def test_one_weight_buffer_loads_between_tiles():
    spec = changed("array", weight_buffers=1)
    expected = DECODE + 18 * (E256.array.weight_cycles + 160 + FILL)
    assert instruction_cycles(GEMM, spec) == expected


def test_depthwise_visits_every_tap():
    instruction = isa.Depthwise(m0=8, m1=8, kw=3, kh=3, nvalid=16)
    assert instruction_cycles(instruction, changed("array", dw="stream")) == DECODE + 576 + FILL
    assert instruction_cycles(instruction, changed("array", dw="window")) == DECODE + 192 + FILL


@pytest.mark.parametrize("multiply", [0, 1])
def test_requantize_by_multiplier_has_fewer_lanes(multiply):
    instruction = isa.Requantize(m0=10, m1=10, nvalid=16, multiply=multiply)
    lanes = E256.vu.mult_lanes if multiply else E256.vu.shift_lanes
    expected = DECODE + 100 * -(-16 // lanes) + E256.vu.latency
    assert instruction_cycles(instruction, E256) == expected


@pytest.mark.parametrize(
    ("instruction", "elements", "lanes"),
    [
        (isa.Add(len=1000), 2000, E256.vu.elt_lanes),
        (isa.Pool(c=16, ox=4, oy=4, kw=3, kh=3), 16 * 16 * 9, E256.vu.pool_lanes),
        (isa.Lut(len=1001), 1001, E256.vu.lut_lanes),
    ],
    ids=["add", "pool", "lut"],
)
def test_elementwise_work(instruction, elements, lanes):
    expected = DECODE + -(-elements // lanes) + E256.vu.latency
    assert instruction_cycles(instruction, E256) == expected


def test_a_row_pays_whole_bursts_and_rows_that_touch_are_one():
    spec = changed("dma", burst=64, bytes_per_cycle=8, read_latency=50)
    apart = isa.Load(x_bytes=16, y=10, dram_ystride=100)
    together = isa.Load(x_bytes=16, y=10, dram_ystride=16)
    assert instruction_cycles(apart, spec) == DECODE + 10 * 8 + 50  # a 64-byte burst: 8 cycles
    assert instruction_cycles(together, spec) == DECODE + 3 * 8 + 50  # 160 bytes: 3 bursts
    assert dram_bytes(apart) == dram_bytes(together) == 160


def test_fill_and_control_touch_no_dram():
    for instruction in (isa.Load(fill=1, x_bytes=64), isa.Nop(on=1), isa.Halt()):
        assert instruction_cycles(instruction, E256) == DECODE
        assert dram_bytes(instruction) == 0


def test_a_layer_costs_what_its_busiest_unit_does():
    load, store = isa.Load(x_bytes=64), isa.Store(x_bytes=32)
    program = Program(
        machine="e256",
        digest="",
        instructions=(load, GEMM, GEMM, store, isa.Halt()),
        constants=b"",
        arena_bytes=0,
        input_bytes=0,
        output_bytes=0,
        layers=(
            LayerSpan(0, 4, "conv", "", "conv2d", 100),
            LayerSpan(4, 4, "reshape", "", "move", 0),
        ),
    )
    conv, reshape = layer_cycles(program, E256)
    assert conv.cycles == conv.unit_cycles[isa.MM] == 2 * instruction_cycles(GEMM, E256)
    assert conv.unit_cycles[isa.LD] == instruction_cycles(load, E256)
    assert (conv.bound, conv.dram_bytes) == ("mac array", 96)
    assert (reshape.cycles, reshape.bound) == (0, "")
