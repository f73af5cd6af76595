"""Tuned cuts for the CPU's kernels of a network: from records, and from trials on the clock."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvm.target import Target

from targets.cpu.cuts import NO_CUTS, Cut
from targets.cpu.host import CpuFeatures
from targets.layers import Layer
from tvmq.progress import Progress
from tvmq.tune.kernel_clock import Clock
from tvmq.tune.kernel_search import TunedKernels, search_kernels, tasks_of
from tvmq.tune.records import Records
from tvmq.tune.request import TuneRequest
from tvmq.tune.told_records import told_records


@dataclass(frozen=True)
class TimedCpu:
    """A processor, as far as records tell one from another.

    Attributes:
        name: its target, what executes it, and its threads.
    """

    name: str

    clock_hz = 1_000_000_000
    """Records count in nanoseconds."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its name."""
        return hashlib.sha256(self.name.encode()).hexdigest()


def tune_kernels(
    layers: Iterable[Layer],
    target: Target,
    clock: Clock,
    request: TuneRequest,
    progress: Progress,
    start: Mapping[str, Cut] = NO_CUTS,
) -> TunedKernels:
    """Find cuts for the kernels of a network.

    Args:
        layers: that run on the CPU.
        target: that they are compiled for.
        clock: times them.
        request: what is asked for.
        progress: told of each batch.
        start: cuts of before, by tensor.

    Raises:
        InputError: a folder of records can't be used.
        TvmqError: a kernel can't be timed.
    """
    wanted = f"kernels on this processor ({clock.machine}), of these kernels and these versions"
    cpu, tasks = TimedCpu(clock.machine), tasks_of(layers, CpuFeatures.of(target))
    with (
        told_records(cpu, request, progress, wanted, "cpu") as records,
        progress.bar("tune") as bar,
    ):

        def report(trials: int, words: str) -> None:
            bar(trials, request.trials, words)

        return search_kernels(*(tasks, clock, records, request.trials, request.seed, report, start))


def check_kernel_records(request: TuneRequest, clock: Clock) -> None:
    """Check that records can be read and written, before what takes an hour.

    Raises:
        InputError: as ``tune_kernels``.
    """
    with Records(TimedCpu(clock.machine), request.records, request.output, "cpu"):
        pass


def tuning_facts(
    tuned: TunedKernels,
    clock: Clock,
    request: TuneRequest,
    network: tuple[float, float] | None = None,
    kept: bool = True,
) -> dict[str, Any]:
    """What the manifest says of it.

    Args:
        tuned: what was found.
        clock: what timed it.
        request: what was asked for.
        network: seconds of the whole network before and after, where it was timed.
        kept: whether what was found is used.
    """
    facts: dict[str, Any] = {
        "machine": clock.machine,
        "trials": tuned.trials,
        "failed": tuned.failed,
        "seed": request.seed,
        "kept": kept,
        "nanoseconds": {"before": tuned.before, "after": tuned.after},
        "kernels": [each.as_json() for each in tuned.kernels],
    }
    if network is not None:
        before, after = network
        facts["network_seconds"] = {"before": round(before, 9), "after": round(after, 9)}
    return facts
