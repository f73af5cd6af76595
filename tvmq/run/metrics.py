"""Accuracy of logits against labels, counted exactly and summed over batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
        five: images whose class is among the five largest.
    """

    n: int = 0
    first: int = 0
    five: int = 0

    def add(self, logits: npt.NDArray[np.generic], labels: npt.NDArray[np.integer]) -> None:
        """Count one batch: logits [N, classes], labels int[N]."""
        places = ranks(logits, labels)
        self.n += len(places)
        self.first += int((places == 0).sum())
        self.five += int((places < 5).sum())

    @property
    def top1(self) -> float:
        """Fraction of images in [0, 1]; 0 before the first image."""
        return self.first / self.n if self.n else 0.0

    @property
    def top5(self) -> float:
        """Fraction of images in [0, 1]; 0 before the first image."""
        return self.five / self.n if self.n else 0.0
