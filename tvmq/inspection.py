"""What would run where, and why, before anything is quantized for real.

The float network goes through the stages with stand-in ranges: from batch norms where it has them,
else from seeded noise. Placement depends on shapes, kinds and shifts, hardly on ranges; what is
printed is said to be a forecast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from relay_passes.place import decide
from relay_passes.read_layers import read_layers
from targets.errors import InputError
from targets.npu.machine.spec import NpuSpec
from tvmq.calibrate.batch_norm_ranges import ranges_from_batch_norm
from tvmq.calibrate.calibrate import Calibration, calibrate
from tvmq.float_model import FloatModel
from tvmq.plan.annotate import annotate
from tvmq.plan.planner import make_plan
from tvmq.progress import Progress
from tvmq.settings import Settings

NOISE_IMAGES = 8


@dataclass(frozen=True)
class Forecast:
    """One layer.

    Attributes:
        name: of the layer.
        source: module path and source line.
        kind: "conv2d", "add", ...
        shape: (H, W, C) of its output.
        macs: multiply-accumulates of one image.
        device: "npu" or "cpu".
        reason: what the NPU refuses about it; "" on the NPU.
    """

    name: str
    source: str
    kind: str
    shape: tuple[int, int, int]
    macs: int
    device: str
    reason: str


def forecast(
    model: FloatModel, spec: NpuSpec | None, settings: Settings, progress: Progress
) -> list[Forecast]:
    """Placement of every layer of a float network.

    Raises:
        UnsupportedError: something can't be quantized at all; all of it is named.
    """
    with progress.stage("forecast"):
        plan = make_plan(model, _stand_in(model), settings)
        integer = lower_to_integer(import_torch(annotate(model, plan)))
        sources = {name: str(origin) for name, origin in model.origins.items()}
        network = read_layers(integer, sources)
        reasons = decide(network, spec)
    return [
        Forecast(
            name=layer.name,
            source=layer.source,
            kind=layer.kind,
            shape=layer.output.shape,
            macs=layer.macs,
            device="npu" if reason is None else "cpu",
            reason=reason or "",
        )
        for layer, reason in zip(network.layers, reasons, strict=True)
    ]


def _stand_in(model: FloatModel) -> Calibration:
    try:
        return ranges_from_batch_norm(model)
    except InputError:
        generator = torch.Generator().manual_seed(0)
        noise = [
            torch.randn((NOISE_IMAGES, *spec.shape[1:]), generator=generator)
            for spec in model.inputs
        ]
        calibration = calibrate(model, [noise], NOISE_IMAGES)
        return Calibration(calibration.histograms, "noise")
