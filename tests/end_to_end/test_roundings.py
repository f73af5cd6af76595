"""A plan says how its values are rounded, and that is how they are rounded, down to the REQ."""

import json
import re

import numpy as np
import pytest
from placed_modules import run_placed
from quantization_cases import float_model, images, plan

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from relay_passes.place import place
from relay_passes.read_layers import read_layers
from targets.layers import Add, Conv2d
from targets.npu.kinds.kind import Rule
from targets.npu.machine.disassemble import disassemble
from targets.npu.machine.spec import load_spec
from targets.refusal import Refusal
from targets.rounding import FLOOR, MAX_BORDER_BITS
from tvmq.calibrate.calibrate import calibrate
from tvmq.plan.annotate import annotate
from tvmq.plan.plan_file import plan_from_json, plan_to_json
from tvmq.plan.planner import make_plan
from tvmq.plan.round_reads import round_reads
from tvmq.regions import SUMS_LEAVE, channel_axis, find_regions
from tvmq.run.reference import run_reference
from tvmq.settings import Settings

CASES = {
    "additions": ("preact", Settings(scales="free", granularity="channel"), (1, 3, 5)),
    "clamps": ("mobilenet_small", Settings(4, 4), range(10)),
    "tables": ("silu_net", Settings(), range(12)),
}
SPEC = load_spec("e256")


def agreed(model, quantized, x):
    """The layers, the module with the NPU, and the outputs that all four answers have."""
    program = annotate(model, quantized)
    integer = lower_to_integer(import_torch(program))
    network = read_layers(integer)
    on_cpu, on_npu = place(integer, network, None), place(integer, network, SPEC)
    want = run_reference(integer, {model.inputs[0].name: x.numpy()})
    for answer in (
        [t.float().numpy() for t in program(x.double())],
        run_placed(on_cpu, None, x.numpy()),
        run_placed(on_npu, SPEC, x.numpy()),
    ):
        for got, expected in zip(answer, want, strict=True):
            np.testing.assert_array_equal(got, expected)
    return network, on_npu, want


@pytest.mark.parametrize(("name", "settings", "floors"), CASES.values(), ids=CASES)
def test_floor_goes_all_the_way(name, settings, floors):
    """In all values, or in some, of which no answer may take one for the other."""
    model, half_up = float_model(name), plan(name, settings)
    document = json.loads(plan_to_json(half_up))
    for n, entry in enumerate(document["values"].values()):
        if n in floors:
            entry["rounding"] = "FLOOR"
    quantized = plan_from_json(json.dumps(document), model)
    x = images(name)[:4]
    inputs = {model.inputs[0].name: x.numpy()}

    network, on_npu, want = agreed(model, quantized, x)
    other = run_reference(lower_to_integer(import_torch(annotate(model, half_up))), inputs)
    assert not np.array_equal(other[0], want[0])

    chosen = {
        layer.name: quantized.values[layer.output].rounding
        for layer in find_regions(model).layers.values()
        if layer.output
    }
    assert _read(network) == {layer: chosen[layer] for layer in _read(network)}
    executed = _executed(on_npu.programs)
    assert executed == {layer: chosen[layer].mode.name for layer in executed}
    assert set(executed.values()) == {
        value.rounding.mode.name for value in quantized.values.values()
    }
    refused = {p.name: p.refusal for p in on_npu.placements if p.device == "cpu"}
    additions = {layer.name for layer in network.layers if isinstance(layer, Add)}
    assert refused.keys() == {layer for layer in additions if chosen[layer] == FLOOR}
    refusal = Refusal(Rule.ROUNDING.value, Rule.ROUNDING.advice, "it rounds by FLOOR")
    assert set(refused.values()) <= {refusal}
    assert bool(refused) == (name == "preact")


BORDERS = {
    "a row per channel": ("mobilenet_small", Settings(4, 4), True, "random"),
    "a row per tensor": ("mobilenet_small", Settings(4, 3), False, "random"),
    "residuals, multipliers": ("preact", Settings(2, 2, "free", "channel"), True, "random"),
    "copies of residuals": (
        *("resnet_small", Settings(2, 2, "pot", "channel", residual_bits=8)),
        *(True, "random"),
    ),
    "halves": ("mobilenet_small", Settings(4, 4), True, "half"),
    "halves with multipliers": ("preact", Settings(2, 2, "free", "channel"), True, "half"),
}


SLOW = ("a row per channel", "a row per tensor", "halves")


@pytest.mark.parametrize(
    ("name", "settings", "rows", "kind"),
    [
        pytest.param(*each, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, each in BORDERS.items()
    ],
)
def test_borders_go_all_the_way(name, settings, rows, kind):
    """In all values that can have some; those that round half up change nothing."""
    model = round_reads(float_model(name), settings)
    half_up = make_plan(model, calibrate(model, [images(name)]), settings)
    rng = np.random.default_rng(0)
    regions = find_regions(model)
    document = json.loads(plan_to_json(half_up))
    for value, entry in document["values"].items():
        made = regions.layers.get(regions.values[value].layer)
        if made is None or made.kind not in SUMS_LEAVE or entry["bits"] > MAX_BORDER_BITS:
            continue
        shape = model.nodes[value].meta["val"].shape
        clipped = np.isfinite(regions.values[value].high)  # to one code, whatever the channel
        count = shape[channel_axis(len(shape))] if rows and not clipped else 1
        table = rng.integers(1, 256, (count, 2 ** entry["bits"] - 1))
        entry["rounding"] = "BORDER"
        entry["borders"] = (table if kind == "random" else np.full_like(table, 128)).tolist()
    quantized = plan_from_json(json.dumps(document), model)
    x = images(name)[:4]
    inputs = {model.inputs[0].name: x.numpy()}

    _, on_npu, want = agreed(model, quantized, x)
    other = run_reference(lower_to_integer(import_torch(annotate(model, half_up))), inputs)
    assert np.array_equal(other[0], want[0]) == (kind == "half")

    chosen = {
        layer.name: quantized.values[layer.output].rounding.mode.name
        for layer in regions.layers.values()
        if layer.output
    }
    executed = _executed(on_npu.programs)
    assert executed == {layer: chosen[layer] for layer in executed}
    assert "BORDER" in executed.values()
    assert not any(p.refusal for p in on_npu.placements if chosen.get(p.name) == "BORDER")


def _read(network):
    """Layer -> its rounding, of those that shift to the right."""
    layers = [layer for layer in network.layers if isinstance(layer, Add) and layer.shift]
    convolutions = [layer for layer in network.layers if isinstance(layer, Conv2d)]
    found = {layer.name: layer.rounding for layer in layers}
    return found | {
        layer.name: layer.requantize.rounding for layer in convolutions if layer.requantize
    }


def _executed(programs):
    """Layer -> what all its REQs say."""
    found, layer = {}, ""
    for line in (line for program in programs for line in disassemble(program)):
        if line.startswith("; "):
            layer = line.split()[1]
        elif "REQ" in line:
            (mode,) = re.findall(r"rounding=(\w+)", line)
            assert found.setdefault(layer, mode) == mode
    return found
