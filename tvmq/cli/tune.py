"""`tvmq tune`: search for schedules that take fewer cycles, or less time, and compile with them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from targets.errors import InputError
from tvmq.cli.options import PATH, seed_option, shared_options, tuning_options
from tvmq.cli.terminal import Terminal

if TYPE_CHECKING:
    from tvmq.tune.request import TuneRequest
    from tvmq.tune.retune import TuneResult
    from tvmq.tune.retune_kernels import KernelTuneResult
    from tvmq.tune.rpc_tracker import RpcTracker


@click.command("tune")
@click.argument("artifact", metavar="ART", type=PATH)
@tuning_options(default=512)
@seed_option
@click.option(
    "--device",
    type=click.Choice(["npu", "cpu"]),
    help="Whose schedules: NPU programs, by the timing model, or the CPU's kernels, on the clock "
    "[default: npu if ART was built for one].",
)
@click.option(
    "--rpc-tracker",
    metavar="HOST:PORT",
    help="TVM's RPC tracker of the servers that make the trials, all at the same time "
    "[default: this machine].",
)
@click.option("--rpc-key", metavar="KEY", help="Key of these servers.")
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
    device: str | None,
    rpc_tracker: str | None,
    rpc_key: str | None,
    output: Path | None,
    plot: Path | None,
) -> None:
    """Search for faster schedules of ART's NPU programs or CPU kernels, and compile them anew.

    The integers stay what they are: outputs are compared bit for bit. Trials are kept as records,
    so an interrupted search goes on where it was, and a later build can use them.
    """
    from targets.whole_files import whole_file
    from tvmq.tune.request import TuneRequest, all_cores, request_of
    from tvmq.tune.retune import retune

    tracker = _tracker(rpc_tracker, rpc_key)
    device = device or ("cpu" if _is_of_cpu(artifact) else "npu")
    if device == "cpu" and plot is not None:
        raise InputError("--plot: draws the cycles of the NPU. Leave it out with --device cpu.")
    output = output or artifact
    request = request_of(output, trials, seed, tuning_records, all_cores())
    request = replace(request or TuneRequest(0, seed), tracker=tracker)
    if device == "cpu":
        _tune_kernels(terminal, artifact, output, request)
        return
    with ExitStack() as stack:
        file = None if plot is None else stack.enter_context(whole_file(plot))
        result = retune(artifact, output, request, terminal.progress())
        if file is not None:
            from tvmq.pages.tuning_plot import tuning_plot  # imports matplotlib

            file.write(tuning_plot(result.tuned).encode())
    if plot is not None and not terminal.quiet:
        terminal.stderr.print(f"wrote {plot}", markup=False)
    _show(terminal, result, artifact)


def _tune_kernels(terminal: Terminal, artifact: Path, output: Path, request: TuneRequest) -> None:
    from tvmq.tune.retune_kernels import retune_kernels

    result = retune_kernels(artifact, output, request, terminal.progress())
    _show(terminal, result, artifact)


def _show(terminal: Terminal, result: TuneResult | KernelTuneResult, source: Path) -> None:
    from tvmq.cli.report import tune_summary

    if terminal.json:
        terminal.print_json(result.as_json())
    else:
        for line in tune_summary(result, source):
            terminal.say(line)
    result.check_gates()


def _tracker(address: str | None, key: str | None) -> RpcTracker | None:
    from tvmq.tune.rpc_tracker import RpcTracker

    if (address is None) != (key is None):
        raise InputError("--rpc-tracker and --rpc-key: one needs the other. Give both.")
    return None if address is None or key is None else RpcTracker.parse(address, key)


def _is_of_cpu(artifact: Path) -> bool:
    from tvmq.artifact.artifact import Artifact

    return not Artifact.load(artifact).has("npu.toml")
