"""Cycles of single instructions on e256 and variants of it, with their derivations."""

from dataclasses import replace

import pytest
from machines import varied

from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.npu.price.durations import Duration, duration

E256 = load_spec("e256")
GEMM = isa.Gemm(m0=16, m1=10, k0=2, k1=3, k2=3, nvalid=16, kvalid=16)


def test_gemm_streams_pixels_through_every_tile():
    # 18 tiles of 160 pixels; 16 rows of weights; a systolic array of 16 x 16 drains in 30.
    assert duration(GEMM, E256) == Duration(warm_up=16, work=18 * 160, spare=160, drain=30)


def test_gemm_of_few_pixels_waits_for_weights_or_for_its_accumulator_rows():
    few = replace(GEMM, m0=2, m1=3)
    assert duration(few, E256).work == 18 * 16
    fast = varied(E256, "array", weight_rows_per_cycle=8)
    assert duration(few, fast).work == 18 * 6
    assert duration(replace(GEMM, m0=2, m1=1), fast).work == 18 * 4
    assert duration(few, fast).warm_up == 2


def test_one_weight_buffer_loads_streams_and_drains_tile_by_tile():
    cost = duration(GEMM, varied(E256, "array", weight_buffers=1))
    assert cost == Duration(work=18 * (16 + 160 + 30))


def test_held_weights_are_one_pass():
    held = replace(GEMM, wgt_hold=1, k0=1, k1=1, k2=1)
    assert duration(held, E256) == Duration(work=160, spare=160, drain=30)
    assert duration(replace(held, m0=1, m1=1), E256).work == 4


def test_adder_trees_drain_in_their_depth():
    tree = varied(E256, "array", kind="tree", rows=64)
    assert duration(GEMM, tree).drain == 6 + 3
    assert duration(GEMM, tree).warm_up == 64


def test_depthwise_visits_every_tap_or_slides():
    i = isa.Depthwise(m0=8, m1=8, kw=3, kh=3, nvalid=16, as_m0=32, as_kx=32)
    window = varied(E256, "array", dw="window")
    assert duration(i, varied(E256, "array", dw="stream")).work == 64 * 9
    assert duration(i, window).work == 64 * 3
    assert duration(replace(i, as_m0=64), window).work == 64 * 6
    assert duration(replace(i, as_m0=128), window).work == 64 * 9  # no column is used twice


def test_sliding_registers_need_neighbours_in_a_row():
    window = varied(E256, "array", dw="window")
    column = isa.Depthwise(m0=1, m1=8, kw=3, kh=3, nvalid=16, as_m0=0, as_kx=32)
    dilated = isa.Depthwise(m0=8, m1=1, kw=3, kh=3, nvalid=16, as_m0=32, as_kx=64)
    assert duration(column, window).work == duration(dilated, window).work == 8 * 9


def test_a_transposed_load_writes_its_last_bursts_after_the_bus():
    # 40 pixels of 2 heads of 48 bytes: two bursts of 64 bytes each, 16 cycles. Columns of 40 bytes
    # are 3 lines.
    turned = isa.Load(transpose=1, mem=1, x_bytes=48, y=2, z=40, dram_ystride=48, dram_zstride=192)
    assert duration(turned, E256) == Duration(latency=100, bus=640, drain=64)
    apart = replace(turned, dram_ystride=96)
    assert duration(apart, E256) == Duration(latency=100, bus=640, drain=48)
    assert duration(replace(apart, x_bytes=5), E256).drain == 5
    fast = varied(E256, "dma", bytes_per_cycle=64)
    assert duration(turned, fast) == Duration(latency=100, bus=80, drain=3 * 96 - 80)


@pytest.mark.parametrize(("multiply", "work"), [(0, 100), (1, 400)])
def test_requantize_by_multiplier_has_fewer_lanes(multiply, work):
    i = isa.Requantize(m0=10, m1=10, nvalid=16, multiply=multiply)
    assert duration(i, E256) == Duration(work=work, drain=6)


def test_requantize_pays_whole_passes_of_its_lanes():
    i = isa.Requantize(m0=10, m1=10, nvalid=5, multiply=1)
    assert duration(i, E256).work == 100 * 2


@pytest.mark.parametrize(("mult", "codes"), [(1, 25), (3, 50)])
def test_a_softmax_waits_for_what_each_pass_finds(mult, codes):
    """100 codes: 16 compared, then 4 looked up a cycle, 16 bits of a reciprocal, 4 products."""
    i = isa.Softmax(len=100, m0=3, m1=2, mult=mult)
    assert duration(i, E256) == Duration(work=6 * (7 + 6 + 25 + 6 + 16 + codes), drain=6)
    slow = varied(E256, "vu", lut_lanes=1)
    assert duration(i, slow).work == 6 * (7 + 6 + 100 + 6 + 16 + 100)
    by_five = varied(E256, "vu", root_bits=5)
    assert duration(i, by_five).work == 6 * (7 + 6 + 25 + 6 + 4 + codes)


@pytest.mark.parametrize(("mult", "codes"), [(1, 50), (3, 75)])
def test_a_layer_norm_needs_a_root_and_two_products_of_each_code(mult, codes):
    """100 codes: 16 added a cycle, 26 bits of a root, 16 of a reciprocal, 4 products a cycle."""
    i = isa.Norm(len=100, m0=3, m1=2, mult=mult)
    assert duration(i, E256) == Duration(work=6 * (7 + 6 + 26 + 16 + codes), drain=6)
    by_five = varied(E256, "vu", root_bits=5)
    assert duration(i, by_five).work == 6 * (7 + 6 + 6 + 4 + codes)


def test_a_norm_in_parts_adds_up_the_whole_row_for_each():
    whole, part = isa.Norm(len=100, m0=3), isa.Norm(len=100, m0=3, cuts=4, part=2)
    assert duration(whole, E256).work == 3 * (7 + 6 + 26 + 16 + 50)
    assert duration(part, E256).work == 3 * (7 + 6 + 26 + 16 + 10)


def test_rows_are_paid_one_by_one():
    many, long = isa.Softmax(len=8, m0=100), isa.Softmax(len=800)
    assert duration(many, E256).work == 100 * (1 + 6 + 2 + 6 + 16 + 2)
    assert duration(long, E256).work == 50 + 6 + 200 + 6 + 16 + 200


@pytest.mark.parametrize(
    ("instruction", "work"),
    [
        (isa.Add(len=1000), 125),
        (isa.Add(len=1001), 126),
        (isa.Multiply(len=500, rows=2), 125),
        (isa.Multiply(len=500, rows=2, mult=2), 250),
        (isa.Pool(c=16, ox=4, oy=4, kw=3, kh=3), 16 * 9),
        (isa.Lut(len=1001), 251),
    ],
    ids=["add", "add_rest", "multiply", "multiply_scaled", "pool", "lut"],
)
def test_elementwise_work(instruction, work):
    assert duration(instruction, E256) == Duration(work=work, drain=6)


def test_a_row_pays_whole_bursts_and_rows_that_touch_are_one():
    apart = isa.Load(x_bytes=16, y=10, dram_ystride=100)
    together = replace(apart, dram_ystride=16)
    assert duration(apart, E256) == Duration(latency=100, bus=10 * 8)
    assert duration(together, E256).bus == 3 * 8  # 160 bytes: 3 bursts of 64 at 8 per cycle


def test_planes_that_touch_are_one_transfer():
    planes = isa.Load(x_bytes=16, y=4, z=5, dram_ystride=16, dram_zstride=64)
    assert duration(planes, E256).bus == 5 * 8
    assert duration(replace(planes, dram_zstride=100), E256).bus == 5 * 8
    assert duration(replace(planes, y=3, dram_zstride=48), E256).bus == 4 * 8  # 240 bytes
    assert duration(replace(planes, y=3, dram_zstride=49), E256).bus == 5 * 8
    assert duration(replace(planes, y=1, dram_zstride=16), E256).bus == 2 * 8  # 80 bytes


def test_stores_answer_late():
    assert duration(isa.Store(x_bytes=65), E256) == Duration(bus=16, drain=100)


def test_a_fill_writes_a_line_per_cycle_border_included():
    assert duration(isa.Load(fill=1, x_bytes=64), E256) == Duration(work=4)
    rows = isa.Load(fill=1, x_bytes=24, y=5, spm_ystride=100, pad_x0=8, pad_y1=1)
    assert duration(rows, E256).work == 6 * 2
    assert duration(replace(rows, spm_ystride=32), E256).work == 12
    assert duration(replace(rows, x_bytes=17, spm_ystride=25), E256).work == 10  # 150 bytes
    wide = varied(E256, "sram.acc", line=32)
    assert duration(isa.Load(fill=1, mem=2, x_bytes=64), wide).work == 2


def test_control_takes_only_its_decoding():
    assert duration(isa.Nop(on=1), E256) == duration(isa.Halt(), E256) == Duration()
