"""Data for calibration and evaluation: four forms, one stream of checked batches.

* ``.npz`` keyed by input name, float arrays, optionally ``labels``;
* ``.npz`` with ``images`` (uint8 N,H,W,C) and optionally ``labels``, with mean and std;
* a folder of images in ImageNet layout (class folders sorted by name), with mean and std;
* ``module:function`` whose result iterates over arrays, dicts, or (either, labels).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from targets.errors import InputError
from tvmq.data.function import FunctionSource
from tvmq.data.images import ImageFolderSource
from tvmq.data.npz import NpzSource
from tvmq.data.preprocessing import Preprocessing
from tvmq.data.source import Batch, DataSource
from tvmq.float_model import TensorSpec

__all__ = ["Batch", "DataSource", "Preprocessing", "open_data"]


def open_data(
    spec: str,
    inputs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None = None,
    *,
    classes: int | None = None,
) -> DataSource:
    """Open a source of any of the four forms; reads headers and names only.

    Args:
        spec: path of an .npz or a folder, or ``module:function``.
        inputs: what the network takes.
        preprocessing: for 8-bit images.
        classes: number of classes, to check labels.

    Raises:
        InputError: says what is wrong with the source and what would be right.
    """
    how = preprocessing or Preprocessing()
    path = Path(spec)
    if path.is_dir():
        return ImageFolderSource(spec, inputs, how, classes)
    if path.is_file():
        return NpzSource(spec, inputs, how, classes)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec):
        return FunctionSource(spec, inputs, how, classes)
    raise InputError(
        f"{spec}: no such file or folder; data is an .npz, a folder of images or module:function"
    )
