"""The float graph with a ``fake_quantize`` behind every value and weight.

What comes out runs in torch as the fake-quantized network, in float64, and is what
``relay_passes/frontend/import_torch.py`` reads. An average pooling is written as the depthwise
convolution that integer hardware runs: weights of one code, whose step is the exact multiplier.

Nodes keep their names; the quantized value of ``conv2d_3`` is ``conv2d_3_q``, the weight read by
it ``conv2d_3_weight_q``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

import tvmq.plan.fake_quantize  # noqa: F401  registers the operator
from targets.rounding import HALF_UP
from tvmq.float_model import FloatModel, copy_of, groups_of
from tvmq.plan.integer_rows import rounded_norm
from tvmq.plan.joined_values import same_codes
from tvmq.plan.plan import Plan
from tvmq.plan.rounded_bias import rounded_bias
from tvmq.plan.weight_steps import weight_codes
from tvmq.regions import (
    WEIGHTED,
    Layer,
    Regions,
    find_regions,
    heads_of,
    is_centred,
    norm_epsilon,
    shape_of,
    window_of,
)
from tvmq.settings import learned_range, weight_limit

aten = torch.ops.aten


def annotate(model: FloatModel, plan: Plan, dtype: torch.dtype = torch.float64) -> GraphModule:
    """The quantized network as a graph module, for any batch.

    Args:
        model: the float network.
        plan: complete, of the same network.
        dtype: float32 is exact enough for statistics.

    Returns:
        A graph whose outputs are the dequantized codes, or the scaled int32 sums where a
        convolution or linear layer is itself an output.
    """
    graph_module = copy_of(model.graph_module).to(dtype)
    regions = find_regions(model)
    annotator = _Annotator(model, plan, regions, graph_module, dtype)
    for node in list(graph_module.graph.nodes):
        if node.name in regions.layers:
            annotator.quantize_layer(node)
    for node in list(graph_module.graph.nodes):
        if node.name in regions.values and not regions.values[node.name].joins:
            annotator.quantize_value(node)
    for name, value in regions.values.items():
        if value.joins:
            annotator.requantize_joined(name)
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


class _Annotator:
    """Edits one graph; keeps what every edit needs."""

    def __init__(
        self,
        model: FloatModel,
        plan: Plan,
        regions: Regions,
        graph_module: GraphModule,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.plan, self.regions = model, plan, regions
        self.graph_module, self.graph, self.dtype = graph_module, graph_module.graph, dtype

    def quantize_value(self, node: Node) -> None:
        """Put a fake_quantize between a value and all its readers."""
        readers = list(node.users)
        quantized = self._quantized(node, node.name, node.name)
        for reader in readers:
            reader.replace_input_with(node, quantized)

    def requantize_joined(self, name: str) -> None:
        """Put a fake_quantize in front of a concatenation, where a value has codes of its own."""
        node = next(n for n in self.graph.nodes if n.name == name)
        originals = self.model.nodes[name].all_input_nodes
        for i, (read, original) in enumerate(zip(node.all_input_nodes, originals, strict=True)):
            carried = self.regions.carried[original.name]
            if not same_codes(self.plan.values[carried], self.plan.values[name]):
                node.replace_input_with(read, self._quantized(read, name, f"{name}_input_{i}"))

    def _quantized(self, node: Node, value: str, name: str) -> Node:
        """A fake_quantize behind a node, as the plan of a value says."""
        plan = self.plan.values[value]
        with self.graph.inserting_after(node):
            step = self._step(f"{name}_step", torch.tensor([plan.step], dtype=torch.float64))
        rounding, last = plan.rounding, step
        codes: tuple[Any, ...] = (plan.zero_point, plan.low, plan.high, -1, plan.dtype)
        codes += (rounding.mode.name,)
        if rounding.borders:
            with self.graph.inserting_after(step):
                last = self._step(f"{name}_borders", torch.from_numpy(rounding.rows))
            codes += (last, rounding.first)
        with self.graph.inserting_after(last):
            return self._call(
                torch.ops.tvmq.fake_quantize.default, (node, step, *codes), f"{name}_q"
            )

    def quantize_layer(self, node: Node) -> None:
        """Quantize weight and bias of a layer that has any."""
        layer = self.regions.layers[node.name]
        if layer.kind == "pool":
            self._pool_as_convolution(node)
        elif layer.kind in ("multiply", "matmul"):
            self._with_factor(node)
        elif layer.kind == "softmax":
            step = self.plan.values[layer.inputs[0]].step
            (factor,) = self.plan.weights[node.name].steps
            node.args = (node.args[0], step, heads_of(node), factor)
            node.target = torch.ops.tvmq.integer_softmax.default
        elif layer.kind == "norm":
            self._norm_of_codes(node, layer)
        elif layer.kind in WEIGHTED:
            with self.graph.inserting_before(node):
                weight = self._scaled(node.name, self._weight(node.name, node.args[1]))
                bias = self._bias(node.name)
            node.args = (node.args[0], weight, bias, *node.args[3:])

    def _weight(self, layer: str, weight: Any) -> Node:
        plan = self.plan.weights[layer]
        low, high = -weight_limit(plan.bits), weight_limit(plan.bits)
        steps = torch.tensor(plan.steps, dtype=torch.float64)
        axis = 0 if len(plan.steps) > 1 else -1
        if plan.codes:
            codes = weight_codes(weight.meta["val"], plan)
            exact = codes * steps.reshape(-1, *[1] * (codes.dim() - 1))
            weight = self._constant(f"{layer}_weight_learned", exact)
            low, high = learned_range(plan.bits)
        step = self._step(f"{layer}_weight_step", steps)
        arguments = (weight, step, 0, low, high, axis, "int8", HALF_UP.mode.name)
        return self._call(torch.ops.tvmq.fake_quantize.default, arguments, f"{layer}_weight_q")

    def _scaled(self, layer: str, weight: Node) -> Node:
        """Weights times the factors of the products with them."""
        products = self.plan.weights[layer].products
        if products is None:
            return weight
        node = self.model.nodes[layer]
        outputs, inputs, *taps = shape_of(weight)
        spread = products.spread(outputs, inputs, groups_of(node))
        factors = torch.from_numpy(spread).reshape(outputs, inputs, *[1] * len(taps))
        factors = self._constant(f"{layer}_factors", factors)
        return self._call(aten.mul.Tensor, (weight, factors), f"{layer}_weight_scaled")

    def _bias(self, layer: str) -> Node:
        """The bias as whole multiples of the unit of the sums."""
        source = self.plan.values[self.regions.layers[layer].inputs[0]].step
        units = self.plan.weights[layer].units
        codes = rounded_bias(self.model, layer, source, units, self.plan.biases.get(layer))
        unit = source * torch.tensor(units, dtype=torch.float64)
        return self._constant(f"{layer}_bias_q", codes * unit)

    def _pool_as_convolution(self, node: Node) -> None:
        window, channels = window_of(node), shape_of(node)[1]
        (factor,) = self.plan.weights[node.name].steps
        ones = torch.ones((channels, 1, *window.kernel), dtype=torch.float64)
        with self.graph.inserting_before(node):
            raw = self._constant(f"{node.name}_weight", ones * factor)
            weight = self._weight(node.name, raw)
        strides, padding = list(window.strides), list(window.padding)
        node.target = aten.conv2d.default
        node.args = (node.args[0], weight, None, strides, padding, [1, 1], channels)

    def _with_factor(self, node: Node) -> None:
        """A product of two tensors, the factor of its sums with the left one."""
        (factor,) = self.plan.weights[node.name].steps
        x, *rest = node.args
        if rest[1:]:
            rest[2] = 1.0
        if factor != 1.0:
            with self.graph.inserting_before(node):
                x = self._call(aten.mul.Scalar, (x, factor), f"{node.name}_scaled")
        node.args = (x, *rest)

    def _norm_of_codes(self, node: Node, layer: Layer) -> None:
        gamma, beta = rounded_norm(self.model, layer, self.plan)
        step = self.plan.values[layer.inputs[0]].step
        with self.graph.inserting_before(node):
            gain = self._constant(f"{node.name}_gain", gamma)
            bias = self._constant(f"{node.name}_bias", beta)
        (gain_step,) = self.plan.weights[node.name].steps
        ends = norm_epsilon(node), is_centred(node)
        node.target = torch.ops.tvmq.integer_norm.default
        node.args = (node.args[0], step, gain, bias, gain_step, *ends)

    def _constant(self, name: str, value: torch.Tensor) -> Node:
        return self._step(name, value.to(self.dtype))

    def _step(self, name: str, value: torch.Tensor) -> Node:
        """A constant that keeps its type, whatever the network's is."""
        while hasattr(self.graph_module, name):  # an input may be called conv2d_weight
            name += "_"
        self.graph_module.register_buffer(name, value)
        node = self.graph.get_attr(name)
        node.meta["val"] = value
        return node

    def _call(self, target: Any, arguments: tuple[Any, ...], name: str) -> Node:
        node = self.graph.create_node("call_function", target, arguments, {}, name=name)
        node.meta["val"] = arguments[0].meta["val"]
        return node
