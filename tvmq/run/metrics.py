"""What a metric is, and the one that is there: accuracy of logits against class numbers.

Right guesses are counted exactly and summed over batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from targets.errors import InputError

Batches: TypeAlias = Iterator[tuple[dict[str, npt.NDArray[Any]], Any]]
"""Outputs by name, [N, ...], and labels, batch by batch; floats are float32."""

Metric: TypeAlias = Callable[[Batches], Any]
"""Is called once, goes through all batches, and returns a number or numbers by name."""

FORM = (
    "Write it as function(batches), which goes through the (outputs, labels) of all batches and "
    "returns a dict of numbers by name"
)

ACCURACY = ("top1", "top5")
"""The numbers of ``accuracy``."""


def accuracy(batches: Batches) -> dict[str, float]:
    """Right guesses of the first output: ``top1`` and ``top5``, fractions in [0, 1].

    An output of class numbers, as a network that ends in an argmax has it, is one guess: it has no
    ``top5``.

    Raises:
        InputError: no labels, or an output that holds no logits.
    """
    counted = Accuracy()
    for outputs, labels in batches:
        if labels is None:
            raise InputError(
                "The evaluation data has no labels. Accuracy needs one per image; give them, or a "
                "--metric that needs none."
            )
        first = next(iter(outputs.values()))
        if first.ndim == 1 and first.dtype.kind in "iu":
            counted.add_guesses(first, labels)
        else:
            _check(first, labels)
            counted.add(first, labels)
    numbers = dict(zip(ACCURACY, (counted.top1, counted.top5), strict=True))
    return numbers if counted.five is not None else {"top1": counted.top1}


def numbers_of(found: Any, name: str) -> dict[str, float]:
    """Numbers by name of what a metric returned: of Python, or NumPy or torch without axes.

    Args:
        found: a number or a mapping of numbers.
        name: of the metric, and of its number if it is one.

    Raises:
        InputError: there is none, or something else.
    """
    named = found if isinstance(found, Mapping) else {name: found}
    if not named:
        raise InputError(f"The metric {name} returned no number. {FORM}.")
    numbers = {}
    for key, value in named.items():
        shape = tuple(getattr(value, "shape", ()))
        number = value.item() if shape == () and hasattr(value, "item") else value
        if not isinstance(number, int | float):
            what = f"an array of shape {list(shape)}" if shape else f"a {type(value).__name__}"
            raise InputError(f"The metric {name} returned {str(key)!r} as {what}. {FORM}.")
        numbers[str(key)] = number
    return numbers


def _check(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.integer]) -> None:
    if logits.ndim != 2:
        raise InputError(
            f"The first output has shape {list(logits.shape)}, neither [N, classes] nor class "
            f"numbers [N], so accuracy has no meaning. Give a --metric that has, or use `tvmq run`."
        )
    classes = logits.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"Labels reach from {labels.min()} to {labels.max()}, but the network has {classes} "
            f"classes, 0 to {classes - 1}. Check that data and network belong together."
        )


def ranks(
    logits: npt.NDArray[np.generic], labels: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """How many classes stand before the right one.

    Among equal logits the lower class stands first, as in ``argmax``; integer networks have such
    ties, and a count that followed the sort algorithm would differ from machine to machine.

    Args:
        logits: [N, classes], any real type.
        labels: int[N] in [0, classes).

    Returns:
        int64[N] in [0, classes); 0 where the guess is right.
    """
    right = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1])[None, :] < labels[:, None]
    return ((logits > right) | ((logits == right) & earlier)).sum(axis=1, dtype=np.int64)


@dataclass
class Accuracy:
    """Running counts.

    Attributes:
        n: images seen.
        first: images whose class has the largest logit.
        five: images whose class is among the five largest; None where there is one guess.
    """

    n: int = 0
    first: int = 0
    five: int | None = 0

    def add(self, logits: npt.NDArray[np.generic], labels: npt.NDArray[np.integer]) -> None:
        """Count one batch: logits [N, classes], labels int[N]."""
        places = ranks(logits, labels)
        self.n += len(places)
        self.first += int((places == 0).sum())
        self.five = (self.five or 0) + int((places < 5).sum())

    def add_guesses(
        self, guesses: npt.NDArray[np.integer], labels: npt.NDArray[np.integer]
    ) -> None:
        """Count one batch of class numbers, int[N] both."""
        self.n += len(guesses)
        self.first += int((guesses == labels).sum())
        self.five = None

    @property
    def top1(self) -> float:
        """Fraction of images in [0, 1]; 0 before the first image."""
        return self.first / self.n if self.n else 0.0

    @property
    def top5(self) -> float:
        """Fraction of images in [0, 1]; 0 before the first image."""
        return (self.five or 0) / self.n if self.n else 0.0
