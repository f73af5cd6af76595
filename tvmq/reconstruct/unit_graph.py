"""One unit as a torch module of its own: in float, or with weights and steps that are learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from tvmq.float_model import FloatModel, constant_of, groups_of
from tvmq.plan.joined_values import tied_values
from tvmq.plan.plan import Plan
from tvmq.reconstruct.clipping import clipped
from tvmq.reconstruct.learned_steps import LearnedStep
from tvmq.reconstruct.product_scale import ProductScale
from tvmq.reconstruct.soft_rounding import SoftWeight
from tvmq.reconstruct.units import Unit
from tvmq.regions import find_regions

if TYPE_CHECKING:
    from tvmq.reconstruct.inner_scales import InnerScales


class HoldsState(Protocol):
    """A module of a unit: what was decided about it can be taken out and put back."""

    def held(self) -> dict[str, torch.Tensor]:
        """A copy of it, by names without a slash."""

    def hold(self, held: Mapping[str, torch.Tensor]) -> None:
        """Be as it was when ``held`` gave this."""


class LayerBias(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """A layer's float bias and what is added to it.

    Attributes:
        correction: float32[K].
    """

    bias: torch.Tensor

    def __init__(self, bias: torch.Tensor | None, channels: int) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(channels) if bias is None else bias.clone())
        self.correction = nn.Parameter(torch.zeros(channels), requires_grad=False)

    def forward(self) -> torch.Tensor:
        """float32[K]."""
        return self.bias + self.correction

    def held(self) -> dict[str, torch.Tensor]:
        """What ``hold`` takes: the correction."""
        return {"correction": self.correction.detach().clone()}

    def hold(self, held: Mapping[str, torch.Tensor]) -> None:
        """Be what it was."""
        self.correction.data.copy_(held["correction"])


class QuantizedUnit:
    """A unit whose layers read learned weights and whose values are held in learned steps.

    Attributes:
        unit: what it is made of.
        graph_module: reads ``unit.inputs``, returns the tuple of ``unit.outputs``.
        weights: by layer.
        biases: by layer.
        steps: by value; values that are tied share one.
        products: by layer, the factors of its products, where it can have some.
        scales: of the tensors that it can scale; None if none may be.
        modules: all of these by their names in ``graph_module``: ``LAYER_weight``, ``LAYER_bias``,
            ``LAYER_products``, ``VALUE_codes``. What they hold is the unit's state; a refinement
            that decides something else puts its own module here, and into the graph.
    """

    def __init__(
        self,
        model: FloatModel,
        plan: Plan,
        unit: Unit,
        steps: Mapping[str, LearnedStep],
        groups: Mapping[str, int] | None = None,
    ) -> None:
        """Start from a plan.

        Args:
            model: the float network.
            plan: whose steps are the start.
            unit: of this network.
            steps: of all values of the network (``network_steps``).
            groups: input channels that have a factor of products in common, by name of layer, if
                such factors are to be decided.
        """
        self.unit = unit
        self.products: dict[str, ProductScale] = {}
        self.weights: dict[str, SoftWeight] = {}
        self.biases: dict[str, LayerBias] = {}
        self.steps = {name: steps[name] for name in unit.values}
        for node in model.graph_module.graph.nodes:
            if node.name in unit.layers:
                weight, layer = model.weight_of(node), plan.weights[node.name]
                self.weights[node.name] = SoftWeight(weight, layer)
                self.biases[node.name] = LayerBias(model.bias_of(node), len(weight))
                if channels := (groups or {}).get(node.name):
                    outputs = plan.settings.product_outputs
                    self.products[node.name] = ProductScale(
                        weight, channels, outputs, groups_of(node)
                    )
        self.modules: dict[str, HoldsState] = {f"{n}_codes": m for n, m in self.steps.items()}
        self.modules |= {f"{n}_weight": m for n, m in self.weights.items()}
        self.modules |= {f"{n}_bias": m for n, m in self.biases.items()}
        self.modules |= {f"{n}_products": m for n, m in self.products.items()}
        self.graph_module = _extract(model, unit, self.modules)
        self.scales: InnerScales | None = None

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs for inputs, float32."""
        result: tuple[torch.Tensor, ...] = self.graph_module(*inputs)
        return result

    def spread(self, layer: str) -> torch.Tensor | float:
        """What a layer's factors of products multiply its weight by, broadcast against it."""
        return self.products[layer].spread if layer in self.products else 1.0

    def own_steps(self, network: Mapping[str, LearnedStep]) -> list[LearnedStep]:
        """Steps of values that no other unit shares, in order.

        Args:
            network: the steps of all values.
        """
        inside = set(self.unit.values)
        groups = [names for names in sharing(network) if inside.issuperset(names)]
        return [self.steps[names[0]] for names in groups]


def network_steps(model: FloatModel, plan: Plan) -> dict[str, LearnedStep]:
    """A step for each value of the network; tied values share the object."""
    steps: dict[str, LearnedStep] = {}
    for names in tied_values(find_regions(model), plan.values):
        shared = LearnedStep(plan.values[names[0]], pot=plan.settings.pot)
        steps |= dict.fromkeys(names, shared)
    return steps


def sharing(steps: Mapping[str, LearnedStep]) -> list[tuple[str, ...]]:
    """The values of each step, in order."""
    names: dict[LearnedStep, list[str]] = {}
    for name, step in steps.items():
        names.setdefault(step, []).append(name)
    return [tuple(group) for group in names.values()]


def float_unit(model: FloatModel, unit: Unit) -> GraphModule:
    """The unit of the float network."""
    return _extract(model, unit, {})


def _extract(model: FloatModel, unit: Unit, modules: Mapping[str, Any]) -> GraphModule:
    """Copy the nodes of a unit; those with a module read their weight, bias or codes from it."""
    root, graph = nn.Module(), Graph()
    for name, module in modules.items():
        root.add_module(name, module)
    copies: dict[Node, Node] = {model.nodes[n]: graph.placeholder(n) for n in unit.inputs}

    def copied(node: Node) -> Node:
        if node not in copies:  # a constant
            value = constant_of(model.graph_module, node)
            if value.dim() == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            root.register_buffer(str(node.target), value)
            copies[node] = graph.get_attr(str(node.target))
        return copies[node]

    for name in unit.nodes:
        node = model.nodes[name]
        if f"{name}_weight" in modules:
            data = copied(node.args[0])
            weight, bias = (graph.call_module(f"{name}_{part}") for part in ("weight", "bias"))
            if f"{name}_products" in modules:
                weight = graph.call_module(f"{name}_products", (weight,))
            copy = graph.create_node(
                "call_function", node.target, (data, weight, bias, *node.args[3:]), {}, name=name
            )
        else:
            if node.op == "call_module":
                root.add_module(str(node.target), getattr(model.graph_module, str(node.target)))
            copy = graph.node_copy(node, copied)
            if modules and node.target is torch.ops.aten.clamp.default:
                copy.target = clipped
        if f"{name}_codes" in modules:
            copy = graph.call_module(f"{name}_codes", (copy,))
        copies[node] = copy
    graph.output(tuple(copies[model.nodes[name]] for name in unit.outputs))
    graph.lint()
    return GraphModule(root, graph)
