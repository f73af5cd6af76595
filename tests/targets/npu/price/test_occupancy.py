"""How many multipliers have data, by hand, and that it explains the utilization of networks."""

from dataclasses import replace

import pytest
from npu_layers import LAYERS

from targets.npu.compiler import compile_layers
from targets.npu.machine import isa
from targets.npu.machine.spec import load_spec
from targets.npu.price.accesses import accesses
from targets.npu.price.layer_costs import price
from targets.npu.price.occupancy import occupancy

E256, M2048 = load_spec("e256"), load_spec("m2048")
GEMM = isa.Gemm(m0=10, m1=10, k0=4, nvalid=16, kvalid=16, acc_init=1)
DEPTHWISE = isa.Depthwise(m0=10, m1=10, kw=3, kh=3, nvalid=16)

CASES = {
    "full": (GEMM, 1.0, ""),
    "columns": (replace(GEMM, nvalid=4), 0.25, "4 output channels meet 16 columns"),
    "rows": (replace(GEMM, k0=1, kvalid=3), 3 / 16, "3 inputs meet 16 rows"),
    "both": (replace(GEMM, k0=1, kvalid=3, nvalid=2), 6 / 256, "2 output channels meet 16 columns"),
    "depthwise": (DEPTHWISE, 1 / 16, "a depthwise channel feeds 1 of 16 rows"),
    "pixels": (
        replace(GEMM, m0=1, m1=1),
        1 / 16,
        "1 pixels meet a tile of 16 cycles, in which its weights are loaded",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_leaves_multipliers_without_data_is_named(name):
    instruction, filled, why = CASES[name]
    found = occupancy([isa.Load(), instruction], accesses(instruction, E256).macs, E256)
    assert found.filled == pytest.approx(filled, abs=1e-4)
    assert found.why == why


def test_blocks_that_differ_are_averaged():
    narrow = replace(GEMM, nvalid=8)
    macs = sum(accesses(i, E256).macs for i in (GEMM, narrow))
    assert occupancy([GEMM, narrow], macs, E256).why == "12 output channels meet 16 columns"


def test_a_layer_without_the_array_has_none():
    found = occupancy([isa.Load(), isa.Add(len=64)], 0, E256)
    assert (found.work, found.filled, found.why) == (0, 0.0, "")


@pytest.mark.parametrize("spec", [E256, M2048], ids=["e256", "m2048"])
@pytest.mark.parametrize("name", ["square", "depthwise_strided_5x5", "weights_of_4_bits", "add"])
def test_filled_times_busy_is_the_utilization(name, spec):
    layer = LAYERS[name]
    inputs = list(layer.inputs)
    (cost,) = price(compile_layers([layer], inputs, [layer.output], spec), spec).layers
    assert cost.filled * cost.busy == pytest.approx(cost.utilization, abs=2e-4)
    assert bool(cost.unfilled) == (0 < cost.filled < 0.95)
