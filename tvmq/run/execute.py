"""Feed data to a session: open it as the artifact was built for, run it, keep the outputs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from targets.errors import InputError
from targets.reading import check_is_file, what_is
from targets.whole_files import whole_file
from tvmq.artifact.artifact import Artifact
from tvmq.data.labels import Labelling
from tvmq.data.open import open_data
from tvmq.data.preprocessing import Preprocessing
from tvmq.data.source import DataSource
from tvmq.float_model import TensorSpec
from tvmq.progress import Progress
from tvmq.run.session import Array, Session


def open_for(
    artifact: Artifact,
    data: str,
    given: Preprocessing | None = None,
    labelling: Labelling | None = None,
) -> DataSource:
    """Open data for an artifact.

    Args:
        artifact: says what its network takes and how images were preprocessed.
        data: in one of the forms of ``tvmq/data/open.py``.
        given: preprocessing that is to be done otherwise.
        labelling: what is wanted of labels; None: class numbers. Of these, the artifact says how
            many there are.

    Raises:
        InputError: the data does not fit the network, or ``given`` changes nothing about it.
    """
    manifest = artifact.manifest
    inputs = [TensorSpec(info.name, (1, *info.image_shape), info.dtype) for info in manifest.inputs]
    how = Preprocessing.from_manifest(manifest.preprocessing or {})
    if given is not None:
        how = how.otherwise(given)
    wanted = labelling or Labelling("classes")
    shape = manifest.outputs[0].shape
    if wanted.use == "classes" and len(shape) == 2:  # a metric may number what it likes
        wanted = replace(wanted, classes=int(shape[1]))
    source = open_data(data, inputs, how, wanted)
    check_preprocessing(source, given)
    return source


def check_preprocessing(source: DataSource, given: Preprocessing | None) -> None:
    """Check, as far as the source knows, that preprocessing which was asked for is done.

    Raises:
        InputError: there are floats alone, which are taken as they are.
    """
    if given not in (None, Preprocessing()) and source.takes_images is False:
        raise InputError(
            f"{source.spec} holds floats, which are taken as they are, so --mean, --std, --resize "
            "and --crop change nothing. Leave them out, or give uint8 images."
        )


def run_file(
    session: Session,
    inputs: Path,
    outputs: Path,
    batch: int,
    progress: Progress,
    given: Preprocessing | None = None,
) -> dict[str, list[int]]:
    """Run the arrays of an .npz and write the outputs, keyed by output name.

    Args:
        session: the network on a device.
        inputs: the .npz, of floats as the network reads them or of 8-bit images.
        outputs: the .npz to write.
        batch: images at a time.
        progress: told about images done.
        given: preprocessing of images that is to be done otherwise than in the build.

    Returns:
        The shape of each output.

    Raises:
        InputError: the file does not fit the network, or the outputs can't be written.
    """
    check_is_file(inputs, "Give an .npz keyed by input name.")
    if (found := what_is(outputs)) not in ("nothing", "file"):
        raise InputError(f"{outputs}: is a {found}. Give the .npz to write.")
    data = open_for(session.artifact, str(inputs), given, Labelling("ignored"))
    parts: list[dict[str, Array]] = []
    done = 0
    with whole_file(outputs) as file:
        with progress.bar("run") as report:
            for piece in data.batches(batch):
                parts.append(session.run(piece.inputs))
                done += len(piece)
                report(done, data.count)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        _write_npz(file, joined)
    return {name: list(array.shape) for name, array in joined.items()}


def _write_npz(file: BinaryIO, arrays: Mapping[str, Array]) -> None:
    """As np.savez, whose own arguments, ``file`` and ``allow_pickle``, no array can be called."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
