"""`tvmq profile`: per operator device, cycles or microseconds, MACs, bytes, what bounds it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tvmq.cli.options import PATH, shared_options
from tvmq.cli.terminal import Terminal

if TYPE_CHECKING:
    from tvmq.profile.profile import Profile
    from tvmq.profile.table import Table


@click.command("profile")
@click.argument("artifact", metavar="ART", type=PATH)
@click.argument("other", metavar="[ART]", type=PATH, required=False)
@click.option("--energy", default="", metavar="TABLE", help="Energy table of the machine.")
@click.option("--csv", "csv_file", type=PATH, metavar="FILE", help="Also write the rows as CSV.")
@click.option(
    "--trace", type=PATH, metavar="FILE", help="Also write a Chrome trace of the NPU (Perfetto)."
)
@click.option(
    "--html",
    type=PATH,
    metavar="FILE",
    help="Also write a page with plots and tables; it is one file and needs no network.",
)
@shared_options
@click.pass_obj
def command(
    terminal: Terminal,
    artifact: Path,
    other: Path | None,
    energy: str,
    csv_file: Path | None,
    trace: Path | None,
    html: Path | None,
) -> None:
    """Say where the time of one image goes, operator by operator.

    A second artifact is put beside the first, row by row.
    """
    from targets.whole_files import whole_file
    from tvmq.artifact.artifact import Artifact
    from tvmq.profile.as_json import to_csv, to_json
    from tvmq.profile.profile import profile
    from tvmq.profile.table import operator_table, summary, with_host_as_one
    from tvmq.profile.trace import to_trace

    if other is not None:
        if csv_file or trace:
            raise click.UsageError("--csv and --trace are of one artifact: give them one.")
        _compare(terminal, artifact, other, energy, html)
        return
    wanted = ((csv_file, to_csv), (trace, to_trace), (html, _page))
    files = [(path, render) for path, render in wanted if path is not None]
    with ExitStack() as stack:
        opened = [stack.enter_context(whole_file(path)) for path, _ in files]
        with terminal.progress().stage("profile"):
            result = profile(Artifact.load(artifact), energy)
        for file, (_, render) in zip(opened, files, strict=True):
            file.write(render(result).encode())
    for path, _ in files:
        if not terminal.quiet:
            terminal.stderr.print(f"wrote {path}", markup=False)
    if terminal.json:
        terminal.print_json(to_json(result))
    else:
        _show(terminal, operator_table(with_host_as_one(result)), summary(result))


def _page(result: Profile) -> str:
    from tvmq.pages.profile_page import profile_page  # imports matplotlib, which takes its time

    return profile_page(result)


def _compare(
    terminal: Terminal, artifact: Path, other: Path, energy: str, html: Path | None
) -> None:
    from targets.whole_files import whole_file
    from tvmq.artifact.artifact import Artifact
    from tvmq.profile.compare import comparison_json, comparison_summary, comparison_table
    from tvmq.profile.profile import profile

    with ExitStack() as stack:
        file = None if html is None else stack.enter_context(whole_file(html))
        with terminal.progress().stage("profile"):
            first, second = (profile(Artifact.load(path), energy) for path in (artifact, other))
        if file is not None:
            from tvmq.pages.comparison_page import comparison_page

            file.write(comparison_page(first, second).encode())
    if html is not None and not terminal.quiet:
        terminal.stderr.print(f"wrote {html}", markup=False)
    if terminal.json:
        terminal.print_json(comparison_json(first, second))
    else:
        _show(terminal, comparison_table(first, second), comparison_summary(first, second))


def _show(terminal: Terminal, table: Table, lines: Iterable[str]) -> None:
    terminal.table(table.headings, table.rows, table.numbers, table.dispensable)
    for line in lines:
        terminal.say(line)
