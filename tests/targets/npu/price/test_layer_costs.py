"""Layers: windows that partition the total, what bounds them, energy counted by hand."""

from dataclasses import replace

import pytest
from machines import varied
from npu_layers import LAYERS

from targets.errors import SpecError
from targets.npu.compiler import compile_layers
from targets.npu.machine import isa
from targets.npu.machine.program import LayerSpan, Program
from targets.npu.machine.spec import load_spec
from targets.npu.price.accesses import accesses
from targets.npu.price.energy import picojoules
from targets.npu.price.layer_costs import price

E256 = load_spec("e256")
GEMM = isa.Gemm(m0=10, m1=10, k0=4, nvalid=16, kvalid=16, acc_init=1)


def program(*instructions, layers=None):
    spans = layers or [(0, len(instructions))]
    return Program(
        machine="e256",
        digest="",
        instructions=(*instructions, isa.Halt()),
        constants=b"",
        arena_bytes=0,
        input_bytes=0,
        output_bytes=0,
        layers=tuple(
            LayerSpan(
                (span,) if span[0] < span[1] else (),
                f"layer{n}",
                "",
                "",
                products(instructions[slice(*span)]),
            )
            for n, span in enumerate(spans)
        ),
    )


def products(instructions):
    return sum(accesses(i, E256).macs for i in instructions)


def cost(*instructions, spec=E256):
    return price(program(*instructions), spec).layers[0]


def test_windows_partition_the_total():
    load, store = isa.Load(x_bytes=6400, push=2), isa.Store(x_bytes=640, pop=4)
    gemm, req = replace(GEMM, pop=1, push=4), isa.Requantize(m0=50, nvalid=16, pop=2, push=8)
    layer = (load, gemm, req, store)
    priced = price(program(*layer, *layer, layers=[(0, 4), (4, 4), (4, 8), (8, 8)]), E256)
    first, empty, second, last = priced.layers
    assert (first.begin, first.end) == (0, priced.timeline.runs[3].done)
    assert empty.cycles == last.cycles == 0
    assert (empty.bound, empty.utilization) == ("", 0.0)
    assert second.begin == first.end
    assert second.end == priced.timeline.total == last.end
    for layer_cost in priced.layers:
        for classes in layer_cost.units:
            assert sum(classes.values()) == layer_cost.cycles
    assert first.macs == second.macs == 100 * 64 * 16
    assert first.dram_bytes == 6400 + 640 + 4 * 32
    assert first.bus_cycles + second.bus_cycles == 2 * (6400 + 640) // 8
    fetched = sum(end - begin for begin, end in priced.timeline.fetch)
    assert first.fetch_cycles + second.fetch_cycles == fetched == 5 * 8


def test_real_layers_partition_too():
    layer = LAYERS["weights_in_blocks"]
    priced = price(compile_layers([layer], layer.inputs, [layer.output], E256), E256)
    (only,) = priced.layers
    assert only.cycles == priced.timeline.total
    assert all(sum(unit.values()) == only.cycles for unit in only.units)
    assert only.macs == layer.macs
    assert priced.ideal_cycles == layer.macs / 256


@pytest.mark.parametrize(
    ("instructions", "bound"),
    [
        ([replace(GEMM, k0=200)], "MAC array"),
        ([isa.Load(x_bytes=60000)], "DMA"),
        ([isa.Requantize(m0=999, nvalid=16)], "requantize"),
        ([isa.Lut(len=60000)], "vector unit"),
        ([isa.Softmax(len=900, m0=90)], "vector unit"),
        ([isa.Nop(on=1)] * 40, "issue"),
        ([isa.Load(x_bytes=64, push=2), replace(GEMM, k0=1, m0=1, pop=1)], "latency"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_bounds_a_layer(instructions, bound):
    spec = varied(E256, "dma", read_latency=1000) if bound == "latency" else E256
    assert cost(*instructions, spec=spec).bound == bound


def test_utilization_counts_at_the_rate_of_the_widths():
    gemm = replace(GEMM, m0=100, m1=10)
    eight = cost(gemm)
    four = cost(replace(gemm, act_bits=1, wgt_bits=1, kvalid=32))
    assert four.macs == 4 * 1000 * 32 * 16
    assert four.cycles == eight.cycles
    assert four.utilization == eight.utilization == pytest.approx(4000 / eight.cycles, abs=1e-4)


def test_accesses_of_a_gemm():
    # k0 = 3 tiles of which the last has 5 lanes, at 2 x 2 taps; 7 columns; the sums are fresh.
    gemm = isa.Gemm(m0=4, m1=5, k0=3, k1=2, k2=2, kvalid=5, nvalid=7, acc_init=1)
    depth = 4 * (2 * 16 + 5)
    count = accesses(gemm, E256)
    assert count.macs == 20 * depth * 7
    assert (count.act_elements, count.wgt_elements) == (20 * depth, depth * 7)
    assert count.acc_sums == 20 * 7 * 12
    assert count.acc_bytes == 4 * 20 * 7 * (12 + 11)
    assert count.spm_bytes == 20 * depth + depth * 7
    assert accesses(replace(gemm, acc_init=0), E256).acc_bytes == 4 * 20 * 7 * 24


@pytest.mark.parametrize(
    "name", ["square", "grouped", "dilated_asymmetric", "weights_of_4_bits", "dense_in_k_blocks"]
)
def test_energy_counts_the_products_of_a_layer(name):
    """Lanes and columns of the array for which the layer has no weights do no work."""
    layer = LAYERS[name]
    program = compile_layers([layer], layer.inputs, [layer.output], E256)
    assert sum(accesses(i, E256).macs for i in program.instructions) == layer.macs


def test_accesses_of_others():
    load = isa.Load(x_bytes=10, y=3, z=2, pad_x0=1, pad_y1=1)
    assert (accesses(load, E256).dram_bytes, accesses(load, E256).spm_bytes) == (60, 11 * 4 * 2)
    assert accesses(replace(load, fill=1), E256).dram_bytes == 0
    req = isa.Requantize(m0=9, nvalid=16, residual=1, out_bits=1)
    assert accesses(req, E256).spm_bytes == 9 * 8 + 9 * 16 + 16 * 12
    four = replace(req, res_bits=1, nvalid=15)
    assert accesses(four, E256).spm_bytes == 9 * 8 + 9 * 8 + 15 * 12
    assert accesses(req, E256).acc_bytes == 4 * 9 * 16
    pool = isa.Pool(c=8, ox=3, oy=3, kw=2, kh=2)
    assert accesses(pool, E256).spm_bytes == 8 * 9 * 5
    assert accesses(replace(pool, elem_bits=1, c=9), E256).spm_bytes == 5 * 9 * 5
    assert accesses(isa.Add(len=9, elem_bits=2), E256).spm_bytes == 3 * 3


def test_accesses_of_rows():
    """Three passes over codes, two over exponentials of two bytes; two passes, and six bytes."""
    softmax = accesses(isa.Softmax(len=10, m0=3, m1=2), E256)
    assert (softmax.spm_bytes, softmax.outputs) == (60 * (3 + 1 + 4), 60)
    norm = accesses(isa.Norm(len=10, m0=3, m1=2), E256)
    assert (norm.spm_bytes, norm.outputs) == (60 * (2 + 1 + 6) + 8, 60)
    part = accesses(isa.Norm(len=10, m0=3, m1=2, cuts=1), E256)
    assert (part.spm_bytes, part.outputs) == (60 + 30 * (1 + 1 + 6) + 8, 30)
    assert softmax.macs == norm.macs == 0


def test_energy_by_hand():
    table = E256.energy.named("horowitz45")
    load = isa.Load(x_bytes=64)
    assert picojoules(load, E256, table) == 64 * 1.25 + (64 + 32) * 162.5
    gemm = isa.Gemm(m0=10, kvalid=16, nvalid=16, acc_init=1)
    moved = 10 * 16 + 256 + 4 * 160
    expected = 2560 * 0.3 + moved * 1.25 + 32 * 162.5
    assert picojoules(gemm, E256, table) == pytest.approx(expected)
    narrow = replace(gemm, act_bits=1, wgt_bits=2)  # 4 x 2 bits: an eighth of the multiplier
    assert picojoules(narrow, E256, table) == pytest.approx(
        2560 * (0.2 / 8 + 0.1) + (10 * 16 / 2 + 256 / 4 + 640) * 1.25 + 32 * 162.5
    )
    req = isa.Requantize(m0=10, nvalid=16)
    slow = picojoules(replace(req, multiply=1), E256, table) - picojoules(req, E256, table)
    assert slow == pytest.approx(160 * (3.4 - 0.3))
    softmax, norm = isa.Softmax(len=10), isa.Norm(len=10)
    # a product with the reciprocal and a sum; a square, two sums, and two products
    ends = 10 * (3.4 + 0.1) + 80 * 1.25 + 32 * 162.5
    assert picojoules(softmax, E256, table) == pytest.approx(ends)
    ends = 10 * (2 * 3.4 + 0.2 + 2 * 0.1) + 98 * 1.25 + 32 * 162.5
    assert picojoules(norm, E256, table) == pytest.approx(ends)
    half = 5 * 2 * 3.4 + 10 * (0.2 + 2 * 0.1) + 58 * 1.25 + 32 * 162.5
    assert picojoules(replace(norm, cuts=1), E256, table) == pytest.approx(half)
    for rows in (softmax, norm):  # and one with the multiplier
        more = picojoules(replace(rows, mult=3), E256, table) - picojoules(rows, E256, table)
        assert more == pytest.approx(10 * 3.4)


def test_energy_tables_are_named_and_chosen():
    one = program(isa.Load(x_bytes=64))
    horowitz = price(one, E256).layers[0].picojoules
    assert horowitz == price(one, E256, "horowitz45").layers[0].picojoules
    assert price(one, E256, "accelergy45").layers[0].picojoules == 64 * 4.6 + 96 * 64
    with pytest.raises(SpecError, match="no energy table 'mine': the description has horowitz45"):
        price(one, E256, "mine")
