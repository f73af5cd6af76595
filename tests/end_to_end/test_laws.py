"""Laws of whole networks: fake quantization is the integers, the order of channels is nothing."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from quantization_cases import float_model, images, plan
from torch.fx import GraphModule

from relay_passes.frontend.import_torch import import_torch
from relay_passes.pipeline import lower_to_integer
from tvmq.calibrate.calibrate import calibrate
from tvmq.float_model import FloatModel, constant_of
from tvmq.plan.annotate import annotate
from tvmq.plan.planner import make_plan
from tvmq.regions import find_regions
from tvmq.run.reference import run_reference
from tvmq.settings import Settings

SETTINGS = {
    "pot": Settings(scales="pot", granularity="channel"),
    "free": Settings(scales="free", granularity="channel"),
    "w4a4": Settings(4, 4, "pot", "tensor"),
}
HALF_STEP = 2.0**-6


class _Recorder(torch.fx.Interpreter):
    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, torch.Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> object:
        self.seen[n.name] = super().run_node(n)
        return self.seen[n.name]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", ["resnet_small", "mobilenet_small", "densenet_small"])
def test_every_fake_quantized_tensor_is_its_codes(name: str, settings: Settings) -> None:
    """Half-up rounding in float64 and the integer interpreter, on all values of the plan."""
    model, quantized = float_model(name), plan(name, settings)
    program = annotate(model, quantized)
    x = images(name)[:4]
    values: dict[str, np.ndarray] = {}
    run_reference(
        lower_to_integer(import_torch(program)),
        {model.inputs[0].name: x.numpy()},
        values.setdefault,
    )
    recorder = _Recorder(program)
    with torch.no_grad():
        recorder.run(x.double())
    compared = 0
    for value, chosen in quantized.values.items():
        codes = values.get(f"{value}_codes", values.get(value))
        fake = recorder.seen.get(f"{value}_q")
        if codes is None or fake is None:
            continue  # joined with another value by a pass, or not rounded of its own
        got = codes.astype(np.float64)
        if got.ndim == 4:
            got = got.transpose(0, 3, 1, 2)
        np.testing.assert_array_equal((got - chosen.zero_point) * chosen.step, fake.numpy())
        compared += 1
    made = [value for value in find_regions(model).values.values() if not value.joins]
    assert compared >= 0.8 * len(made)


def _permuted(model: FloatModel, seed: int) -> FloatModel:
    """The channels between two convolutions in another order, wherever only they see them."""
    graph_module = copy.deepcopy(model.graph_module)
    generator = torch.Generator().manual_seed(seed)
    convolutions = graph_module.graph.find_nodes(
        op="call_function", target=torch.ops.aten.conv2d.default
    )
    permuted = 0
    for first in convolutions:
        (relu,) = first.users if len(first.users) == 1 else (None,)
        if relu is None or relu.target != torch.ops.aten.relu.default or len(relu.users) != 1:
            continue
        (second,) = relu.users
        if second not in convolutions or second.args[0] is not relu:
            continue
        if any(len(node.args) > 6 and node.args[6] != 1 for node in (first, second)):
            continue  # grouped
        weight = constant_of(graph_module, first.args[1])
        order = torch.randperm(len(weight), generator=generator)
        for node, axis in ((first.args[1], 0), (first.args[2], 0), (second.args[1], 1)):
            tensor = constant_of(graph_module, node)
            tensor.data = tensor.data.index_select(axis, order)
        permuted += 1
    assert permuted >= 2
    return replace(model, graph_module=graph_module)


@pytest.mark.parametrize("settings", [None, *SETTINGS.values()], ids=["float", *SETTINGS])
def test_the_order_of_channels_does_not_matter(settings: Settings | None) -> None:
    """Not one bit of the outputs changes: borders, steps and shifts move with their channels."""
    model = float_model("resnet_small")
    other = _permuted(model, 5)
    x = images("resnet_small")
    if settings is None:
        # Products of numbers with few bits add up exactly in float64, in any order.
        few = [copy.deepcopy(m.graph_module).double() for m in (model, other)]
        for graph_module in few:
            for tensor in [*graph_module.parameters(), *graph_module.buffers()]:
                tensor.data = torch.round(tensor.data / HALF_STEP).clamp(-7, 7)
        outputs = [graph_module(torch.round(x[:4].double()))[0] for graph_module in few]
        torch.testing.assert_close(*outputs, rtol=0, atol=0)
        return
    answers = []
    for each in (model, other):
        calibrated = calibrate(each, list(x.split(16)))
        quantized = make_plan(each, calibrated, replace(settings, bias_correction=False))
        integer = lower_to_integer(import_torch(annotate(each, quantized)))
        (logits,) = run_reference(integer, {each.inputs[0].name: x[:4].numpy()})
        answers.append(logits)
    np.testing.assert_array_equal(*answers)
