"""A plan as JSON that a person reads and edits, and back.

A reader may change steps, zero points, bits and corrections; "derived" shows what followed from
them when the file was written and is worked out anew when it is read, proofs included.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Iterable, Sized
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from targets.errors import InputError
from targets.reading import read_text
from targets.rounding import HALF_UP, Rounding
from targets.schema_errors import in_words
from tvmq.float_model import Equalization, FloatModel, Mixing, TensorScaling, groups_of
from tvmq.plan.complete_plan import complete_plan
from tvmq.plan.plan import BiasPlan, Plan, ProductPlan, ValuePlan, WeightPlan
from tvmq.plan.plan_schema import FORMAT, PlanFile, ProductEntry, inflate
from tvmq.regions import UNSCALED, WEIGHTED, channel_axis, find_regions, is_depthwise, shape_of
from tvmq.settings import Settings, learned_range

_WRITTEN = "`tvmq build` writes them: plan.json in an artifact."


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan; a file in the way is replaced."""
    path.write_text(plan_to_json(plan) + "\n", encoding="utf-8")


def read_plan(path: Path, model: FloatModel) -> Plan:
    """Read a plan for a network, perhaps edited, and derive everything anew.

    Raises:
        InputError: not a plan, not of this network, or an entry is wrong; it is named.
        ArithmeticRangeError: the steps do not lead to integers that fit.
    """
    return plan_from_json(read_text(path, "a plan", _WRITTEN), model, str(path))


class PlannedChanges(NamedTuple):
    """How the network of a plan differs from the captured one.

    The plan itself is read with the network that ``round_reads``, ``equalize_as``, ``scale_as`` and
    ``mix_as`` make of it, in this order, each by one of these.
    """

    settings: Settings
    equalization: Equalization | None = None
    scaling: TensorScaling | None = None
    mixing: Mixing | None = None


def planned_changes(path: Path) -> PlannedChanges:
    """What a plan file says of its network; raises as ``read_plan``."""
    file = _read_file(read_text(path, "a plan", _WRITTEN), str(path))
    equalized, scaled, moved = file.equalization, file.scaling, file.mixing
    return PlannedChanges(
        file.settings,
        None if equalized is None else Equalization(equalized.exponents, equalized.reason),
        None if scaled is None else TensorScaling(scaled.factors, scaled.reason, scaled.left_out),
        None if moved is None else Mixing(moved.orders, moved.reason),
    )


def plan_to_json(plan: Plan) -> str:
    """The text of a plan file."""
    values = {
        name: {
            "step": _write_step(value.step, plan.settings.pot),
            "zero_point": value.zero_point,
            "type": value.dtype,
            "bits": value.bits,
            **_write_rounding(value.rounding),
            "reason": value.reason,
            "derived": {"codes": [value.low, value.high]},
        }
        for name, value in plan.values.items()
    }
    layers = {}
    for name, weight in plan.weights.items():
        derived: dict[str, Any] = {"accumulator": asdict(plan.proofs[name])}
        if name in plan.requantize:
            derived["requantize"] = asdict(plan.requantize[name])
        layers[name] = {
            "weight_steps": [_write_step(step, plan.settings.pot) for step in weight.steps],
            "weight_bits": weight.bits,
            "reason": weight.reason,
            "derived": derived,
        }
        if name in plan.biases:
            bias = plan.biases[name]
            layers[name]["bias_correction"] = {
                "add": list(bias.correction),
                "reason": bias.reason,
            }
        if weight.products is not None:
            layers[name]["products"] = asdict(weight.products)
    document = {
        "format": FORMAT,
        "model": plan.fingerprint,
        "calibration": plan.calibration,
        "settings": asdict(plan.settings),
        **({} if plan.equalization is None else {"equalization": asdict(plan.equalization)}),
        **({} if plan.scaling is None else {"scaling": asdict(plan.scaling)}),
        **({} if plan.mixing is None else {"mixing": asdict(plan.mixing)}),
        "values": values,
        "layers": layers,
        "additions": {name: asdict(addition) for name, addition in plan.additions.items()},
        "learned_codes": {
            name: base64.b64encode(zlib.compress(weight.codes)).decode("ascii")
            for name, weight in plan.weights.items()
            if weight.codes
        },
    }
    return _one_line_lists(json.dumps(document, indent=2))


def plan_from_json(text: str, model: FloatModel, where: str = "plan") -> Plan:
    """The inverse of ``plan_to_json``; raises as ``read_plan``."""
    file = _read_file(text, where)
    if file.model != model.fingerprint:
        raise InputError(
            f"{where} was made for another network (its fingerprint is {file.model!r}), or its "
            "residual_bits or residual_reads were edited, which say where the network rounds; "
            "build without --plan to make one for this network."
        )
    reader = _Reader(where, file, model)
    return complete_plan(
        model, file.settings, file.calibration, reader.values(), reader.weights(), reader.biases()
    )


def _read_file(text: str, where: str) -> PlanFile:
    try:
        file = PlanFile.model_validate_json(text)
    except InputError as error:  # Settings that contradict each other
        raise InputError(f"{where}: settings: {error}") from None
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        if any(problem["loc"] in ((), ("format",)) for problem in problems):
            raise InputError(
                f"{where} is not a {FORMAT} file ({in_words(problems[0])}); `tvmq build` writes "
                "them."
            ) from None
        words = "; ".join(in_words(problem) for problem in problems[:3])
        raise InputError(f"{where}: {words}. docs/quantization.md describes the entries.") from None
    missing = {field.name for field in fields(Settings)} - json.loads(text)["settings"].keys()
    if missing:  # with a default in its place it would quietly be another plan
        raise InputError(f"{where}: settings.{min(missing)} is missing; add it.")
    return file


class _Reader:
    """Compares a file with the network; every complaint names the file and the entry."""

    def __init__(self, where: str, file: PlanFile, model: FloatModel) -> None:
        self.where, self.file, self.model = where, file, model
        self.regions = find_regions(model)

    def values(self) -> dict[str, ValuePlan]:
        self._same_names("values", self.file.values, self.regions.values)
        plans = {}
        for name in self.regions.values:
            entry = self.file.values[name]
            self._check_step(entry.step, f"values.{name}.step")
            plans[name] = ValuePlan(
                entry.step,
                entry.zero_point,
                *entry.codes,
                entry.type == "int8",
                entry.bits,
                entry.reason,
                entry.rounds,
            )
            shape = shape_of(self.model.nodes[name])
            channels = shape[channel_axis(len(shape))]
            self._check_length(entry.borders, {0, 1, channels}, f"values.{name}.borders", "rows")
        return plans

    def weights(self) -> dict[str, WeightPlan]:
        section, learned = self.file.layers, self.file.learned_codes
        layers = {
            n: layer for n, layer in self.regions.layers.items() if layer.kind not in UNSCALED
        }
        self._same_names("layers", section, layers)
        shapes = {
            node.name: self.model.weight_of(node).shape
            for node in self.model.graph_module.graph.nodes
            if node.name in layers and layers[node.name].kind in WEIGHTED
        }
        self._same_names("learned_codes", {*shapes, *learned}, shapes)
        plans = {}
        for name, layer in layers.items():
            entry, place = section[name], f"layers.{name}"
            channels = shapes[name][0] if name in shapes else 1
            self._check_length(entry.weight_steps, {1, channels}, f"{place}.weight_steps")
            if layer.kind in WEIGHTED:
                for k, step in enumerate(entry.weight_steps):
                    self._check_step(step, f"{place}.weight_steps[{k}]")
            codes = b""
            if name in learned:
                codes = self._codes(name, shapes[name].numel(), entry.weight_bits)
            products = self._products(name, entry.products)
            plans[name] = WeightPlan(
                entry.weight_steps, entry.weight_bits, entry.reason, codes, products
            )
        return plans

    def _products(self, name: str, entry: ProductEntry | None) -> ProductPlan | None:
        """The factors of a layer's products; None where all are 1."""
        if entry is None:
            return None
        node, place = self.model.nodes[name], f"layers.{name}.products"
        if self.regions.layers[name].kind not in WEIGHTED or is_depthwise(node):
            raise InputError(
                f"{self.where}: {place}: the products of this layer can't be scaled by group of "
                "input channels; remove it."
            )
        groups = groups_of(node)
        outputs, inputs = self.model.weight_of(node).shape[:2]
        rows = groups * math.ceil(outputs // groups / entry.outputs)
        self._check_length(entry.factors, {rows}, f"{place}.factors", "rows")
        for row in entry.factors:
            self._check_length(row, {math.ceil(inputs / entry.channels)}, f"{place}.factors")
        if all(factor == 1 for row in entry.factors for factor in row):
            return None
        return ProductPlan(entry.channels, entry.outputs, entry.factors, entry.reason)

    def biases(self) -> dict[str, BiasPlan]:
        plans = {}
        for node in self.model.graph_module.graph.nodes:
            entry = self.file.layers.get(node.name)
            if entry is None or entry.bias_correction is None:
                continue
            correction, place = entry.bias_correction, f"layers.{node.name}.bias_correction"
            if self.regions.layers[node.name].kind not in WEIGHTED:
                raise InputError(f"{self.where}: {place}: this layer has no bias; remove it.")
            self._check_length(correction.add, {0, len(self.model.weight_of(node))}, f"{place}.add")
            plans[node.name] = BiasPlan(correction.add, correction.reason)
        return plans

    def _same_names(self, section: str, given: Iterable[str], known: Iterable[str]) -> None:
        unknown, missing = sorted({*given} - {*known}), sorted({*known} - {*given})
        if unknown:
            raise InputError(
                f"{self.where}: {section}.{unknown[0]} is not in the network; the names are "
                f"{', '.join(sorted(known)[:8])} …"
            )
        if missing:
            raise InputError(f"{self.where}: {section}.{missing[0]} is missing; add an entry.")

    def _check_length(
        self, items: Sized, lengths: set[int], place: str, what: str = "numbers"
    ) -> None:
        if len(items) not in lengths:
            sizes = " or ".join(map(str, sorted(lengths)))
            raise InputError(f"{self.where}: {place} has {len(items)} {what}; give {sizes}.")

    def _check_step(self, step: float, place: str) -> None:
        if self.file.settings.pot and math.frexp(step)[0] != 0.5:
            raise InputError(
                f"{self.where}: {place} is {step}; give a power of two such as "
                f'"{_write_step(2.0 ** round(math.log2(step)), pot=True)}", or set '
                "settings.scales to free."
            )

    def _codes(self, name: str, count: int, bits: int) -> bytes:
        place = f"learned_codes.{name}"
        try:
            codes = inflate(self.file.learned_codes[name], count)
        except ValueError as error:
            raise InputError(f"{self.where}: {place}: {error}") from None
        low, high = learned_range(bits)
        numbers = np.frombuffer(codes, np.int8)
        if len(numbers) != count:
            more = len(numbers) > count
            found = f"more than {count} codes" if more else f"{len(numbers)} codes"
            wanted = str(count)
        elif numbers.min() < low or numbers.max() > high:
            found = f"codes in [{numbers.min()}, {numbers.max()}]"
            wanted = f"[{low}, {high}] with {bits} bits"
        else:
            return codes
        raise InputError(
            f"{self.where}: {place} holds {found}, the layer takes {wanted}; remove the entry to "
            "round the weights to nearest."
        )


def _write_step(step: float, pot: bool) -> str | float:
    mantissa, exponent = math.frexp(step)
    return f"2^{exponent - 1}" if pot and mantissa == 0.5 else step


def _write_rounding(rounding: Rounding) -> dict[str, Any]:
    if rounding == HALF_UP:
        return {}
    borders = [list(row) for row in rounding.borders]
    return {"rounding": rounding.mode.name} | ({"borders": borders} if borders else {})


def _one_line_lists(text: str) -> str:
    """Join lists of plain numbers, which indent=2 spreads over a line each."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
