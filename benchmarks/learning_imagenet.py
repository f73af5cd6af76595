"""What it costs to learn an ImageNet-size network: CPU seconds and memory per unit.

    python benchmarks/learning_imagenet.py [--data FOLDER] [--network NAME] [--method NAME]
        [--images N] [--iters N] [--measured N] [--units LIST] [--threads N] [--profile]

The folder (default: the environment variable TVMQ_DATA) holds models/ with
mobilenet_v2_imagenet.pt2 and imagenet/calib/ with images. Every unit is learned by the engine, from
--images images with batches of 32, but with --measured iterations only; --units are those that are
learned (default: all), the others stay rounded to nearest. A row has the unit's CPU seconds per
iteration, those of everything else that is done for it (running it in float and in integers for all
images, searches, gates), and what follows for --iters iterations. The last lines are the sum,
what the method does to the whole network, and the most memory there was.
With --profile: where the time of the iterations goes, by operator.

CPU seconds are of all threads together: wall time would measure what else the machine does. On a
machine of N cores with nothing else to do, that many seconds take a little more than the N-th part.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from tvmq.calibrate.calibrate import calibrate
from tvmq.capture.capture import capture
from tvmq.cli.process import prepare
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.plan.planner import make_plan
from tvmq.reconstruct.engine import reconstruct
from tvmq.reconstruct.methods import METHODS
from tvmq.reconstruct.training import train_unit
from tvmq.reconstruct.units import find_units
from tvmq.settings import Settings

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=224)
CLOCK = time.process_time


class Costs:
    """CPU seconds of the units, told apart while the engine goes through them.

    Attributes:
        wanted: units that are learned, by their first layer; None for all.
        trained: seconds of the training loops since the last row.
        loops: the same but for what is drawn once, and the first iteration.
        done: iterations of these.
    """

    def __init__(
        self, wanted: set[str] | None, iters: int, names: list[str], profiler: Any
    ) -> None:
        self.wanted, self.iters, self.names, self.profiler = wanted, iters, names, profiler
        self.trained, self.loops, self.done, self.began = 0.0, 0.0, 0, CLOCK()
        self.sums = [0.0, 0.0]

    def train(self, unit: Any, cache: Any, phase: Any, how: Any, *rest: Any) -> int:
        """``train_unit``, timed; what is drawn once is not part of an iteration."""
        if self.wanted is not None and unit.unit.layers[0] not in self.wanted:
            return 0
        began = CLOCK()
        train_unit(unit, cache, phase, replace(how, iterations=1), *rest)
        once = CLOCK() - began
        with self.profiler or nullcontext():
            done = train_unit(
                unit, cache, phase, replace(how, iterations=how.iterations + 1), *rest
            )
        self.trained += CLOCK() - began
        self.loops += CLOCK() - began - 2 * once
        self.done += done - 1
        return done

    def report(self, _done: int, _all: int, words: str) -> None:
        """A row behind each unit."""
        if not words.startswith("unit") or " done" not in words:
            return
        index = int(words.split()[1]) - 1
        spent = CLOCK() - self.began
        others, each = spent - self.trained, self.loops / self.done if self.done else None
        name = self.names[index]
        if each is None:
            print(f"| {name} | | {others:.1f} | |", flush=True)
        else:
            total = others + each * self.iters
            print(f"| {name} | {each:.3f} | {others:.1f} | {total:.0f} |", flush=True)
            self.sums = [self.sums[0] + each, self.sums[1] + total]
        self.trained, self.loops, self.done, self.began = 0.0, 0.0, 0, CLOCK()


def main() -> int:
    """Print the table; 2 if the data isn't there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TVMQ_DATA"), help="folder of the data")
    parser.add_argument("--network", default="mobilenet_v2_imagenet")
    parser.add_argument("--method", default="rapq", help="a method that learns")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--iters", type=int, default=500, help="that the sum is for")
    parser.add_argument("--measured", type=int, default=5, help="iterations that are done per unit")
    parser.add_argument("--units", help="learn only these: numbers from 1 on, by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="by operator, too")
    options = parser.parse_args()
    data = Path(options.data or ".")
    file = data / "models" / f"{options.network}.pt2"
    if options.data is None or not file.is_file():
        print(f"{file} is missing. Give the folder with --data or TVMQ_DATA.", file=sys.stderr)
        return 2
    prepare(alone=False)  # as the command line does
    torch.set_num_threads(options.threads)
    model = capture(file)
    source = open_data(str(data / "imagenet" / "calib"), model.inputs, IMAGENET)
    calibration = calibrate(model, source, options.images)
    learned = Settings(4, 8, granularity="channel", method=(options.method,))
    settings = replace(learned, iterations=options.measured)
    plan = make_plan(model, calibration, settings)
    units = find_units(model, whole_blocks=METHODS[options.method].units != "layers")
    chosen = options.units and {
        units[int(number) - 1].layers[0] for number in options.units.split(",")
    }
    print(
        f"{platform.platform()}, torch {torch.__version__}, {options.threads} threads; "
        f"{file.name}, {options.method}, {calibration.samples} images, "
        f"batch {settings.learn_batch}, {options.measured} iterations per unit measured\n\n"
        "| unit | CPU s per iteration | CPU s for the rest | "
        f"CPU s with {options.iters} iterations |\n|---|---|---|---|",
        flush=True,
    )
    profiler = profile(activities=[ProfilerActivity.CPU]) if options.profile else None
    costs = Costs(chosen or None, options.iters, [unit.name for unit in units], profiler)
    with patch("tvmq.reconstruct.training.train_unit", costs.train):
        reconstruct(model, calibration, plan, report=costs.report)
    each, total = costs.sums
    print(f"| sum | {each:.2f} | | {total:.0f} |")
    print(f"\nthe network as a whole: {CLOCK() - costs.began:.0f} CPU s")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"most memory: {memory:.2f} GB")
    if profiler is not None:
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
    return 0


if __name__ == "__main__":
    sys.exit(main())
