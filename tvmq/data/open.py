"""Data for calibration and evaluation: four forms, one stream of checked batches.

* ``.npz`` keyed by input name, or with ``images`` for the only input; optionally ``labels``;
* a folder of images in ImageNet layout (class folders sorted by name), or with a table of labels;
* ``module:function`` whose result iterates over arrays, dicts, or (either, labels).

Arrays are floats as the network reads them, or uint8 images (N, H, W, C), which need mean and std.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from targets.errors import InputError
from targets.reading import what_is
from tvmq.data.function import FunctionSource
from tvmq.data.images import ImageFolderSource
from tvmq.data.labels import Labelling
from tvmq.data.npz import NpzSource
from tvmq.data.preprocessing import Preprocessing
from tvmq.data.source import Batch, DataSource
from tvmq.float_model import TensorSpec

__all__ = ["Batch", "DataSource", "Labelling", "Preprocessing", "open_data"]


def open_data(
    spec: str,
    inputs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None = None,
    labelling: Labelling | None = None,
) -> DataSource:
    """Open a source of any of the four forms; reads headers and names only.

    Args:
        spec: path of an .npz or a folder, or ``module:function``.
        inputs: what the network takes.
        preprocessing: for 8-bit images.
        labelling: what is wanted of labels; None: nothing.

    Raises:
        InputError: says what is wrong with the source and what would be right.
    """
    how = preprocessing or Preprocessing()
    wanted = labelling or Labelling()
    found = what_is(spec)
    if found == "folder":
        return ImageFolderSource(spec, inputs, how, wanted)
    for flag, path in (("--labels", wanted.table), ("--classes", wanted.names)):
        if path is not None:
            raise InputError(f"{flag} {path}: is for a folder of images, and {spec} is none.")
    if found == "file":
        return NpzSource(spec, inputs, how, wanted)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec):
        return FunctionSource(spec, inputs, how, wanted)
    raise InputError(
        f"{spec}: no such file or folder; data is an .npz, a folder of images or module:function"
    )
