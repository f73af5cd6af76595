"""Scores of attention with hidden tokens, whose step is chosen without these.

A mask leaves a gap between what it hides and all that it shows. What lies below counts nothing in
a softmax, wherever it lies, so long as it is far enough below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from targets.rows import EXPONENTIAL_BITS
from tvmq.calibrate.observers import Histogram
from tvmq.capture.constant_masks import LOWEST
from tvmq.regions import Regions

FAR = (EXPONENTIAL_BITS + 1) * math.log(2)
"""So far below the largest of a row a score counts 0."""


def scores_of(regions: Regions, histograms: Mapping[str, Histogram]) -> set[str]:
    """Sums with a mask that hides, which nothing but softmax reads."""
    layers = regions.layers
    softmax = {layer.name for layer in layers.values() if layer.kind == "softmax"}

    def hides(name: str) -> bool:
        maker = regions.values[name].layer
        return bool(maker) and layers[maker].kind == "constant" and histograms[name].low == LOWEST

    return {
        name
        for name, readers in regions.readers.items()
        if readers and readers <= softmax
        if (maker := regions.values[name].layer)
        if any(map(hides, layers[maker].inputs))
    }


def without_hidden(histogram: Histogram) -> Histogram:
    """The histogram of what is shown, and room below it for what is hidden; itself if nothing is.

    A gap of less than ``FAR`` hides nothing.
    """
    centres, _ = histogram.occupied()
    gaps = np.flatnonzero(np.diff(centres) > FAR)
    if not len(gaps):
        return histogram
    shown = float(centres[gaps[-1] + 1])
    edges = histogram.edges
    counts = np.where(edges[1:] > shown, histogram.counts, 0.0)
    note = f"{histogram.note}, without {100 * (1 - counts.sum() / histogram.counts.sum()):.3g} %"
    return replace(histogram, counts=counts, low=shown - FAR, note=f"{note} that a mask hides")
