"""What borders cost is the difference to the same plan without them."""

from dataclasses import replace

import numpy as np
from quantization_cases import calibration, float_model

from relay_passes.place import place
from relay_passes.read_layers import read_layers
from targets.npu.machine.spec import load_spec
from targets.rounding import Rounding, RoundingMode
from tvmq.cli.report import _border_lines
from tvmq.lowering import lower
from tvmq.plan.annotate import annotate
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.planner import make_plan
from tvmq.profile.border_cost import border_cost
from tvmq.settings import Settings

NAME, SPEC = "resnet_small", load_spec("e256")


def _bordered(name, *, one_row=False):
    """A plan of 2 bits of whose values one has a row of borders for each channel, or for all."""
    model = float_model(NAME)
    plan = make_plan(model, calibration(NAME), Settings(2, 2, "free", "channel"))
    channels = 1 if one_row else model.nodes[name].meta["val"].shape[1]
    rows = np.random.default_rng(0).integers(1, 256, (channels, 3), np.uint8)
    rounding = Rounding(RoundingMode.BORDER, tuple(row.tobytes() for row in rows))
    values = {**plan.values, name: replace(plan.values[name], rounding=rounding)}
    return plan, complete_plan(
        model, plan.settings, plan.calibration, values, plan.weights, plan.biases
    )


def test_the_cost_is_that_of_the_bytes_and_comparisons():
    model, (plain, bordered) = float_model(NAME), _bordered("relu_1")
    integer = lower(model, annotate(model, bordered))
    programs = place(integer, read_layers(integer), SPEC).programs
    cost = border_cost(model, bordered, programs, SPEC)
    _, channels, height, width = model.nodes["relu_1"].meta["val"].shape
    assert (cost.values, cost.table_bytes) == (1, 3 * channels)
    assert cost.comparisons == channels * height * width
    # a word of borders behind each record, and a byte of PAR and an addition for each element
    assert cost.with_borders.dram_bytes - cost.without.dram_bytes == 4 * channels
    assert cost.with_borders.picojoules > cost.without.picojoules
    assert cost.without.cycles <= cost.with_borders.cycles < 1.01 * cost.without.cycles
    (line,) = _border_lines(cost.as_json())
    assert line.startswith(f"  borders of 1 activations: {3 * channels} bytes, ")
    assert "% cycles" in line
    assert border_cost(model, plain, programs, SPEC) is None


def test_a_row_for_all_channels_is_loaded_once_per_column_tile():
    model, (_, bordered) = float_model(NAME), _bordered("relu_1", one_row=True)
    cost = border_cost(model, bordered, None, SPEC)
    channels = model.nodes["relu_1"].meta["val"].shape[1]
    tiles = -(-channels // SPEC.array.cols)
    assert cost.table_bytes == 3
    assert cost.with_borders.dram_bytes - cost.without.dram_bytes == 4 * tiles


def test_without_an_npu_there_are_no_prices():
    cost = border_cost(float_model(NAME), _bordered("relu_1")[1], (), None)
    assert (cost.with_borders, cost.without) == (None, None)
    (line,) = _border_lines(cost.as_json())
    assert "cycles" not in line
