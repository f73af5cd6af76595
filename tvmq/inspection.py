"""What would run where, why, and at what price, before anything is quantized for real.

The float network goes through the stages with stand-in ranges: from batch norms where it has them,
else from seeded noise. Placement depends on shapes, kinds and shifts, hardly on ranges; what is
printed is said to be a forecast, and cycles are said to be estimates: nothing is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay_passes.estimate import Estimate, estimate
from relay_passes.place import placements
from relay_passes.read_layers import IslandLayer, read_layers
from targets.errors import InputError
from targets.npu.machine.spec import NpuSpec
from tvmq.calibrate.batch_norm_ranges import ranges_from_batch_norm
from tvmq.calibrate.calibrate import Calibration, calibrate
from tvmq.float_ends import compilable_ends
from tvmq.float_islands import compilable_islands
from tvmq.float_model import FloatEnd, FloatModel
from tvmq.lowering import lower
from tvmq.noise import noise_like
from tvmq.plan.annotate import annotate
from tvmq.plan.planner import make_plan
from tvmq.plan.round_reads import round_reads
from tvmq.progress import Progress
from tvmq.settings import Settings

NOISE_IMAGES = 2


@dataclass(frozen=True)
class Forecast:
    """One layer.

    Attributes:
        name: of the layer.
        source: module path and source line.
        kind: "conv2d", "add", ...
        shape: (H, W, C) of its output; None in float.
        macs: multiply-accumulates of one image.
        device: "npu", "cpu", or "float" for what isn't quantized and runs on the host.
        reason: what the NPU refuses about it, or why it isn't quantized; "" on the NPU.
        cycles: estimated, of one image; of a layer on the CPU those that it would take on the NPU
            if the rule in ``reason`` were lifted; None where there is no NPU, and in float.
        bound: what bounds it; "" for a layer without work and where there is no NPU.
    """

    name: str
    source: str
    kind: str
    shape: tuple[int, int, int] | None
    macs: int
    device: str
    reason: str
    cycles: int | None
    bound: str


def forecast(
    model: FloatModel, spec: NpuSpec | None, settings: Settings, progress: Progress
) -> list[Forecast]:
    """Placement and price of every layer of a float network, and of what stays in float.

    Raises:
        InputError: ``residual_bits`` would change nothing of this network.
        UnsupportedError: something can't be quantized at all; all of it is named.
    """
    with progress.stage("forecast"):
        model = round_reads(model, settings)
        compilable_ends(model)
        islands = compilable_islands(model)
        plan = make_plan(model, _stand_in(model), settings)
        integer = lower(model, annotate(model, plan), islands)
        sources = {name: str(origin) for name, origin in model.origins.items()}
        network = read_layers(integer, sources)
        placed = placements(network, spec)
        nothing = [Estimate(0, "")] * len(placed)
        estimates = nothing if spec is None else estimate(network, placed, spec)
    layers: list[Forecast] = []
    for layer, placement, price in zip(network.layers, placed, estimates, strict=True):
        if isinstance(layer, IslandLayer):
            layers += _in_float(model.islands[layer.name])
            continue
        layers.append(
            Forecast(
                name=placement.name,
                source=placement.source,
                kind=placement.kind,
                shape=layer.output.shape,
                macs=placement.macs,
                device=placement.device,
                reason=placement.reason,
                cycles=None if spec is None else price.cycles,
                bound=price.bound,
            )
        )
    if model.ends is None:
        return layers
    return [*_in_float(model.ends.head), *layers, *_in_float(model.ends.tail)]


def _in_float(end: FloatEnd) -> list[Forecast]:
    return [
        Forecast(
            name=operator.name,
            source=operator.source,
            kind=operator.kind,
            shape=None,
            macs=operator.macs,
            device="float",
            reason=operator.reason,
            cycles=None,
            bound="",
        )
        for operator in end.operators
    ]


def _stand_in(model: FloatModel) -> Calibration:
    try:
        return ranges_from_batch_norm(model)
    except InputError:
        noise = model.quantized_inputs(noise_like(model.network_inputs, NOISE_IMAGES))
        calibration = calibrate(model, [noise], NOISE_IMAGES)
        return Calibration(calibration.histograms, "noise")
