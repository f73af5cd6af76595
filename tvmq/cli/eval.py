"""`tvmq eval`: accuracy, or a metric of the user, and speed of an artifact on data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from targets.errors import GateError, InputError
from tvmq.cli.options import (
    IMAGE_FLAGS,
    PATH,
    Real,
    Whole,
    device_option,
    images_options,
    shared_options,
)
from tvmq.cli.terminal import Terminal

if TYPE_CHECKING:  # so that `--help` does not import torch
    from tvmq.run.evaluate import Evaluation

_LABELS = {"top1": "top-1", "top5": "top-5"}
"""Of numbers that are read by another name than they are typed."""


@click.command("eval")
@click.argument("artifact", metavar="ART", type=PATH)
@click.option(
    "--data", required=True, metavar="D", help="Labelled data, in one of the forms above."
)
@click.option(
    "--labels",
    type=PATH,
    metavar="FILE.csv",
    help="The class of every image of a folder: lines of file,label.",
)
@click.option(
    "--classes",
    type=PATH,
    metavar="FILE",
    help="The classes of the network, a class folder per line; the first is class 0.",
)
@click.option("--samples", type=Whole(1), help="Only the first images.")
@click.option("--batch", type=Whole(1), default=64, show_default=True, help="Batch size.")
@click.option(
    "--metric",
    metavar="MODULE:FUNCTION",
    help="What to measure instead of accuracy: function(batches) goes through (outputs by name, "
    "labels) and returns numbers by name.",
)
@click.option(
    "--min",
    "least",
    multiple=True,
    metavar="NAME=VALUE",
    help="Fail if this number is below (exit code 1); may be repeated.",
)
@click.option(
    "--min-top1",
    type=Real(0, 1),
    metavar="FRACTION",
    help="Fail below this accuracy (exit code 1); the same as --min top1=FRACTION.",
)
@device_option()
@images_options
@shared_options
@click.pass_obj
def command(
    terminal: Terminal,
    /,
    artifact: Path,
    data: str,
    labels: Path | None,
    classes: Path | None,
    samples: int | None,
    batch: int,
    metric: str | None,
    least: tuple[str, ...],
    min_top1: float | None,
    device: str | None,
    **images: Any,
) -> None:
    """Measure the accuracy of ART, or what a --metric says of its outputs.

    Data is a .npz keyed by input name, or with `images`, and with `labels`; an image folder in
    ImageNet layout, or any with --labels; or module:function, a loader or a function that yields
    what loaders do. Floats are taken as they are. uint8 arrays are images (N,H,W,C or N,C,H,W) and
    are preprocessed as in the build, where --mean, --std, --resize and --crop do not say otherwise.
    """
    from tvmq.artifact.artifact import Artifact
    from tvmq.data.labels import Labelling
    from tvmq.data.preprocessing import Preprocessing
    from tvmq.run.evaluate import evaluate
    from tvmq.run.execute import check_preprocessing, open_for
    from tvmq.run.metrics import ACCURACY, accuracy
    from tvmq.run.session import Session
    from tvmq.run.users_metric import import_metric

    given = Preprocessing.from_flags(*(images[name] for name in IMAGE_FLAGS))
    gates = _gates(least, min_top1)
    measure = accuracy if metric is None else import_metric(metric)
    if metric is None:
        _check_names(gates, ACCURACY, "Accuracy")
    loaded = Artifact.load(artifact)
    use: Literal["classes", "given"] = "classes" if metric is None else "given"
    source = open_for(loaded, data, given, Labelling(use, table=labels, names=classes))
    if metric is None:
        source.require_labels()
    progress = terminal.progress()
    for note in source.notes:
        progress.note(f"note: {note}")
    session = Session(loaded, device)
    total = source.count if samples is None else min(samples, source.count or samples)
    with progress.bar(f"eval on {session.device}") as report:
        batches = source.batches(batch, limit=samples)
        result = evaluate(session, batches, total, report, measure, batch)
    check_preprocessing(source, given)  # what a function yields is known when it has been read
    if terminal.json:
        terminal.print_json(result.as_json())
    else:
        terminal.say(_in_words(result))
    _check_names(gates, result.numbers, "Accuracy" if metric is None else f"--metric {metric}")
    for flag, name, value in gates:
        if not result.numbers[name] >= value:  # NaN is above none
            raise GateError(
                f"{artifact}: {_LABELS.get(name, name)} is {result.numbers[name]:.4f} on {data}, "
                f"{flag} asks for {value:g}. Build it with calibration data, more bits or "
                "--granularity channel."
            )


def _gates(least: Sequence[str], min_top1: float | None) -> list[tuple[str, str, float]]:
    """Flag, name and value of each."""
    gates = [] if min_top1 is None else [("--min-top1", "top1", min_top1)]
    for text in least:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
            raise InputError(f"--min {text!r} is not of the form NAME=VALUE, such as miou=0.6")
        gates.append((f"--min {name}", name, value))
    return gates


def _check_names(
    gates: Sequence[tuple[str, str, float]], names: Mapping[str, float] | Sequence[str], what: str
) -> None:
    for flag, name, _ in gates:
        if name not in names:
            raise InputError(f"{flag}: {what} gives {', '.join(names)}. Choose one of these.")


def _in_words(result: Evaluation) -> str:
    """Numbers first, then where and how fast."""
    numbers = [
        f"{_LABELS.get(name, name)} {value if isinstance(value, int) else format(value, '.4f')}"
        for name, value in result.numbers.items()
    ]
    return (
        f"{result.device}: {', '.join(numbers)} of {result.n} images, "
        f"{result.images_per_second:.0f} images/s"
    )
