"""A metric and the speed of a session on data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from targets.errors import InputError
from tvmq.data.source import Batch
from tvmq.run.metrics import Batches, Metric, accuracy, numbers_of
from tvmq.run.session import Array, Session

FACTS = ("n", "device", "images_per_second")
"""What an evaluation says beside the numbers of its metric, which can't be called so."""


@dataclass(frozen=True)
class Evaluation:
    """What `tvmq eval` reports.

    Attributes:
        numbers: of the metric, by name; accuracy has ``top1`` and ``top5``, in [0, 1].
        n: images.
        device: where they ran.
        images_per_second: of the device alone, reading, preprocessing and metric left out.
    """

    numbers: dict[str, float]
    n: int
    device: str
    images_per_second: float

    @property
    def top1(self) -> float:
        """Fraction of images in [0, 1], of an evaluation of accuracy."""
        return self.numbers["top1"]

    @property
    def top5(self) -> float:
        """Fraction of images in [0, 1], of an evaluation of accuracy."""
        return self.numbers["top5"]

    def as_json(self) -> dict[str, Any]:
        """The output of `tvmq eval --json`; null is a number that is none, or infinite."""
        numbers = {k: v if math.isfinite(v) else None for k, v in self.numbers.items()}
        return {**numbers, **{fact: getattr(self, fact) for fact in FACTS}}


def evaluate(
    session: Session,
    batches: Iterable[Batch],
    total: int | None = None,
    report: Callable[[int, int | None], None] | None = None,
    metric: Metric = accuracy,
    most: int | None = None,
) -> Evaluation:
    """Give all outputs to a metric.

    Args:
        session: network on a device.
        batches: preprocessed inputs by name, and the labels that the metric wants.
        total: images there will be, where that is known.
        report: told about images done and in total, after each batch.
        metric: is called once, with outputs by name and labels, batch by batch.
        most: images that run at a time, where batches are larger; None: the whole batch.

    Raises:
        InputError: no image; the metric left some out, returned no numbers, or can't have these
            data.
    """
    work = _Work(session, most)
    outputs = work.outputs_of(batches, total, report)
    try:
        found = metric(outputs)
    except Exception:
        work.check()  # what ended the batches goes before what the metric made of it
        raise
    work.check()
    seen = work.n
    if next(outputs, None) is not None:
        raise InputError(
            f"The metric returned before it had gone through all batches, after {seen} images. "
            "Let it read them all; --samples gives fewer."
        )
    if work.n == 0:
        raise InputError("The evaluation data holds no image. Give at least one.")
    numbers = numbers_of(found, getattr(metric, "__name__", "metric"))
    for name in FACTS:
        if name in numbers:
            raise InputError(f"The metric has a number called {name!r}, as eval has. Rename it.")
    return Evaluation(numbers, work.n, session.device, round(work.n / work.seconds, 1))


@dataclass
class _Work:
    """Runs the batches as the metric asks for them.

    Attributes:
        n: images done.
        seconds: that they took.
        failures: what ended the batches, whatever the metric did about it.
    """

    session: Session
    most: int | None
    n: int = 0
    seconds: float = 0.0
    failures: list[Exception] = field(default_factory=list)

    def outputs_of(
        self,
        batches: Iterable[Batch],
        total: int | None,
        report: Callable[[int, int | None], None] | None,
    ) -> Batches:
        try:
            for batch in batches:
                outputs = self._run(batch)
                self.n += len(batch)
                if report is not None:
                    report(self.n, total)
                yield outputs, batch.labels
        except Exception as error:
            self.failures.append(error)
            raise

    def check(self) -> None:
        """Raise what ended the batches."""
        for error in self.failures:
            raise error

    def _run(self, batch: Batch) -> dict[str, Array]:
        size = self.most or len(batch)
        parts = []
        for start in range(0, len(batch), size):
            inputs = {name: value[start : start + size] for name, value in batch.inputs.items()}
            begun = time.perf_counter()
            parts.append(self.session.run(inputs))
            self.seconds += time.perf_counter() - begun
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
