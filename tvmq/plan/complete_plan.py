"""Derive the integers that steps and corrections determine, and prove them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from targets.arithmetic import INT32_MAX
from targets.code_range import code_range
from targets.errors import ArithmeticRangeError, UnsupportedError
from targets.product_factors import integer_factors
from targets.rounding import FLOOR, MAX_FLOOR_SHIFT, check_executed, round_reals
from targets.rows import SOFTMAX_BITS, norm_fraction, softmax_bounds
from targets.scale import (
    AddScale,
    Scale,
    TooFineError,
    TooFineWeightsError,
    derive_addition,
    derive_scale,
    power_of_two,
)
from targets.sum_bounds import SumBounds, bound_products, bound_sums, held_bound
from tvmq.float_model import FloatModel, groups_of
from tvmq.plan.borders import border_refusal
from tvmq.plan.integer_rows import norm_scale
from tvmq.plan.joined_values import tied_values
from tvmq.plan.plan import AccumulatorProof, BiasPlan, Plan, ValuePlan, WeightPlan
from tvmq.plan.rounded_bias import rounded_bias
from tvmq.plan.snap import snap_steps, snap_weight_step
from tvmq.plan.weight_steps import weight_codes
from tvmq.regions import (
    UNSCALED,
    WEIGHTED,
    Layer,
    Regions,
    find_regions,
    products_of,
    shape_of,
    window_of,
)
from tvmq.settings import Settings

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
        UnsupportedError: a value is rounded as nobody executes it.
    """
    regions = find_regions(model)
    steps = dict(values)
    last = ""
    for _ in range(MAX_DOUBLINGS):
        draft = _Draft(model, settings, regions, steps, weights, biases)
        try:
            draft.derive()
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
                model.equalization,
                model.mixing,
                model.scaling,
            )
        except _CoarserError as request:
            last = request.why
            for name in draft.tied[request.value]:
                plan = draft.values[name]
                reason = f"{plan.reason}; doubled for {last}"
                steps[name] = replace(plan, step=2 * plan.step, reason=reason)
    raise ArithmeticRangeError(
        f"no steps were found at which all shifts fit their fields; the last that did not: "
        f"{last}. Use more bits for weights and activations, or --exclude the layer."
    )


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
        regions: Regions,
        values: Mapping[str, ValuePlan],
        weights: Mapping[str, WeightPlan],
        biases: Mapping[str, BiasPlan],
    ) -> None:
        self.model, self.settings, self.regions, self.biases = model, settings, regions, biases
        self.values, self.weights = dict(values), dict(weights)
        self.groups = tied_values(regions, self.values)
        self.tied = {name: names for names in self.groups for name in names}
        self.requantize: dict[str, Scale] = {}
        self.additions: dict[str, AddScale] = {}
        self.proofs: dict[str, AccumulatorProof] = {}

    def derive(self) -> None:
        """Snap steps and fill in integers and proofs.

        Raises:
            _CoarserError: a value's step is too fine for any integers.
        """
        if not self.settings.pot:
            self._snap()
        for name, plan in self.values.items():
            self._check_rounding(name, plan)
            self._cut_codes(name)
        for layer in self.regions.layers.values():
            sides = (layer.inputs * 2)[:2]  # one operand may be added to itself
            try:
                if layer.kind == "add":
                    a, b = (self._step(name) / self._step(layer.output) for name in sides)
                    addition = self.additions[layer.name] = derive_addition(a, b)
                    self._check_floor(layer, (addition.shift,))
                elif layer.kind not in UNSCALED:
                    self._derive_layer(layer)
            except TooFineError as error:
                fine = {"output": layer.output, "residual": layer.residual}
                fine |= zip(("first", "second"), sides, strict=True)
                value = fine[error.which]
                raise _CoarserError(value, f"{layer.name}: {error}") from None
            except ArithmeticRangeError as error:
                place = self.model.origins.get(layer.name, "unknown place")
                raise ArithmeticRangeError(f"layer {layer.name} ({place}): {error}") from None

    def _step(self, value: str) -> Fraction:
        return Fraction(self.values[value].step)

    def _snap(self) -> None:
        steps = [self.values[names[0]].step for names in self.groups]
        snapped, coarse = snap_steps(self.regions, self.groups, steps)
        for i, names in enumerate(self.groups):
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
            low = max(low, min(self._code(name, value.low), high))
        if math.isfinite(value.high):
            high = min(high, max(self._code(name, value.high), low))
        self.values[name] = replace(plan, low=low, high=high)

    def _code(self, name: str, x: float) -> int:
        plan = self.values[name]
        where = f"value {name}"
        whole = round_reals([x / plan.step], plan.rounding, where, plan.zero_point)
        if whole.min() != whole.max():
            raise UnsupportedError(
                f"{where}: its borders cut the bound {x:g} to another code in some channels than "
                "in others. Use the same border for all channels at that level."
            )
        return int(whole[0]) + plan.zero_point

    def _check_rounding(self, name: str, plan: ValuePlan) -> None:
        """Refuse what isn't executed everywhere."""
        where = f"value {name}"
        check_executed(plan.rounding, where, "real numbers")
        if plan.rounding.borders and (why := border_refusal(self.regions, name, plan.bits)):
            raise UnsupportedError(f"{where}: rounds by BORDER, but {why}. Use HALF_UP.")

    def _check_floor(self, layer: Layer, shifts: tuple[int, ...]) -> None:
        if self.values[layer.output].rounding == FLOOR and max(shifts) > MAX_FLOOR_SHIFT:
            raise ArithmeticRangeError(
                f"rounds by FLOOR after a right shift of {max(shifts)}, at most {MAX_FLOOR_SHIFT} "
                "are exact. Use HALF_UP or a finer step."
            )

    def _derive_layer(self, layer: Layer) -> None:
        residual = self.values[layer.residual].codes if layer.residual else None
        zero_point = self.values[layer.output].zero_point if layer.output else 0
        for _ in range(MAX_DOUBLINGS):
            scale = self._fitting_scale(layer)
            bounds = self._bounds(layer)
            held = held_bound(bounds, scale, residual, zero_point)
            if int(held.max()) <= INT32_MAX:
                break
            self.weights[layer.name] = _doubled(self.weights[layer.name], held > INT32_MAX)
        self.proofs[layer.name] = _proof(bounds, held)
        if scale is not None:
            self._check_floor(layer, scale.shift)
            self.requantize[layer.name] = scale

    def _fitting_scale(self, layer: Layer) -> Scale | None:
        """The same, the weights coarser where no shift would fit."""
        try:
            return self._scale(layer)
        except TooFineWeightsError as error:
            if layer.kind not in WEIGHTED:
                raise
            self.weights[layer.name] = _coarser(self.weights[layer.name], error.excess)
        return self._fitting_scale(layer)

    def _scale(self, layer: Layer) -> Scale | None:
        """The integers of a layer, free steps of its weights snapped; None where sums leave."""
        if not layer.output:
            return None
        source, output = self._unit(layer), self._step(layer.output)
        plan = self.weights[layer.name]
        if layer.kind not in WEIGHTED or not self.settings.pot:
            steps = tuple(snap_weight_step(w, float(source), float(output)) for w in plan.steps)
            plan = self.weights[layer.name] = replace(plan, steps=steps)
        ratios = [source * Fraction(unit) / output for unit in plan.units]
        residual = self._step(layer.residual) / output if layer.residual else None
        return derive_scale(ratios, residual)

    def _unit(self, layer: Layer) -> Fraction:
        """What a sum of a layer counts in steps of its weights."""
        if layer.kind == "softmax":
            return power_of_two(-SOFTMAX_BITS)
        if layer.kind == "norm":
            return power_of_two(-norm_fraction(shape_of(self.model.nodes[layer.name])[-1]))
        unit = self._step(layer.inputs[0])
        return unit * self._step(layer.inputs[-1]) if layer.kind in ("multiply", "matmul") else unit

    def _bounds(self, layer: Layer) -> SumBounds:
        node, read = self.model.nodes[layer.name], self.values[layer.inputs[0]].codes
        if layer.kind == "softmax":
            return softmax_bounds()
        if layer.kind == "norm":
            value, weights = self.values[layer.inputs[0]], self.weights[layer.name]
            return norm_scale(self.model, layer, value, weights).bounds
        if layer.kind in ("multiply", "matmul"):
            right = self.values[layer.inputs[-1]].codes
            return bound_products(read, right, products_of(node), np.zeros(1, np.int64))
        if layer.kind == "pool":
            codes = np.ones((shape_of(node)[1], math.prod(window_of(node).kernel)), np.int64)
            bias = np.zeros(len(codes), np.int64)
        else:
            weights, step = self.weights[layer.name], self.values[layer.inputs[0]].step
            codes = weight_codes(self.model.weight_of(node), weights).numpy()
            correction = self.biases.get(layer.name)
            codes = _scaled(codes, weights, groups_of(node))
            bias = rounded_bias(self.model, layer.name, step, weights.units, correction).numpy()
        # Sums are of raw codes: what their zero point adds is taken off with the bias.
        taps = codes.reshape(len(codes), -1).sum(axis=1, dtype=np.int64)
        return bound_sums(codes, bias - read.zero_point * taps, read.low, read.high)


def _scaled(codes: np.ndarray, weights: WeightPlan, groups: int) -> np.ndarray:
    """Codes that give the same sums without factors of products."""
    if weights.products is None:
        return codes
    factors, _ = integer_factors(weights.products.spread(len(codes), codes.shape[1], groups))
    return codes * factors.reshape(*factors.shape, *[1] * (codes.ndim - 2))


def _doubled(weights: WeightPlan, where: np.ndarray) -> WeightPlan:
    """Coarser steps for the channels that overflow, or no factors where there are any."""
    if weights.products is not None:
        reason = f"{weights.reason}; no factors of products, since the accumulator could overflow"
        return replace(weights, products=None, reason=reason)
    grow = where if len(weights.steps) > 1 else [bool(where.any())]
    steps = tuple(step * 2 if g else step for step, g in zip(weights.steps, grow, strict=True))
    note = "; doubled where the accumulator could overflow"
    reason = weights.reason if weights.reason.endswith(note) else weights.reason + note
    return replace(weights, steps=steps, reason=reason, codes=b"")


def _coarser(weights: WeightPlan, places: tuple[int, ...]) -> WeightPlan:
    """Coarser steps for the channels whose weights are so small that no shift would fit."""
    pairs = zip(weights.steps, places, strict=True)
    note = "; coarser where no shift would fit, so that such weights are 0"
    reason = weights.reason if weights.reason.endswith(note) else weights.reason + note
    steps = tuple(math.ldexp(step, up) for step, up in pairs)
    return replace(weights, steps=steps, reason=reason, codes=b"")


def _proof(bounds: SumBounds, held: np.ndarray) -> AccumulatorProof:
    """What is written down of a layer's bounds.

    Raises:
        ArithmeticRangeError: it does not fit; the message names the channel.
    """
    channel = int(np.argmax(held))
    if held[channel] > INT32_MAX:
        raise ArithmeticRangeError(
            f"the accumulator can reach {held[channel]} in output channel {channel}, int32 holds "
            f"{INT32_MAX}; use fewer bits or coarser steps for this layer."
        )
    return AccumulatorProof(
        int(bounds.partial.max()),
        int(bounds.smallest.min()),
        int(bounds.largest.max()),
        int(held[channel]),
    )
