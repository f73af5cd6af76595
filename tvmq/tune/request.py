"""What a tuning is asked for, and where its records are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from targets.errors import InputError
from tvmq.artifact.artifact import is_artifact
from tvmq.tune.rpc_tracker import RpcTracker


@dataclass(frozen=True)
class TuneRequest:
    """What is asked of a tuning.

    Attributes:
        trials: for all programs of the network together; 0 to use records alone.
        seed: of all that is random.
        records: folders to read.
        output: the folder that gets the trials; None: they are not kept.
        processes: that make trials, at most; see ``processes.Processes``.
        tracker: of the servers that make them instead; None: this machine does.
    """

    trials: int = 0
    seed: int = 0
    records: tuple[Path, ...] = ()
    output: Path | None = None
    processes: int = 1
    tracker: RpcTracker | None = None


def all_cores() -> int:
    """Processes that this one may keep busy."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def records_of(artifact: Path) -> Path:
    """The folder beside an artifact that keeps the records of its tuning."""
    return artifact.absolute().with_name(f"{artifact.name}.tuning")


def request_of(
    artifact: Path, trials: int, seed: int, folders: Sequence[Path], processes: int = 1
) -> TuneRequest | None:
    """What the options of a command ask for; None if for no tuning.

    Args:
        artifact: to be written; its own records are beside it.
        trials: how many; 0 to use records alone.
        seed: of all that is random.
        folders: of records; the first one gets the trials.
        processes: that make trials, at most.

    Raises:
        InputError: a folder of records is an artifact, or isn't there and no trials are to be made.
    """
    for folder in folders:
        if is_artifact(folder):
            raise InputError(
                f"{folder}: is an artifact, whose records of tuning lie beside it, in "
                f"{records_of(folder)}. Give a folder of records."
            )
    if not trials:
        for folder in folders:
            if not folder.is_dir():
                raise InputError(
                    f"{folder}: no such folder of tuning records. Give one that `tvmq tune` or "
                    f"`tvmq build --trials` wrote, or --trials."
                )
        return TuneRequest(0, seed, tuple(folders)) if folders else None
    output = (*folders, records_of(artifact))[0]
    return TuneRequest(trials, seed, tuple(folders), output, processes)
