"""Single layers that published tools were asked about, compiled for e256 and m2048 and priced.

``price_anchor(anchor, setting)`` is one number of the golden table.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from targets.layers import Conv2d, Requantize, Value, Weights
from targets.npu.compiler import compile_layers
from targets.npu.machine.spec import NpuSpec, load_spec
from targets.npu.price.layer_costs import PricedProgram, price
from targets.rounding import HALF_UP

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
ANCHORS = DATA / "anchors.toml"
GOLDEN = DATA / "golden_cycles.csv"
UNLIMITED = 1 << 20
"""Bytes per cycle of a DRAM that limits nothing; its latencies stay."""


@dataclass(frozen=True)
class Anchor:
    """A layer, and what the tools say of it; fields as in tests/data/anchors.toml."""

    name: str
    shape: tuple[int, ...]
    vela: int
    vela_reason: str
    zigzag: int = 0
    zigzag_reason: str = ""
    depthwise: bool = False
    vela_percent: int = 0
    zigzag_percent: int = 0


@dataclass(frozen=True)
class Setting:
    """A machine, and which requantizer and memory; the name is a column of the golden table."""

    name: str
    machine: str
    multiply: bool
    dram: bool
    sliding: bool = False


SETTINGS = (
    Setting("e256 shift", "e256", multiply=False, dram=True),
    Setting("e256 multiplier", "e256", multiply=True, dram=True),
    Setting("e256 shift no-DRAM", "e256", multiply=False, dram=False),
    Setting("e256 multiplier no-DRAM", "e256", multiply=True, dram=False),
    Setting("e256 shift window", "e256", multiply=False, dram=True, sliding=True),
    Setting("m2048 shift", "m2048", multiply=False, dram=True),
    Setting("m2048 shift no-DRAM", "m2048", multiply=False, dram=False),
)
VELA, ZIGZAG = SETTINGS[3], SETTINGS[0]


def read_anchors() -> list[Anchor]:
    """All layers, in the order of the file."""
    content = tomllib.loads(ANCHORS.read_text())
    return [Anchor(**{**row, "shape": tuple(row["shape"])}) for row in content["layer"]]


def read_golden() -> dict[tuple[str, str], int]:
    """(layer, setting) -> frozen cycles."""
    with GOLDEN.open() as file:
        rows = csv.DictReader(file)
        return {
            (row["layer"], setting): int(cycles)
            for row in rows
            for setting, cycles in row.items()
            if setting != "layer"
        }


def write_golden(cycles: dict[tuple[str, str], int]) -> None:
    """Freeze cycles: a row per layer, a column per setting."""
    layers = list(dict.fromkeys(layer for layer, _ in cycles))
    settings = list(dict.fromkeys(setting for _, setting in cycles))
    with GOLDEN.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layer", *settings])
        writer.writerows(
            [layer, *(cycles[layer, setting] for setting in settings)] for layer in layers
        )


def machine(setting: Setting) -> NpuSpec:
    """The description of a setting."""
    content = load_spec(setting.machine).model_dump()
    if not setting.dram:
        content["dma"]["bytes_per_cycle"] = UNLIMITED
    if setting.sliding:
        content["array"]["dw"] = "window"
    return NpuSpec.model_validate(content)


def price_anchor(anchor: Anchor, setting: Setting) -> PricedProgram:
    """Compile the layer as a network of its own and run the clock."""
    spec = machine(setting)
    layer = make_layer(anchor, multiply=setting.multiply)
    return price(compile_layers([layer], layer.inputs, [layer.output], spec), spec)


def make_layer(anchor: Anchor, *, multiply: bool) -> Conv2d:
    """The layer with random weights, padded by half of its kernel."""
    channels, depth, out_h, out_w, kernel_h, kernel_w, stride, height, width = anchor.shape
    groups = depth if anchor.depthwise else 1
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (channels, kernel_h, kernel_w, depth // groups))
    factor = 40001 if multiply else 1
    shift = 25 if multiply else 9
    y, x = kernel_h // 2, kernel_w // 2
    return Conv2d(
        name=anchor.name,
        source=anchor.name,
        kind="conv2d",
        input=Value("x", (height, width, depth), "uint8"),
        output=Value("y", (out_h, out_w, channels), "uint8"),
        right=Weights(weight.astype(np.int8)),
        bias=np.zeros(channels, np.int32),
        strides=(stride, stride),
        padding=(y, x, y, x),
        dilation=(1, 1),
        groups=groups,
        input_zero_point=0,
        requantize=Requantize(
            fraction=0,
            multiplier=np.full(channels, factor, np.int32),
            shift=np.full(channels, shift, np.int32),
            zero_point=0,
            low=0,
            high=255,
            rounding=HALF_UP,
        ),
        max_sum=1 << 28,
    )
