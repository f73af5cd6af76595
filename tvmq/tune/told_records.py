"""Records while a tuning uses them: what they lack is said, and what an interrupt keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvmq.progress import Progress
from tvmq.tune.records import Machine, Records
from tvmq.tune.request import TuneRequest


@contextmanager
def told_records(
    machine: Machine, request: TuneRequest, progress: Progress, wanted: str, kind: str = "npu"
) -> Iterator[Records]:
    """The records of a request.

    Args:
        machine: whose they are.
        request: names their folders.
        progress: told.
        wanted: of what records must be, in words.
        kind: of the machine, as ``Records`` has it.

    Raises:
        InputError: a folder can't be used.
    """
    given = [str(folder) for folder in request.records if folder.is_dir()]
    with Records(machine, request.records, request.output, kind) as records:
        for note in records.notes:
            progress.note(f"note: {note}")
        if given and not records.read:
            progress.note(f"note: no record in {', '.join(given)} is of {wanted}; none is used.")
        try:
            yield records
        except KeyboardInterrupt:
            if request.output is not None:
                progress.note(
                    f"finished trials are kept in {request.output}; the same command goes on from "
                    f"there."
                )
            raise
