"""`tvmq run`: execute an artifact on arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tvmq.cli.options import (
    IMAGE_FLAGS,
    PATH,
    Whole,
    device_option,
    images_options,
    shared_options,
)
from tvmq.cli.terminal import Terminal


@click.command("run")
@click.argument("artifact", metavar="ART", type=PATH)
@click.option(
    "-i",
    "--inputs",
    required=True,
    type=PATH,
    help="A .npz keyed by input name, or with `images`.",
)
@click.option("-o", "--outputs", required=True, type=PATH, help="The .npz to write.")
@click.option("--batch", type=Whole(1), default=64, show_default=True, help="Batch size.")
@device_option()
@images_options
@shared_options
@click.pass_obj
def command(
    terminal: Terminal,
    /,
    artifact: Path,
    inputs: Path,
    outputs: Path,
    batch: int,
    device: str | None,
    **images: Any,
) -> None:
    """Run ART on the arrays of a .npz and write its outputs, keyed by output name.

    Floats are taken as they are. uint8 arrays are images (N,H,W,C) and are preprocessed as in the
    build, where --mean, --std, --resize and --crop do not say otherwise.
    """
    from tvmq.artifact.artifact import Artifact
    from tvmq.data.preprocessing import Preprocessing
    from tvmq.run.execute import run_file
    from tvmq.run.session import Session

    given = Preprocessing.from_flags(*(images[name] for name in IMAGE_FLAGS))
    session = Session(Artifact.load(artifact), device)
    shapes = run_file(session, inputs, outputs, batch, terminal.progress(), given)
    if terminal.json:
        terminal.print_json({"device": session.device, "outputs": str(outputs), "shapes": shapes})
    else:
        named = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        terminal.say(f"{outputs}: {named} ({session.device})")
