"""Tensors inside a unit are of any size, so that powers of two are as good as any step for them.

A tensor that only layers of one unit make and read can be c times as large
(``tvmq/plan/scale_tensors.py``), and a step that is a power of two there is a c-th of one in the
network as it was. What may be any number is c, and with it the step. So while a unit is learned,
the step of such a tensor follows its gradient as a free one does, and the steps of the weights that
make and read it follow along: the ratios of steps, which are what is executed, stay powers of two.
Behind that the tensor is scaled until its step is the power of two that it was. Codes stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.fx import GraphModule

from tvmq.float_model import FloatModel
from tvmq.plan.scale_tensors import LARGEST, Family
from tvmq.plan.weight_steps import choose_weight_steps
from tvmq.reconstruct.learned_steps import LearnedStep
from tvmq.reconstruct.units import Unit
from tvmq.regions import Regions
from tvmq.settings import Settings

if TYPE_CHECKING:
    from tvmq.reconstruct.unit_graph import QuantizedUnit


def inner_families(
    families: Sequence[Family], units: Sequence[Unit], regions: Regions
) -> list[tuple[int, Family, str]]:
    """What units can scale by themselves: index of the unit, the family, and its only value."""
    found = []
    for index, unit in enumerate(units):
        outside = {*unit.inputs, *unit.outputs}
        for family in families:
            held = {regions.carried[name] for name in family.tensors if name in regions.carried}
            layers = {*family.makers, *family.readers}
            if family.makers and layers <= {*unit.layers} and not family.tensors & outside:
                found += [(index, family, value) for value in held if len(held) == 1]
    return found


class InnerScale(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """The size of one tensor inside a unit.

    Attributes:
        family: layers and bounds that are scaled with it.
        step: of its codes.
        factor: what it has been multiplied by.
        drift: log2 of what its step is just now times ``step``, float32[1]; 0 but in training.
    """

    def __init__(self, owner: InnerScales, family: Family, step: LearnedStep) -> None:
        super().__init__()
        self.owner, self.family, self.step, self.factor = owner, family, step, 1.0
        self.drift = nn.Parameter(torch.zeros(1), requires_grad=False)

    def held(self) -> dict[str, torch.Tensor]:
        """What ``hold`` takes: the factor, float64[]."""
        return {"factor": torch.tensor(self.factor, dtype=torch.float64)}

    def hold(self, held: Mapping[str, torch.Tensor]) -> None:
        """Be what it was; the unit is scaled accordingly."""
        self.factor = float(held["factor"])
        self.owner.apply()


class InnerScales:
    """All tensors of a unit that it can scale.

    Attributes:
        scales: by name of value.
    """

    def __init__(
        self,
        model: FloatModel,
        unit: QuantizedUnit,
        exact: GraphModule,
        families: Mapping[str, Family],
    ) -> None:
        """Nothing is scaled yet.

        Args:
            model: the float network.
            unit: becomes the owner of the scales, which join its modules.
            exact: the same unit in float, which is scaled along.
            families: of the unit, by name of value.
        """
        self.model, self.unit, self.exact = model, unit, exact
        self.scales = {
            value: InnerScale(self, family, unit.steps[value]) for value, family in families.items()
        }
        unit.scales = self
        unit.modules |= {f"{value}_scale": scale for value, scale in self.scales.items()}

    def start(self, free: Mapping[str, float], settings: Settings) -> None:
        """Make the best free steps powers of two; weights are rounded to nearest anew.

        Args:
            free: steps of these values if they might be anything; others stay.
            settings: of the plan.
        """
        for value, step in free.items():
            used = 2.0 ** round(math.log2(step))
            self.scales[value].step.fix(used)
            self.scales[value].factor = used / step
        self.apply()
        for weight in self.unit.weights.values():
            by_channel = len(weight.exact_steps) > 1
            others = tuple(name for name in settings.method if name != "wess")
            wanted = replace(
                settings, granularity="channel" if by_channel else "tensor", method=others
            )
            steps = choose_weight_steps(weight.weight, weight.bits, wanted).steps
            weight.use_steps(torch.tensor(steps, dtype=torch.float64))
            weight.freeze(weight.nearest_codes())

    def apply(self) -> None:
        """Scale the unit, in float and quantized, as the factors say; steps and codes stay."""
        for name in self.unit.unit.layers:
            node, quantized = self.model.nodes[name], self.unit.weights[name]
            made, read = self._sides(name)
            larger = math.prod(scale.factor for scale in made)
            smaller = math.prod(scale.factor for scale in read)
            weight = (self.model.weight_of(node).double() * (larger / smaller)).float()
            quantized.register_buffer("weight", weight)
            if weight.dim() == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
            self.exact.register_buffer(str(node.args[1].target), weight)
            if (bias := self.model.bias_of(node)) is not None:
                bias = (bias.double() * larger).float()
                self.unit.biases[name].register_buffer("bias", bias)
                self.exact.register_buffer(str(node.args[2].target), bias)
        for scale in self.scales.values():
            for graph_module in (self.exact, self.unit.graph_module):
                self._scale_bounds(graph_module, scale)

    def learn(self) -> list[nn.Parameter]:
        """Let steps of these tensors follow their gradients, and weights follow the steps."""
        for scale in self.scales.values():
            scale.drift = nn.Parameter(torch.zeros(1, device=scale.step.theta.device))
            scale.step.drift = scale.drift
        for name, weight in self.unit.weights.items():
            made, read = self._sides(name)
            if made or read:
                weight.drift = lambda made=made, read=read: torch.exp2(
                    sum(scale.drift for scale in made) - sum(scale.drift for scale in read)
                )
        return [scale.drift for scale in self.scales.values()]

    def harden(self) -> None:
        """Scale tensors by what their steps have moved, which are what they were then."""
        for weight in self.unit.weights.values():
            weight.drift = None
        for scale in self.scales.values():
            wanted = scale.factor * 2.0 ** -float(scale.drift.detach())
            scale.drift.requires_grad_(False).zero_()
            scale.step.drift = None
            within = min(max(wanted, 1 / LARGEST), LARGEST)
            scale.factor, factor = within, within / scale.factor
            for name in scale.family.makers:
                self.unit.biases[name].correction.data.mul_(factor)
        self.apply()

    def _sides(self, layer: str) -> tuple[list[InnerScale], list[InnerScale]]:
        """The scales of what a layer makes and of what it reads, one or none each."""
        every = self.scales.values()
        return (
            [scale for scale in every if layer in scale.family.makers],
            [scale for scale in every if layer in scale.family.readers],
        )

    def _scale_bounds(self, graph_module: GraphModule, scale: InnerScale) -> None:
        for node in graph_module.graph.nodes:
            if node.name in scale.family.clamps:
                bounds = self.model.nodes[node.name].args[1:]
                scaled = [b if b is None else b * scale.factor for b in bounds]
                node.args = (node.args[0], *scaled)
                graph_module.recompile()
