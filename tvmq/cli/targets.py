"""`tvmq targets`: the machines that a model can be built for."""

from __future__ import annotations

import click

from tvmq.cli.options import shared_options
from tvmq.cli.terminal import Terminal


@click.command("targets")
@shared_options
@click.pass_obj
def command(terminal: Terminal) -> None:
    """List the machines; your own is a TOML file: --target npu:path/to/mine.toml."""
    from tvmq.report import target_rows

    rows = target_rows()
    if terminal.json:
        terminal.print_json({"targets": rows})
    else:
        headings = list(rows[0])
        cells = [[str(row[heading]) for heading in headings] for row in rows]
        terminal.table(headings, cells, right=set(headings[2:]))
