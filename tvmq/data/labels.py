"""Labels: what is wanted of them, and the check of those that must be class numbers.

Calibration and ``run`` need none and never look at them, so masks, boxes and whatever else a data
set has stop neither. Accuracy needs class numbers. A metric of the user gets what there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from targets.errors import InputError

ClassNumbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labelling:
    """What is wanted of the labels of a source, and where an image folder has them from.

    Attributes:
        use: "ignored"; "classes": int64[N], checked; "given": whatever the source has.
        classes: number of classes of the network, to check their numbers; None if unknown.
        table: ``--labels``, a CSV of file and label beside an image folder.
        names: ``--classes``, a list of the classes in the order of their numbers.
    """

    use: Literal["ignored", "classes", "given"] = "ignored"
    classes: int | None = None
    table: Path | None = None
    names: Path | None = None


def as_class_numbers(values: Any, count: int, spec: str) -> ClassNumbers:
    """Class numbers as int64[count].

    Raises:
        InputError: if they are no whole numbers, or not one per image.
    """
    labels = np.asarray(values)
    check_one_each(labels.shape, count, spec)
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{spec}: labels are {labels.dtype}; accuracy needs class numbers (int64), for "
            "anything else give a --metric"
        )
    return labels.astype(np.int64)


def check_one_each(shape: tuple[int, ...], count: int, spec: str) -> None:
    """Check the shape of class numbers.

    Raises:
        InputError: if it is not one number per image.
    """
    if shape != (count,):
        raise InputError(
            f"{spec}: labels have shape {list(shape)} for {count} images; accuracy needs one "
            "number each, for anything else give a --metric"
        )


def check_range(labels: ClassNumbers, classes: int | None, spec: str, first: int = 0) -> None:
    """Check that class numbers are some of the network's.

    Args:
        labels: int64[N].
        classes: that the network has; None if unknown.
        spec: the source.
        first: the number of the first image.

    Raises:
        InputError: names the image.
    """
    wrong = labels < 0
    if classes is not None:
        wrong |= labels >= classes
    if wrong.any():
        index = int(wrong.argmax())
        top = "" if classes is None else f" to {classes - 1}"
        raise InputError(
            f"{spec}: label {labels[index]} of image {first + index} is out of range, "
            f"classes are numbered 0{top}"
        )


def rows_of_labels(labels: Any, count: int, rows: slice) -> Any:
    """Those of some images, of labels in any form that has one entry per image.

    Args:
        labels: an array or tensor [N, ...], a list or tuple of N, or a mapping or tuple of
            these; None.
        count: N.
        rows: the images.

    Raises:
        InputError: the labels are of no such form.
    """
    if labels is None:
        return None
    if isinstance(labels, Mapping):
        return {key: rows_of_labels(value, count, rows) for key, value in labels.items()}
    columns = isinstance(labels, tuple) and all(_entries(value) == count for value in labels)
    if columns == (
        _entries(labels) == count
    ):  # neither, or a batch of as many as there are columns
        raise InputError(
            f"the labels of a batch of {count} images can't be divided; let --samples end where a "
            "batch of the loader does"
        )
    return tuple(value[rows] for value in labels) if columns else labels[rows]


def _entries(labels: Any) -> int | None:
    """Along the first axis; None if there is none."""
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        return len(labels)
    shape: Sequence[int] = getattr(labels, "shape", ())
    return shape[0] if len(shape) else None
