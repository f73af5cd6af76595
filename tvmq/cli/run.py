"""`tvmq run`: execute an artifact on arrays."""

from __future__ import annotations

from pathlib import Path

import click

from tvmq.cli.options import PATH, Whole, device_option, shared_options
from tvmq.cli.terminal import Terminal


@click.command("run")
@click.argument("artifact", metavar="ART", type=PATH)
@click.option(
    "-i",
    "--inputs",
    required=True,
    type=PATH,
    help="A .npz keyed by input name, or with `images`, which are preprocessed as in the build.",
)
@click.option("-o", "--outputs", required=True, type=PATH, help="The .npz to write.")
@click.option("--batch", type=Whole(1), default=64, show_default=True, help="Batch size.")
@device_option()
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
) -> None:
    """Run ART on the arrays of a .npz and write its outputs, keyed by output name."""
    from tvmq.artifact.artifact import Artifact
    from tvmq.run.execute import run_file
    from tvmq.run.session import Session

    session = Session(Artifact.load(artifact), device)
    shapes = run_file(session, inputs, outputs, batch, terminal.progress())
    if terminal.json:
        terminal.print_json({"device": session.device, "outputs": str(outputs), "shapes": shapes})
    else:
        named = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        terminal.say(f"{outputs}: {named} ({session.device})")
