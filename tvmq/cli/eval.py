"""`tvmq eval`: accuracy and speed of an artifact on labelled data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from targets.errors import GateError
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
    "--min-top1",
    type=Real(0, 1),
    metavar="FRACTION",
    help="Fail below this accuracy (exit code 1).",
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
    min_top1: float | None,
    device: str | None,
    **images: Any,
) -> None:
    """Measure the accuracy of ART.

    Data is a .npz keyed by input name, or with `images`, and with `labels`; an image folder in
    ImageNet layout, or any with --labels; or module:function. Floats are taken as they are. uint8
    arrays are images (N,H,W,C) and are preprocessed as in the build, where --mean, --std, --resize
    and --crop do not say otherwise.
    """
    from tvmq.artifact.artifact import Artifact
    from tvmq.data.labels import Labelling
    from tvmq.data.preprocessing import Preprocessing
    from tvmq.run.evaluate import evaluate
    from tvmq.run.execute import open_for
    from tvmq.run.session import Session

    given = Preprocessing.from_flags(*(images[name] for name in IMAGE_FLAGS))
    loaded = Artifact.load(artifact)
    source = open_for(loaded, data, given, Labelling("classes", table=labels, names=classes))
    source.require_labels()
    progress = terminal.progress()
    for note in source.notes:
        progress.note(f"note: {note}")
    session = Session(loaded, device)
    total = source.count if samples is None else min(samples, source.count or samples)
    with progress.bar(f"eval on {session.device}") as report:
        result = evaluate(session, source.batches(batch, limit=samples), total, report)
    if terminal.json:
        terminal.print_json(asdict(result))
    else:
        terminal.say(
            f"{session.device}: top-1 {result.top1:.4f}, top-5 {result.top5:.4f} of {result.n} "
            f"images, {result.images_per_second:.0f} images/s"
        )
    if min_top1 is not None and not result.top1 >= min_top1:  # NaN is above none
        raise GateError(
            f"{artifact}: top-1 is {result.top1:.4f} on {data}, --min-top1 asks for {min_top1:g}. "
            f"Build it with calibration data, more bits or --granularity channel."
        )
