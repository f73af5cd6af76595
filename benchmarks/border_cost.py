"""What borders cost on the NPU where all values that may have them do: the table of docs/aquant.md.

    python -m benchmarks.border_cost [--data FOLDER]

The folder (default: the environment variable TVMQ_DATA) holds the networks. Borders and inputs are
noise: what they are changes neither cycles nor bytes.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from targets.code_range import code_range
from targets.npu.machine.spec import load_spec
from targets.rounding import Rounding, RoundingMode
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture
from tvmq.float_model import FloatModel
from tvmq.plan.borders import may_differ_by_channel
from tvmq.plan.plan import Plan
from tvmq.plan.plan_network import plan_network
from tvmq.profile.border_cost import border_cost
from tvmq.reconstruct.border_search import values_with_borders
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit, network_steps
from tvmq.reconstruct.units import find_units
from tvmq.regions import channel_axis, shape_of
from tvmq.settings import Settings, parse_precision

ROWS = (
    ("resnet20.pt2", "w2a2", ("e256",)),
    ("resnet20.pt2", "w4a4", ("e256",)),
    ("models/mobilenet_v2_imagenet.pt2", "w4a4", ("e256", "m2048")),
    ("models/vit4_cifar10.pt2", "w4a4", ("e256",)),
    ("mobilenetv2.pt2", "w4a4", ("e256", "m2048")),
)
IMAGES = 4


def main() -> None:
    """Measure and print, row after row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("TVMQ_DATA"))
    folder = parser.parse_args().data
    if folder is None:
        parser.error("--data or TVMQ_DATA must say where the networks are")
    print("| network | precision | machine | values | cycles | DRAM bytes | energy |")
    print("|---|---|---|---|---|---|---|")
    for file, precision, machines in ROWS:
        model, plan = bordered(Path(folder) / file, precision)
        for machine in machines:
            cost = border_cost(model, plan, None, load_spec(machine))
            assert cost is not None
            assert cost.with_borders is not None
            assert cost.without is not None
            pairs = (
                (cost.without.cycles, cost.with_borders.cycles),
                (cost.without.dram_bytes, cost.with_borders.dram_bytes),
                (cost.without.picojoules, cost.with_borders.picojoules),
            )
            more = " | ".join(f"{100 * (b / a - 1):.2f} %" for a, b in pairs)
            print(f"| {file} | {precision} | {machine} | {cost.values} | {more} |", flush=True)


def bordered(file: Path, precision: str) -> tuple[FloatModel, Plan]:
    """A network, rounded to nearest, with borders on all values that may have some."""
    rng = np.random.default_rng(0)
    weight_bits, activation_bits = parse_precision(precision)
    settings = Settings(weight_bits, activation_bits, "pot", "channel")
    model = capture(file)
    (tensor,) = model.inputs
    images = rng.standard_normal((IMAGES, *tensor.shape[1:])).astype(np.float32)
    planned = plan_network(model, calibrate(model, [{tensor.name: images}], IMAGES), settings)
    model, plan = planned.model, planned.plan
    steps, units = network_steps(model, plan), find_units(model)
    cache = UnitCache(model, units, planned.calibration, steps)
    values = dict(plan.values)
    for unit in units:
        for name in values_with_borders(QuantizedUnit(model, plan, unit, steps, {}), cache):
            shape = shape_of(model.nodes[name])
            rows = shape[channel_axis(len(shape))]
            if not may_differ_by_channel(cache.regions, name):
                rows = 1
            low, high = code_range(values[name].bits, values[name].signed)
            borders = rng.integers(60, 200, (rows, high - low), np.uint8)
            rounding = Rounding(RoundingMode.BORDER, tuple(map(bytes, borders)), low)
            values[name] = replace(values[name], rounding=rounding)
    return model, replace(plan, values=values)


if __name__ == "__main__":
    main()
