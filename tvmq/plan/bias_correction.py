"""Take away the mean error that quantization adds to each channel of each layer.

The float and the quantized graph run side by side, layer by layer in the order of the network. At
each layer the mean difference of its outputs on one half of the calibration images is the
correction; it is kept if it brings the other half, which it has not seen, closer to the float
network. Layers behind it then see its corrected output. Where max pools alone read what a layer
reads, its codes hold the largest elements only, and a mean of all says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.fx import GraphModule

from tvmq.calibrate.behind_pools import find_selections
from tvmq.calibrate.calibrate import Calibration, Inputs, Progress
from tvmq.execute_graph import GraphRun
from tvmq.float_model import FloatModel
from tvmq.plan.annotate import annotate
from tvmq.plan.plan import BiasPlan, Plan
from tvmq.regions import find_regions, shape_of

MAX_IMAGES = 256
MAX_BYTES = 2**28
"""The largest tensor of all images together; fewer images where it would be larger."""
PART_BYTES = 2**24
"""The largest tensor of the images that are computed at a time."""


@dataclass
class Errors:
    """What quantization adds to the channels of a layer, summed up over images.

    Attributes:
        count: of numbers per channel.
        total: float64[K], their sums.
        squares: float64[K], the sums of their squares.
    """

    count: int
    total: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def between(cls, exact: torch.Tensor, output: torch.Tensor, axis: int) -> Errors:
        """Of ``exact - output``, whose channels are along ``axis``."""
        difference = (exact - output).movedim(axis, -1)
        others = tuple(range(difference.dim() - 1))
        norms = torch.linalg.vector_norm(difference, dim=others)
        count = difference[..., 0].numel()
        return cls(count, difference.sum(dim=others).double(), norms.double().square())

    def __add__(self, other: Errors) -> Errors:
        total, squares = self.total + other.total, self.squares + other.squares
        return Errors(self.count + other.count, total, squares)

    @property
    def mean(self) -> torch.Tensor:
        """float64[K]: what would take them away on average."""
        return self.total / self.count

    def mean_square(self, correction: torch.Tensor | float = 0.0) -> float:
        """What they are on average, all channels together, once a correction is added."""
        rest = self.squares / self.count - 2 * correction * self.mean + correction**2
        return float(rest.mean())


@torch.inference_mode()  # type: ignore[untyped-decorator]
def correct_biases(
    model: FloatModel, plan: Plan, calibration: Calibration, progress: Progress | None = None
) -> dict[str, BiasPlan]:
    """Corrections of all layers with weights.

    Args:
        model: the float network.
        plan: complete; corrections that it has already are part of those returned.
        calibration: with images.
        progress: told the layers done and the layers in all.

    Returns:
        By name of layer; without numbers where the correction did not help.
    """
    teaching, held_out = halves_of(model, calibration)
    count = sum(len(part[0]) for part in held_out)
    regions = find_regions(model)
    layers = {layer.name: layer for layer in regions.weighted}
    pooled = find_selections(model, regions)
    if not teaching:
        return {name: BiasPlan((), "one image is too few for a correction") for name in layers}
    axes = {
        # Channels are axis 1 of images and the last one of what a linear layer makes.
        node.name: -1 if layers[node.name].kind == "linear" else 1
        for node in model.graph_module.graph.nodes
        if node.name in layers and layers[node.name].inputs[0] not in pooled
    }
    biases = {
        name: plan.biases.get(name, BiasPlan((), "left out: max pools alone read what it reads"))
        for name in layers
        if name not in axes
    }

    def decide(name: str, errors: list[Errors]) -> torch.Tensor | None:
        known, unseen = sum_of(errors[: len(teaching)]), sum_of(errors[len(teaching) :])
        correction = known.mean
        before, after = unseen.mean_square(), unseen.mean_square(correction)
        numbers = f"squared error {before:.4g} -> {after:.4g} on {count} held-out images"
        earlier = plan.biases.get(name, BiasPlan((), ""))
        helps = after < before
        if helps:
            total = correction + torch.tensor(earlier.correction or 0.0, dtype=torch.float64)
            biases[name] = BiasPlan(tuple(total.tolist()), f"kept: {numbers}")
        else:
            biases[name] = BiasPlan(earlier.correction, f"left out: {numbers}")
        if progress is not None:
            progress(len(biases), len(layers))
        return correction if helps else None

    quantized = annotate(model, plan, torch.float32)
    inputs = [*teaching, *held_out]
    correct_side_by_side((model.graph_module, inputs), (quantized, inputs), axes, decide)
    return biases


def halves_of(model: FloatModel, calibration: Calibration) -> tuple[list[Inputs], list[Inputs]]:
    """As many calibration images as the memory bound allows, half and half, in parts.

    Returns:
        Those to learn from, none if there is but one image, and those to decide by.
    """
    nodes = [n for n in model.graph_module.graph.nodes if n.op not in ("get_attr", "output")]
    most = max(4 * math.prod(shape_of(node)[1:]) for node in nodes)
    wanted = left = min(MAX_IMAGES, max(2, MAX_BYTES // most))
    parts: list[Inputs] = []
    for inputs in calibration.batches():
        parts.append(tuple(tensor[:left] for tensor in inputs))
        left -= len(parts[-1][0])
        if left <= 0:
            break
    images = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    half, size = (wanted - left) // 2, max(1, PART_BYTES // most)
    halves = ([tensor[:half] for tensor in images], [tensor[half:] for tensor in images])
    first, second = (
        list(zip(*(tensor.split(size) for tensor in tensors), strict=True)) for tensors in halves
    )
    return (first, second) if half else ([], second)


def correct_side_by_side(
    exact: tuple[GraphModule, Iterable[Inputs]],
    quantized: tuple[GraphModule, Iterable[Inputs]],
    axes: Mapping[str, int],
    decide: Callable[[str, list[Errors]], torch.Tensor | None],
) -> None:
    """Run two versions of a graph, layer by layer; what is added at one, the next ones see.

    All parts of the images wait at a layer for its correction, so that of each only what is read
    later is in memory, and of one at a time what lies between two layers. At the last layer none
    waits any more; where it is the only one, parts are asked for one by one.

    Args:
        exact: a graph and its inputs, part by part.
        quantized: another one with the same layers.
        axes: where each layer's output has its channels; layers in the order of the graphs.
        decide: given a layer and its errors by part, says what to add to its outputs, [K], or None.
    """
    runs: Iterable[tuple[GraphRun, GraphRun]] = (
        (GraphRun(exact[0]).start(*one), GraphRun(quantized[0]).start(*other))
        for one, other in zip(exact[1], quantized[1], strict=True)
    )
    following = dict(pairwise(axes))
    for name, axis in axes.items():
        errors, outputs, waiting = [], [], []
        for one, other in runs:
            output = other.result_of(name)
            errors.append(Errors.between(one.result_of(name), output, axis))
            if name in following:
                one.run_before(following[name])  # it has nothing to wait for
                waiting.append((one, other))
                outputs.append(output)
        correction = decide(name, errors)
        if correction is not None:  # in place: nothing else holds what a layer has just made
            for output in outputs:
                output.movedim(axis, -1).add_(correction.to(output.dtype))
        runs = waiting


def sum_of(errors: list[Errors]) -> Errors:
    """The errors of several parts together."""
    first, *others = errors
    return sum(others, first)
