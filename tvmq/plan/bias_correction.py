"""Take away the mean error that quantization adds to each channel of each layer.

The float and the quantized graph run side by side, layer by layer in the order of the network. At
each layer the mean difference of its outputs on one half of the calibration images is the
correction; it is kept if it brings the other half, which it has not seen, closer to the float
network. Layers behind it then see its corrected output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from typing import TypeAlias

import torch
from torch.fx import GraphModule, Interpreter

from tvmq.calibrate.calibrate import Calibration, Inputs, Progress
from tvmq.float_model import FloatModel
from tvmq.plan.annotate import annotated_graph
from tvmq.plan.plan import BiasPlan, Plan
from tvmq.regions import find_regions, shape_of

Errors: TypeAlias = Callable[[slice], torch.Tensor]
"""Given which images, the differences that quantization makes to a layer's outputs, [..., K]."""

MAX_IMAGES = 256
MAX_BYTES = 2**28
"""The largest tensor of all images together; fewer images where it would be larger."""


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
    inputs = _images(model, calibration)
    count = len(inputs[0])
    half = count // 2
    layers = {layer.name: layer for layer in find_regions(model).weighted}
    if half == 0:
        return {name: BiasPlan((), "one image is too few for a correction") for name in layers}
    axes = {
        # Channels are axis 1 of images and the last one of what a linear layer makes.
        node.name: -1 if layers[node.name].kind == "linear" else 1
        for node in model.graph_module.graph.nodes
        if node.name in layers
    }
    biases: dict[str, BiasPlan] = {}

    def decide(name: str, errors: Errors) -> torch.Tensor | None:
        correction = errors(slice(0, half)).flatten(0, -2).mean(dim=0)
        held_out = errors(slice(half, count))
        variance, mean = torch.var_mean(
            held_out, dim=tuple(range(held_out.dim() - 1)), correction=0
        )
        before = float((variance + mean.square()).mean())
        after = float((variance + (mean - correction).square()).mean())
        numbers = f"squared error {before:.4g} -> {after:.4g} on {count - half} held-out images"
        known = plan.biases.get(name, BiasPlan((), ""))
        helps = after < before
        if helps:
            total = correction.double() + torch.tensor(known.correction or 0.0, dtype=torch.float64)
            biases[name] = BiasPlan(tuple(total.tolist()), f"kept: {numbers}")
        else:
            biases[name] = BiasPlan(known.correction, f"left out: {numbers}")
        if progress is not None:
            progress(len(biases), len(axes))
        return correction if helps else None

    quantized = annotated_graph(model, plan, torch.float32)
    correct_side_by_side((model.graph_module, inputs), (quantized, inputs), axes, decide)
    return biases


def _images(model: FloatModel, calibration: Calibration) -> Inputs:
    """As many calibration images as the memory bound allows."""
    nodes = [n for n in model.graph_module.graph.nodes if n.op not in ("get_attr", "output")]
    most = max(4 * math.prod(shape_of(node)[1:]) for node in nodes)
    count = min(MAX_IMAGES, max(2, MAX_BYTES // most))
    parts: list[Inputs] = []
    for inputs in calibration.batches():
        parts.append(tuple(tensor[:count] for tensor in inputs))
        count -= len(parts[-1][0])
        if count <= 0:
            break
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def correct_side_by_side(
    exact: tuple[GraphModule, Inputs],
    quantized: tuple[GraphModule, Inputs],
    axes: Mapping[str, int],
    decide: Callable[[str, Errors], torch.Tensor | None],
) -> None:
    """Run two versions of a graph, layer by layer; what is added at one, the next ones see.

    Args:
        exact: a graph and its inputs.
        quantized: another one with the same layers.
        axes: where each layer's output has its channels; layers in the order of the graphs.
        decide: given a layer and its errors, says what to add to its outputs, [K], or None.
    """
    targets, outputs = (run_with_stops(*pair, set(axes)) for pair in (exact, quantized))
    replacement: torch.Tensor | None = None
    for name, axis in axes.items():
        target, output = next(targets), outputs.send(replacement)
        correction = decide(name, _errors(target, output, axis))
        replacement = None
        if correction is not None:  # in place: nothing else holds what a layer has just made
            replacement = output.movedim(axis, -1).add_(correction).movedim(-1, axis)


def _errors(target: torch.Tensor, output: torch.Tensor, axis: int) -> Errors:
    return lambda images: (target[images] - output[images]).movedim(axis, -1)


def run_with_stops(
    graph_module: GraphModule, inputs: Inputs, stops: set[str]
) -> Generator[torch.Tensor, torch.Tensor | None, None]:
    """Execute node by node, freeing what is used up; yield at stops and take a replacement."""
    interpreter = Interpreter(graph_module)
    interpreter.args_iter = iter(inputs)
    for node in graph_module.graph.nodes:
        if node.op == "output":
            return
        result = interpreter.run_node(node)
        if node.name in stops:
            replacement = yield result
            result = result if replacement is None else replacement
        interpreter.env[node] = result
        for used in interpreter.user_to_last_uses.get(node, []):
            del interpreter.env[used]
