"""Run calibration images through the float graph and keep what the plan needs to know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.fx import Node

from targets.errors import InputError
from tvmq.calibrate.behind_pools import find_selections, selected
from tvmq.calibrate.channel_ranges import ChannelRange, watched_nodes
from tvmq.calibrate.observers import Histogram
from tvmq.data.open import Batch, DataSource
from tvmq.execute_graph import GraphRun
from tvmq.float_model import FloatModel
from tvmq.regions import Regions, find_regions
from tvmq.settings import CALIBRATION_BATCH

InputBatch: TypeAlias = Any
"""A batch of a data source, a tensor or array, a sequence of them in the order of the inputs, or a
mapping by input name."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the images done and the images in all."""

Inputs: TypeAlias = tuple[torch.Tensor, ...]

BEHIND_POOLS = "behind the max pools that read it"


@dataclass(frozen=True, eq=False)
class Calibration:
    """How every value of a network is distributed.

    Attributes:
        histograms: by name of value.
        source: where it is from, in words.
        samples: images seen; 0 without data.
        batches: the images again, for what needs them (bias correction); empty without data. Each
            use reads the source anew, so no image is kept.
        channels: extremes by channel, by name of node: of values, and of what layers with weights
            read.
    """

    histograms: Mapping[str, Histogram]
    source: str
    samples: int = 0
    batches: Callable[[], Iterator[Inputs]] = field(default=lambda: iter(()))
    channels: Mapping[str, ChannelRange] = field(default_factory=dict)


class _Observing(GraphRun):
    """Executes a float graph and shows values to their histograms."""

    def __init__(self, model: FloatModel, regions: Regions) -> None:
        super().__init__(model.graph_module)
        made = (name for name, value in regions.values.items() if not value.joins)
        self.histograms = {name: Histogram() for name in made}
        self.channels: dict[str, ChannelRange] = {}
        self._watched = watched_nodes(model, regions)
        self.selections = find_selections(model, regions)

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        extremes = None
        if n.name in self._watched:
            found = ChannelRange.of(result)
            extremes = float(found.low.amin()), float(found.high.amax())
            known = self.channels.get(n.name)
            self.channels[n.name] = found if known is None else known.merge(found)
        if n.name in self.histograms:
            try:
                if n.name in self.selections:
                    for selection in self.selections[n.name]:
                        self.histograms[n.name].add(selected(result, selection))
                else:
                    self.histograms[n.name].add(result, extremes)
            except ValueError:
                raise InputError(
                    f"value {n.name} is NaN or infinite on the calibration images; check the "
                    "images and their preprocessing (mean, std)."
                ) from None
        return result


def calibrate(
    model: FloatModel,
    data: DataSource | Iterable[InputBatch],
    samples: int = 256,
    progress: Progress | None = None,
) -> Calibration:
    """Observe every value of a network on images.

    Args:
        model: the float network.
        data: a data source, or batches of preprocessed float images that can be iterated more than
            once. A generator works too: the images used are then kept in memory.
        samples: images to use; of plain batches the first ones, at most.
        progress: told after each batch.

    Raises:
        InputError: no image, a batch that does not fit the inputs, or values that are not finite.
    """
    if not isinstance(data, DataSource) and iter(data) is data:
        data = list(_take(model, data, samples))

    def again() -> Iterator[Inputs]:
        if isinstance(data, DataSource):
            return _take(model, data.samples(samples, CALIBRATION_BATCH), samples)
        return _take(model, data, samples)

    regions = find_regions(model)
    observing = _Observing(model, regions)
    seen = 0
    with torch.inference_mode():
        for inputs in again():
            observing.run(*inputs)
            seen += len(inputs[0])
            if progress is not None:
                progress(seen, samples)
    if seen == 0:
        raise InputError("the calibration data holds no image; give at least one.")
    source = f"{seen} images" + (f" of {data.spec}" if isinstance(data, DataSource) else "")
    for name, histogram in observing.histograms.items():
        behind = f" {BEHIND_POOLS}" if name in observing.selections else ""
        histogram.note = f"{seen} images{behind}"
    histograms = with_joined(regions, observing.histograms)
    return Calibration(histograms, source, seen, again, observing.channels)


class _Again:
    """The images of a calibration, as often as they are asked for."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration

    def __iter__(self) -> Iterator[Inputs]:
        return self.calibration.batches()


def calibrate_again(model: FloatModel, calibration: Calibration) -> Calibration:
    """The same images through another network of the same inputs."""
    again = calibrate(model, _Again(calibration), calibration.samples)
    return replace(again, source=calibration.source)


def with_joined(regions: Regions, histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """Histograms of all values, given those of all but concatenations."""
    known = dict(histograms)
    for name, value in regions.values.items():
        if value.joins:
            known[name] = reduce(Histogram.merge, (known[joined] for joined in value.joins))
    return {name: known[name] for name in regions.values}


def _take(model: FloatModel, batches: Iterable[InputBatch], samples: int) -> Iterator[Inputs]:
    """The first images, as tensors in the order of the model's inputs."""
    left = samples
    for batch in batches:
        inputs = tuple(tensor[:left] for tensor in _as_inputs(model, batch))
        left -= len(inputs[0])
        yield inputs
        if left <= 0:
            return


def _as_inputs(model: FloatModel, batch: InputBatch) -> Inputs:
    names = [spec.name for spec in model.inputs]
    if isinstance(batch, Batch):
        batch = batch.inputs
    if isinstance(batch, Mapping):
        missing = [name for name in names if name not in batch]
        if missing:
            raise InputError(
                f"the calibration data has no {missing[0]!r}, only {', '.join(map(str, batch))}; "
                "name its arrays after the inputs of the network."
            )
        batch = [batch[name] for name in names]
    elif isinstance(batch, torch.Tensor | np.ndarray):
        batch = [batch]
    if len(batch) != len(names):
        raise InputError(
            f"a calibration batch has {len(batch)} tensors, the network reads {len(names)}: "
            f"{', '.join(names)}."
        )
    tensors = (a if isinstance(a, torch.Tensor) else torch.from_numpy(np.array(a)) for a in batch)
    inputs = tuple(tensor.float() for tensor in tensors)
    for spec, tensor in zip(model.inputs, inputs, strict=True):
        if tuple(tensor.shape[1:]) != spec.shape[1:]:
            raise InputError(
                f"calibration images for input {spec.name} have shape {list(tensor.shape[1:])}, "
                f"the network expects {list(spec.shape[1:])}."
            )
    return inputs
