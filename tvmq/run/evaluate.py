"""Accuracy and speed of a session on labelled data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from targets.errors import InputError
from tvmq.data.source import Batch
from tvmq.run.metrics import Accuracy
from tvmq.run.session import Session

Labels = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Evaluation:
    """What `tvmq eval` reports.

    Attributes:
        top1: fraction of images in [0, 1].
        top5: fraction of images in [0, 1].
        n: images.
        device: where they ran.
        images_per_second: of the device alone, reading and preprocessing left out.
    """

    top1: float
    top5: float
    n: int
    device: str
    images_per_second: float


def evaluate(
    session: Session,
    batches: Iterable[Batch],
    total: int | None = None,
    report: Callable[[int, int | None], None] | None = None,
) -> Evaluation:
    """Count right guesses of the first output.

    Args:
        session: network on a device.
        batches: preprocessed inputs by name and labels.
        total: images there will be, where that is known.
        report: told about images done and in total, after each batch.

    Raises:
        InputError: no image, no labels, or an output that holds no logits.
    """
    accuracy, seconds = Accuracy(), 0.0
    for batch in batches:
        start = time.perf_counter()
        logits = next(iter(session.run(batch.inputs).values()))
        seconds += time.perf_counter() - start
        if batch.labels is None:
            raise InputError("The evaluation data has no labels. Accuracy needs one per image.")
        _check(logits, batch.labels)
        accuracy.add(logits, batch.labels)
        if report is not None:
            report(accuracy.n, total)
    if accuracy.n == 0:
        raise InputError("The evaluation data holds no image. Give at least one.")
    speed = accuracy.n / seconds
    return Evaluation(accuracy.top1, accuracy.top5, accuracy.n, session.device, round(speed, 1))


def _check(logits: npt.NDArray[np.float32], labels: Labels) -> None:
    if logits.ndim != 2:
        raise InputError(
            f"The first output has shape {list(logits.shape)}, not [N, classes], so accuracy "
            f"has no meaning. Use `tvmq run` and compare the outputs yourself."
        )
    classes = logits.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"Labels reach from {labels.min()} to {labels.max()}, but the network has {classes} "
            f"classes, 0 to {classes - 1}. Check that data and network belong together."
        )
