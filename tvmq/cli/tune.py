"""`tvmq tune`: search for schedules that take fewer cycles on the NPU, and compile with them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from tvmq.cli.options import PATH, seed_option, shared_options, tuning_options
from tvmq.cli.terminal import Terminal


@click.command("tune")
@click.argument("artifact", metavar="ART", type=PATH)
@tuning_options(default=512)
@seed_option
@click.option("-o", "--output", type=PATH, help="Folder to write [default: ART].")
@click.option(
    "--plot", type=PATH, metavar="FILE.svg", help="Also draw the fewest cycles over the trials."
)
@shared_options
@click.pass_obj
def command(
    terminal: Terminal,
    artifact: Path,
    trials: int,
    tuning_records: tuple[Path, ...],
    seed: int,
    output: Path | None,
    plot: Path | None,
) -> None:
    """Search for faster schedules of ART's NPU programs, and compile them anew.

    The integers stay what they are: outputs are compared bit for bit. Trials are kept as records,
    so an interrupted search goes on where it was, and a later build can use them.
    """
    from targets.whole_files import whole_file
    from tvmq.tune.request import TuneRequest, all_cores, request_of
    from tvmq.tune.retune import retune

    output = output or artifact
    request = request_of(output, trials, seed, tuning_records, all_cores())
    request = request or TuneRequest(0, seed)
    with ExitStack() as stack:
        file = None if plot is None else stack.enter_context(whole_file(plot))
        result = retune(artifact, output, request, terminal.progress())
        if file is not None:
            from tvmq.pages.tuning_plot import tuning_plot  # imports matplotlib

            file.write(tuning_plot(result.tuned).encode())
    if plot is not None and not terminal.quiet:
        terminal.stderr.print(f"wrote {plot}", markup=False)
    if terminal.json:
        terminal.print_json(result.as_json())
    else:
        from tvmq.cli.report import tune_summary

        for line in tune_summary(result, artifact):
            terminal.say(line)
    result.check_gates()
