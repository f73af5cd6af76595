"""Derive the integers that steps and corrections determine, and prove them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from targets.errors import ArithmeticRangeError
from tvmq.float_model import FloatModel
from tvmq.plan.fake_quantize import HALF
from tvmq.plan.integers import TooFineError, addition, requantize, snap_weight_step
from tvmq.plan.overflow import LIMIT, SumBounds, bound_sums, prove_accumulator, total_bound
from tvmq.plan.plan import (
    AccumulatorProof,
    AddPlan,
    BiasPlan,
    Plan,
    RequantizePlan,
    ValuePlan,
    WeightPlan,
)
from tvmq.plan.rounded_bias import node_of, rounded_bias
from tvmq.plan.snap import snap_steps
from tvmq.plan.weight_steps import weight_codes
from tvmq.regions import Layer, Regions, find_regions, shape_of, window_of
from tvmq.settings import Settings, code_range

MAX_DOUBLINGS = 64


def complete_plan(
    model: FloatModel,
    settings: Settings,
    calibration: str,
    values: Mapping[str, ValuePlan],
    weights: Mapping[str, WeightPlan],
    biases: Mapping[str, BiasPlan],
) -> Plan:
    """Derive everything that steps and corrections determine, and prove it.

    Steps are changed only where no integer could express them: free ones minutely, others doubled,
    and then the reason says so. A complete plan comes out as it went in.

    Raises:
        ArithmeticRangeError: an accumulator or shift can't be made to fit.
    """
    draft = _Draft(model, settings, values, weights, biases)
    last = ""
    for _ in range(MAX_DOUBLINGS):
        try:
            draft.derive()
            break
        except _CoarserError as request:
            draft.coarsen(request)
            last = request.why
    else:
        raise ArithmeticRangeError(
            f"no steps were found at which all shifts fit their fields; the last that did not: "
            f"{last}. Use more bits for weights and activations, or --exclude the layer."
        )
    return Plan(
        settings,
        model.fingerprint,
        calibration,
        draft.values,
        draft.weights,
        dict(biases),
        draft.requantize,
        draft.additions,
        draft.proofs,
    )


def _source_codes(regions: Regions, values: Mapping[str, ValuePlan], name: str) -> ValuePlan:
    """The codes that a reader of ``name`` can meet: those of all values joined with it."""
    (group,) = (names for names in regions.tied if name in names)
    plans = [values[member] for member in group]
    low, high = min(p.low for p in plans), max(p.high for p in plans)
    return replace(values[name], low=low, high=high)


@dataclass
class _CoarserError(Exception):
    """A value's step must be doubled, and why."""

    value: str
    why: str


class _Draft:
    """A plan in the making: steps given, integers derived from them."""

    def __init__(
        self,
        model: FloatModel,
        settings: Settings,
        values: Mapping[str, ValuePlan],
        weights: Mapping[str, WeightPlan],
        biases: Mapping[str, BiasPlan],
    ) -> None:
        self.model, self.settings, self.biases = model, settings, biases
        self.regions = find_regions(model)
        self.values, self.weights = dict(values), dict(weights)
        self.requantize: dict[str, RequantizePlan] = {}
        self.additions: dict[str, AddPlan] = {}
        self.proofs: dict[str, AccumulatorProof] = {}

    def derive(self) -> None:
        """Snap steps and fill in integers and proofs.

        Raises:
            _CoarserError: a value's step is too fine for any integers.
        """
        if not self.settings.pot:
            self._snap()
        for name in self.values:
            self._cut_codes(name)
        for layer in self.regions.layers.values():
            try:
                if layer.kind == "add":
                    steps = [self.values[name].step for name in (*layer.inputs * 2, layer.output)]
                    self.additions[layer.name] = addition(steps[0], steps[1], steps[-1])
                elif layer.kind != "function":
                    self._derive_layer(layer)
            except TooFineError as error:
                value = layer.output if error.which == "output" else layer.residual
                raise _CoarserError(value, f"{layer.name}: {error}") from None
            except ArithmeticRangeError as error:
                place = self.model.origins.get(layer.name, "unknown place")
                raise ArithmeticRangeError(f"layer {layer.name} ({place}): {error}") from None

    def coarsen(self, request: _CoarserError) -> None:
        """Double the step of a value and of those tied to it."""
        (group,) = (names for names in self.regions.tied if request.value in names)
        for name in group:
            plan = self.values[name]
            self.values[name] = replace(
                plan, step=2 * plan.step, reason=f"{plan.reason}; doubled for {request.why}"
            )

    def _snap(self) -> None:
        steps = [self.values[names[0]].step for names in self.regions.tied]
        snapped, coarse = snap_steps(self.regions, steps)
        for i, names in enumerate(self.regions.tied):
            for name in names:
                plan = self.values[name]
                note = "; a power of two times another, since additions form a cycle"
                reason = plan.reason + (note if i in coarse and note not in plan.reason else "")
                self.values[name] = replace(plan, step=snapped[i], reason=reason)

    def _cut_codes(self, name: str) -> None:
        """Lowest and highest code: those of the bits, cut to what a ReLU or clamp leaves."""
        plan, value = self.values[name], self.regions.values[name]
        low, high = code_range(plan.bits, plan.signed)
        if math.isfinite(value.low):
            low = max(low, min(math.floor(value.low / plan.step + HALF) + plan.zero_point, high))
        if math.isfinite(value.high):
            high = min(high, max(math.floor(value.high / plan.step + HALF) + plan.zero_point, low))
        self.values[name] = replace(plan, low=low, high=high)

    def _derive_layer(self, layer: Layer) -> None:
        source = _source_codes(self.regions, self.values, layer.inputs[0])
        residual = self._residual(layer)
        for _ in range(MAX_DOUBLINGS):
            weights = self._snapped_weights(layer, source.step)
            integers = None
            if layer.output:
                output = self.values[layer.output].step
                integers = requantize(
                    source.step, weights.steps, output, residual.step if residual else None
                )
            bounds = self._bounds(layer, source, weights)
            total = total_bound(bounds, integers, residual)
            if int(total.max()) <= LIMIT:
                break
            self.weights[layer.name] = _doubled(weights, total > LIMIT)
        self.proofs[layer.name] = prove_accumulator(layer.name, bounds, integers, residual)
        if integers is not None:
            self.requantize[layer.name] = integers

    def _snapped_weights(self, layer: Layer, source: float) -> WeightPlan:
        plan = self.weights[layer.name]
        if layer.output and (layer.kind == "pool" or not self.settings.pot):
            output = self.values[layer.output].step
            steps = tuple(snap_weight_step(step, source, output) for step in plan.steps)
            plan = self.weights[layer.name] = replace(plan, steps=steps)
        return plan

    def _residual(self, layer: Layer) -> ValuePlan | None:
        if not layer.residual:
            return None
        return _source_codes(self.regions, self.values, layer.residual)

    def _bounds(self, layer: Layer, source: ValuePlan, weights: WeightPlan) -> SumBounds:
        node = node_of(self.model, layer.name)
        if layer.kind == "pool":
            window = window_of(node)
            ones = np.ones((shape_of(node)[1], math.prod(window.kernel)), np.int64)
            return bound_sums(ones, np.zeros(len(ones), np.int64), source)
        codes = weight_codes(self.model.weight_of(node), weights).numpy()
        bias = rounded_bias(
            self.model, layer.name, source.step, weights.steps, self.biases.get(layer.name)
        )
        return bound_sums(codes, bias.numpy(), source)


def _doubled(weights: WeightPlan, where: np.ndarray) -> WeightPlan:
    """Coarser steps for the channels that overflow."""
    grow = where if len(weights.steps) > 1 else [bool(where.any())]
    steps = tuple(step * 2 if g else step for step, g in zip(weights.steps, grow, strict=True))
    note = "; doubled where the accumulator could overflow"
    reason = weights.reason if weights.reason.endswith(note) else weights.reason + note
    return replace(weights, steps=steps, reason=reason, codes=b"")
