"""What every data source gives: a stream of checked batches that never holds more than a few.

The forms are in ``npz``, ``images`` and ``function``; ``open`` opens them.
"""

from __future__ import annotations

import abc
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import InputError
from targets.reading import reading
from tvmq.data.labels import Labelling, check_range, rows_of_labels
from tvmq.data.preprocessing import Floats, Preprocessing
from tvmq.float_model import TensorSpec

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Batch:
    """Inputs by name, float32[N, ...], and labels where they are wanted and the source has them.

    Labels are int64[N] where class numbers are wanted; otherwise they are in the source's form.
    """

    inputs: dict[str, Floats]
    labels: Any = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, rows: slice) -> Batch:
        labels = rows_of_labels(self.labels, len(self), rows)
        return Batch({name: value[rows] for name, value in self.inputs.items()}, labels)


class DataSource(abc.ABC):
    """A source of batches that can be read again and again.

    Attributes:
        spec: what the user gave, for messages and the manifest.
        inputs: the inputs of the network; their first axis is ignored.
        preprocessing: what is done to 8-bit images.
        labelling: what is wanted of labels.
        count: number of images; None where only reading to the end would tell.
        has_labels: whether batches have labels; None where only reading would tell.
        takes_images: whether there are images, so that ``preprocessing`` means something; None
            until reading tells.
        notes: what the user should know of the data before its numbers.
    """

    notes: tuple[str, ...] = ()
    count: int | None = None
    has_labels: bool | None = None
    takes_images: bool | None = None

    def __init__(
        self,
        spec: str,
        inputs: Sequence[TensorSpec],
        preprocessing: Preprocessing,
        labelling: Labelling,
    ) -> None:
        self.spec = spec
        self.inputs = tuple(inputs)
        self.preprocessing = preprocessing
        self.labelling = labelling

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Sha256 of the data, as far as it can be had without decoding it."""

    @abc.abstractmethod
    def _chunks(self, size: int, indices: Sequence[int] | None) -> Iterator[Batch]:
        """Preprocessed images in order, in pieces of about ``size``; ``indices`` ascend."""

    def batches(self, size: int, *, limit: int | None = None) -> Iterator[Batch]:
        """All images in order, ``size`` at a time; the last batch may be smaller.

        Args:
            size: images per batch, at least 1.
            limit: stop after so many images.

        Raises:
            InputError: names the image that is not finite or has a wrong label.
        """
        indices = None
        if limit is not None and self.count is not None and limit < self.count:
            indices = range(limit)
        return self._checked(size, indices, limit)

    def samples(self, count: int, size: int, *, seed: int = 0) -> Iterator[Batch]:
        """A deterministic subset spread evenly over the source, in order.

        One image is drawn from each of ``count`` equal stretches. A source of unknown length gives
        its first images.

        Raises:
            InputError: if the source has fewer than ``count`` images; at once if it knows.
        """
        if self.count is None:
            return self._first(count, size)
        if self.count < count:
            raise self._too_few(self.count, count)
        return self._checked(size, spread_indices(self.count, count, seed), count)

    def require_labels(self) -> None:
        """Check that there are labels, where that is known.

        Raises:
            InputError: says what to add.
        """
        if self.has_labels is False:
            raise InputError(
                f"{self.spec} has no labels, accuracy needs them; add an array 'labels', use one "
                "folder per class, or give --labels FILE.csv beside a folder of images"
            )

    def _first(self, count: int, size: int) -> Iterator[Batch]:
        seen = 0
        for batch in self._checked(size, None, count):
            seen += len(batch)
            yield batch
        if seen < count:
            raise self._too_few(seen, count)

    def _too_few(self, have: int, want: int) -> InputError:
        return InputError(
            f"{self.spec} has {have} images, {want} are wanted; "
            "ask for fewer (--calib-samples) or give more"
        )

    def _checked(
        self, size: int, indices: Sequence[int] | None, limit: int | None
    ) -> Iterator[Batch]:
        """Rebatch to ``size`` and check every image."""
        if size < 1:
            raise InputError(f"a batch of {size} images is not possible; use at least 1")
        held: list[Batch] = []
        given = 0
        for chunk in self._chunks(size, indices):
            self._check(chunk, given + sum(map(len, held)))
            held.append(chunk)
            while sum(map(len, held)) >= size and (limit is None or given < limit):
                joined = _join(held)
                take = size if limit is None else min(size, limit - given)
                yield joined[:take]
                given += take
                held = [joined[take:]] if len(joined) > take else []
            if limit is not None and given >= limit:
                return
        if held:
            yield _join(held) if limit is None else _join(held)[: limit - given]

    def _check(self, batch: Batch, first: int) -> None:
        for wanted in self.inputs:
            value = batch.inputs[wanted.name]
            finite = np.isfinite(value).all(axis=tuple(range(1, value.ndim)))
            if not finite.all():
                raise InputError(
                    f"{self.spec}: input {wanted.name!r} of image {first + int(finite.argmin())} "
                    "has a NaN or infinite value, or one beyond float32. Remove it, or mend the "
                    "preprocessing."
                )
        if batch.labels is not None and self.labelling.use == "classes":
            check_range(batch.labels, self.labelling.classes, self.spec, first)

    def _only_input(self) -> TensorSpec:
        if len(self.inputs) != 1 or len(self.inputs[0].shape) != 4:
            wanted = ", ".join(f"{spec.name} {_shape(spec.shape)}" for spec in self.inputs)
            raise InputError(
                f"{self.spec} holds images, but the network takes {wanted}; "
                "give a .npz keyed by input name"
            )
        return self.inputs[0]


def spread_indices(total: int, count: int, seed: int) -> list[int]:
    """``count`` ascending indices below ``total``, one drawn from each of equal stretches."""
    edges = [index * total // count for index in range(count + 1)]
    generator = np.random.default_rng(seed)
    return [int(generator.integers(a, b)) for a, b in itertools.pairwise(edges)]


def sha256_of_file(path: Path) -> str:
    """Sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with reading(path, "a file"), path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _join(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    names = parts[0].inputs
    labels = [part.labels for part in parts if part.labels is not None]
    return Batch(
        {name: np.concatenate([part.inputs[name] for part in parts]) for name in names},
        np.concatenate(labels) if len(labels) == len(parts) else None,
    )


def _shape(shape: Sequence[int]) -> str:
    return "(" + ", ".join(["N", *map(str, shape[1:])]) + ")"
