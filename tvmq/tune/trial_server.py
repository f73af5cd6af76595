"""A server that makes trials of NPU programs for who tunes elsewhere, and is told by a tracker.

    python -m tvmq.tune.trial_server --tracker HOST:PORT --key KEY

It is TVM's ``tvm.exec.rpc_server`` with functions of ours, so it times the CPU's kernels as well.
"""

from __future__ import annotations

import multiprocessing
import os

import click

from targets import interrupts
from targets.errors import TvmqError
from tvmq.tune.rpc_tracker import RpcTracker
from tvmq.tune.server_trials import register


@click.command()
@click.option("--tracker", required=True, metavar="HOST:PORT", help="Where it registers.")
@click.option("--key", required=True, help="By which the tracker knows it.")
@click.option("--host", default="0.0.0.0", show_default=True, help="Address that it listens at.")
@click.option("--port", default=9090, show_default=True, help="First of 100 ports that it tries.")
@click.option("--custom-addr", metavar="HOST", help="Its address as the tracker is to tell it.")
def main(tracker: str, key: str, host: str, port: int, custom_addr: str | None) -> None:
    """Make trials of NPU programs for `tvmq tune --rpc-tracker`, one session after the other."""
    from tvm.rpc.server import PopenRPCServerState

    try:
        found = RpcTracker.parse(tracker, key)
    except TvmqError as error:
        raise click.UsageError(str(error).replace("--rpc-tracker", "--tracker")) from error
    multiprocessing.set_start_method("fork")  # a session's process has what is registered here
    register()
    # What rpc.Server runs in a process of its own, which would outlive this one if it is killed.
    server = PopenRPCServerState(
        *(host, port, port + 100),
        tracker_addr=(found.host, found.port),
        key=key,
        custom_addr=custom_addr,
    )
    try:
        server.thread.join()
    except KeyboardInterrupt:
        os._exit(interrupts.EXIT_CODE)  # the thread waits for sessions for ever
    raise click.ClickException("its last session broke it, as said above. Start it again.")


if __name__ == "__main__":
    main()
