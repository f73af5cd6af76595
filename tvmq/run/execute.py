"""Feed data to a session: open it as the artifact was built for, run it, keep the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import InputError
from targets.whole_files import whole_file
from tvmq.artifact.artifact import Artifact
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.data.source import DataSource
from tvmq.float_model import TensorSpec
from tvmq.progress import Progress
from tvmq.run.session import Array, Session


def open_for(artifact: Artifact, data: str, given: Preprocessing | None = None) -> DataSource:
    """Open data for an artifact, with the preprocessing of its build unless another is given.

    Raises:
        InputError: the data does not fit the network.
    """
    manifest = artifact.manifest
    inputs = [TensorSpec(info.name, (1, *info.image_shape), info.dtype) for info in manifest.inputs]
    how = Preprocessing.from_manifest(manifest.preprocessing or {})
    if given is not None and given != Preprocessing():
        how = given
    shape = manifest.outputs[0].shape
    classes = int(shape[1]) if len(shape) == 2 else None
    return open_data(data, inputs, how, classes=classes)


def run_file(
    session: Session, inputs: Path, outputs: Path, batch: int, progress: Progress
) -> dict[str, list[int]]:
    """Run the arrays of an .npz and write the outputs, keyed by output name.

    Returns:
        The shape of each output.

    Raises:
        InputError: the file does not fit the network, or the outputs can't be written.
    """
    if not inputs.is_file():
        raise InputError(f"{inputs}: no such file. Give an .npz keyed by input name.")
    data = open_for(session.artifact, str(inputs))
    parts: list[dict[str, Array]] = []
    done = 0
    with whole_file(outputs) as file:
        with progress.bar("run") as report:
            for piece in data.batches(batch):
                parts.append(session.run(piece.inputs))
                done += len(piece)
                report(done, data.count)
        joined: dict[str, Any] = {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }
        np.savez(file, **joined)
    return {name: list(array.shape) for name, array in joined.items()}
