"""`tvmq profile`: per operator device, cycles or microseconds, MACs, bytes, what bounds it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from tvmq.cli.options import PATH, shared_options
from tvmq.cli.terminal import Terminal


@click.command("profile")
@click.argument("artifact", metavar="ART", type=PATH)
@shared_options
@click.pass_obj
def command(terminal: Terminal, artifact: Path) -> None:
    """Say where the time of one image goes, operator by operator."""
    from tvmq.artifact import Artifact
    from tvmq.profile import profile
    from tvmq.report import profile_rows, profile_summary

    with terminal.progress().stage("profile"):
        result = profile(Artifact.load(artifact))
    if terminal.json:
        terminal.print_json(asdict(result))
        return
    headings, rows, numbers = profile_rows(result)
    terminal.table(headings, rows, right=numbers)
    for line in profile_summary(result):
        terminal.say(line)
