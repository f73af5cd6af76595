"""`tvmq doctor`: is everything installed that a build needs, and does it work together?"""

from __future__ import annotations

from dataclasses import asdict

import click

from targets.errors import MissingDependencyError
from tvmq.cli.options import shared_options
from tvmq.cli.terminal import Terminal


@click.command("doctor")
@shared_options
@click.pass_obj
def command(terminal: Terminal) -> None:
    """Check the environment: packages, their versions, compiler, processor."""
    from tvmq.doctor import examine

    checks = examine()
    if terminal.json:
        terminal.print_json({"checks": [asdict(check) for check in checks]})
    else:
        rows = [[check.name, check.state, check.found, check.advice] for check in checks]
        terminal.table(["check", "state", "found", "advice"], rows, right=set())
    broken = [check for check in checks if check.state == "error"]
    if broken:
        first = broken[0]
        raise MissingDependencyError(f"{first.name} {first.found}: {first.advice}")
