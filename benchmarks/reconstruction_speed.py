"""Iterations per second of the reconstruction engine against the way public code does one.

    python benchmarks/reconstruction_speed.py [--data FOLDER] [--iters N] [--threads N]

The folder (default: the environment variable TVMQ_DATA) holds resnet20.pt2 and cifar10_calib.npz.

The peer is *a re-statement*, not the public code itself, which can't be shipped: one iteration as
the published QDrop and BRECQ repositories do it, on the same blocks, the same cached images and the
same machine, in alternating runs. That is: cached inputs of both prefixes and outputs held as float
tensors in N C H W order and indexed per batch; the dropped input mixed with ``torch.rand_like``;
each convolution a module that re-evaluates its soft targets from alpha in every forward, for its
weight, and again for the regularizer; activation quantizers written as separate torch operators
(LSQ, straight-through rounding, gradient scaling) that draw ``torch.rand_like`` for QDrop's masks;
``Adam`` for the rounding and another one for the steps, with a cosine schedule; QDrop's loss. It
leaves out what the repositories do once per block (caching, initial ranges) and their logging.
Both learn weights and activation steps of every block at w2a4 with batches of 32.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import torch
from torch import nn

from targets.code_range import code_range
from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.float_model import FloatModel
from tvmq.plan.plan import ValuePlan, WeightPlan
from tvmq.plan.planner import make_plan
from tvmq.reconstruct.methods import METHODS
from tvmq.reconstruct.training import Training, train_unit
from tvmq.reconstruct.unit_cache import UnitCache
from tvmq.reconstruct.unit_graph import QuantizedUnit, float_unit, network_steps
from tvmq.reconstruct.units import Unit, find_units
from tvmq.settings import Settings, learned_range

IMAGES = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SAMPLES, BATCH, SEED = 1024, 32, 0
CLOCK = time.process_time
"""CPU seconds, of all threads together: wall time would measure what else the machine does."""


class PublicWeight(nn.Module):
    """AdaRound's quantizer: every forward works out floor and soft targets anew."""

    def __init__(self, weight: torch.Tensor, plan: WeightPlan) -> None:
        super().__init__()
        self.low, self.high = learned_range(plan.bits)
        self.weight = weight.contiguous()
        self.delta = torch.tensor(plan.steps).reshape(-1, *[1] * (weight.dim() - 1))
        rest = self.weight / self.delta - torch.floor(self.weight / self.delta)
        self.alpha = nn.Parameter(-torch.log(1.2 / (rest + 0.1) - 1))

    def soft_targets(self) -> torch.Tensor:
        """h(alpha)."""
        return torch.clamp(torch.sigmoid(self.alpha) * 1.2 - 0.1, 0, 1)

    def forward(self) -> torch.Tensor:
        """The soft weight."""
        codes = torch.floor(self.weight / self.delta) + self.soft_targets()
        return torch.clamp(codes, self.low, self.high) * self.delta


class PublicActivation(nn.Module):
    """QDrop's learned step: LSQ in separate operators, with element-wise dropping."""

    def __init__(self, plan: ValuePlan) -> None:
        super().__init__()
        self.low, self.high = code_range(plan.bits, plan.signed)
        self.zero = plan.zero_point
        self.scale = nn.Parameter(torch.tensor([plan.step]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Quantized, about half of the elements left float."""
        factor = 1.0 / (x.numel() * self.high) ** 0.5
        scale = (self.scale - self.scale * factor).detach() + self.scale * factor
        scaled = x / scale
        rounded = (scaled.round() - scaled).detach() + scaled
        codes = torch.clamp(rounded + self.zero, self.low, self.high)
        quantized = (codes - self.zero) * scale
        return torch.where(torch.rand_like(x) < 0.5, quantized, x)


def public_iterations(
    model: FloatModel, unit: Unit, ours: QuantizedUnit, cache: UnitCache, plan: object, count: int
) -> float:
    """Seconds for ``count`` iterations of the peer on a unit."""
    modules: dict[str, nn.Module] = {}
    for name, weight in ours.weights.items():
        modules[f"{name}_weight"] = PublicWeight(weight.weight, plan.weights[name])
        modules[f"{name}_bias"] = ours.biases[name]
    for name in ours.steps:
        modules[f"{name}_codes"] = PublicActivation(plan.values[name])
    graph_module = torch.fx.GraphModule(ours.graph_module, ours.graph_module.graph)
    for name, module in modules.items():
        setattr(graph_module, name, module)
    weights = [m for m in modules.values() if isinstance(m, PublicWeight)]
    steps = [m for m in modules.values() if isinstance(m, PublicActivation)]
    everything = slice(0, cache.count)
    exact, quantized = (
        [stream.rows(name, everything).contiguous() for name in unit.inputs]
        for stream in (cache.exact, cache.quantized)
    )
    targets = [cache.exact.rows(name, everything).contiguous() for name in unit.outputs]
    rounding = torch.optim.Adam([weight.alpha for weight in weights])
    scales = torch.optim.Adam([step.scale for step in steps], lr=4e-5) if steps else None
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(scales, count) if scales else None
    start = CLOCK()
    for i in range(count):
        which = torch.randperm(cache.count)[:BATCH]
        mixed = [
            torch.where(torch.rand_like(q[which]) < 0.5, q[which], e[which])
            for q, e in zip(quantized, exact, strict=True)
        ]
        rounding.zero_grad()
        if scales:
            scales.zero_grad()
        outputs = graph_module(*mixed)
        loss = torch.zeros(())
        for output, target in zip(outputs, targets, strict=True):
            loss = loss + (output - target[which]).abs().pow(2.0).sum(1).mean()
        beta = 2 + 18 * (1 - i / count)
        for weight in weights:
            loss = loss + 0.01 * (1 - ((weight.soft_targets() - 0.5).abs() * 2).pow(beta)).sum()
        loss.backward()
        rounding.step()
        if scales and schedule:
            scales.step()
            schedule.step()
    return CLOCK() - start


def main() -> int:
    """Print iterations per second of both for each unit; 2 if the data isn't there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TVMQ_DATA"), help="folder of the data")
    parser.add_argument("--iters", type=int, default=60, help="per unit, side and run")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    data = Path(options.data or ".")
    if options.data is None or not (data / "resnet20.pt2").is_file():
        print(
            f"{data}: no resnet20.pt2. Give the folder with --data or TVMQ_DATA.", file=sys.stderr
        )
        return 2
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    model = capture(data / "resnet20.pt2")
    source = open_data(str(data / "cifar10_calib.npz"), model.inputs, IMAGES)
    calibration = calibrate(model, source, SAMPLES)
    settings = Settings(2, 4, "free", "channel", method=("qdrop",))
    plan = make_plan(model, calibration, settings)
    print(
        f"{platform.platform()}, torch {torch.__version__}, {options.threads} threads; "
        f"{data.name}, {SAMPLES} images, batch {BATCH}, w2a4, seed {SEED}, {options.iters} "
        f"iterations per unit, CPU seconds, the better of two runs\n\n"
        "| unit | tvmq it/s | restated public code it/s | ratio |\n|---|---|---|---|"
    )
    compare(model, calibration, plan, options.iters)
    return 0


def compare(model: FloatModel, calibration: object, plan: object, count: int) -> None:
    """A line per unit, in the order of the network, and one for all."""
    units, steps = find_units(model), network_steps(model, plan)
    cache = UnitCache(model, units, calibration, steps)
    (learned,), training = METHODS["qdrop"].refinements, Training(count, BATCH)
    generator = torch.Generator().manual_seed(SEED)
    totals = [0.0, 0.0]
    for index, unit in enumerate(units):
        cache.float_outputs(index, float_unit(model, unit))
        best = [float("inf"), float("inf")]
        for _ in range(2):
            peer = QuantizedUnit(model, plan, unit, steps)
            best[1] = min(best[1], public_iterations(model, unit, peer, cache, plan, count))
            ours = QuantizedUnit(model, plan, unit, steps)
            start = CLOCK()
            train_unit(ours, cache, learned.phases[0], training, cache.count, generator)
            best[0] = min(best[0], CLOCK() - start)
        cache.advance(index, ours)
        totals = [total + seconds for total, seconds in zip(totals, best, strict=True)]
        line(unit.name, count, best)
    line("all", count * len(units), totals)
    cache.close()


def line(name: str, count: int, seconds: list[float]) -> None:
    """One row of the table."""
    ours, peer = (count / second for second in seconds)
    print(f"| {name} | {ours:.1f} | {peer:.1f} | {ours / peer:.2f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
