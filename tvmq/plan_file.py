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
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from targets.errors import InputError
from tvmq.complete_plan import complete_plan
from tvmq.float_model import FloatModel
from tvmq.plan import BiasPlan, Plan, ValuePlan, WeightPlan
from tvmq.regions import Regions, find_regions
from tvmq.rounded_bias import node_of
from tvmq.scheme import Settings, code_range, learned_range, settings_from_json

FORMAT = "tvmq-plan-1"


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan; a file in the way is replaced."""
    path.write_text(plan_to_json(plan) + "\n", encoding="utf-8")


def read_plan(path: Path, model: FloatModel) -> Plan:
    """Read a plan for a network, perhaps edited, and derive everything anew.

    Raises:
        InputError: not a plan, not of this network, or an entry is wrong; it is named.
        ArithmeticRangeError: the steps do not lead to integers that fit.
    """
    return plan_from_json(_read_text(path), model, str(path))


def planned_settings(path: Path) -> Settings:
    """The settings of a plan file, for what comes before it is read; raises as ``read_plan``."""
    nothing = Regions({}, {}, {}, (), frozenset(), frozenset())
    return _Reader(str(path), _read_document(_read_text(path), str(path)), nothing).settings()


def plan_to_json(plan: Plan) -> str:
    """The text of a plan file."""
    values = {
        name: {
            "step": _write_step(value.step, plan.settings.pot),
            "zero_point": value.zero_point,
            "type": value.dtype,
            "bits": value.bits,
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
    document = {
        "format": FORMAT,
        "model": plan.fingerprint,
        "calibration": plan.calibration,
        "settings": asdict(plan.settings),
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
    document = _read_document(text, where)
    reader = _Reader(where, document, find_regions(model))
    if document.get("model") != model.fingerprint:
        raise InputError(
            f"{where} was made for another network (its fingerprint is {document.get('model')!r}); "
            "build without --plan to make one for this network."
        )
    settings = reader.settings()
    return complete_plan(
        model,
        settings,
        str(document.get("calibration", "")),
        reader.values(settings),
        reader.weights(model, settings),
        reader.biases(model),
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"plan {path} can't be read ({error}); give a file that exists.") from None


def _read_document(text: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error}); `tvmq build` writes plans.") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"{where} is not a {FORMAT} file; `tvmq build` writes them.")
    return document


class _Reader:
    """Checks one document; every complaint names the file and the entry."""

    def __init__(self, where: str, document: Mapping[str, Any], regions: Regions) -> None:
        self.where, self.document, self.regions = where, document, regions

    def settings(self) -> Settings:
        given = self._section("settings")
        self._same_names("settings", given, [field.name for field in fields(Settings)])
        try:
            return settings_from_json(given)
        except InputError as error:
            raise InputError(f"{self.where}: settings: {error}") from None

    def values(self, settings: Settings) -> dict[str, ValuePlan]:
        section = self._section("values")
        self._same_names("values", section, self.regions.values)
        plans = {}
        for name in self.regions.values:
            entry, place = section[name], f"values.{name}"
            bits = self._whole(entry, place, "bits", 2, 8)
            kind = self._get(entry, place, "type")
            if kind not in ("int8", "uint8"):
                self._complain(f"{place}.type", kind, "int8 or uint8")
            low, high = code_range(bits, kind == "int8")
            zero = self._whole(entry, place, "zero_point", low, high)
            step = self._step(self._get(entry, place, "step"), f"{place}.step", settings)
            reason = str(entry.get("reason", ""))
            plans[name] = ValuePlan(step, zero, low, high, kind == "int8", bits, reason)
        for names in self.regions.tied:
            for name in names[1:]:
                first, other = plans[names[0]], plans[name]
                if (first.step, first.zero_point, first.dtype, first.bits) != (
                    other.step, other.zero_point, other.dtype, other.bits
                ):  # fmt: skip
                    self._complain(
                        f"values.{name}",
                        "another step, zero point, type or bits",
                        f"those of {names[0]}, with which it is concatenated",
                    )
        return plans

    def weights(self, model: FloatModel, settings: Settings) -> dict[str, WeightPlan]:
        section = self._section("layers")
        layers = {
            n: layer
            for n, layer in self.regions.layers.items()
            if layer.kind not in ("add", "function")
        }
        self._same_names("layers", section, layers)
        channels = {
            node.name: model.weight_of(node).shape[0]
            for node in model.graph_module.graph.nodes
            if node.name in layers and layers[node.name].kind != "pool"
        }
        learned = self._section("learned_codes", {})
        self._same_names("learned_codes", {*channels, *learned}, channels)
        plans = {}
        for name, layer in layers.items():
            entry, place = section[name], f"layers.{name}"
            steps = self._list(entry, place, "weight_steps", {1, channels.get(name, 1)})
            pot = Settings() if settings.pot and layer.kind != "pool" else Settings(scales="free")
            plans[name] = WeightPlan(
                tuple(
                    self._step(s, f"{place}.weight_steps[{k}]", pot) for k, s in enumerate(steps)
                ),
                self._whole(entry, place, "weight_bits", 2, 8),
                str(entry.get("reason", "")),
                self._codes(model, name, entry["weight_bits"], learned.get(name)),
            )
        return plans

    def _codes(self, model: FloatModel, name: str, bits: int, text: Any) -> bytes:
        """Learned codes of a layer, as WeightPlan holds them; empty if it has none."""
        if text is None:
            return b""
        place, count = f"learned_codes.{name}", model.weight_of(node_of(model, name)).numel()
        wanted = f"{count} codes of {bits} bits (int8, zlib, base64)"
        try:
            codes = zlib.decompress(base64.b64decode(text, validate=True))
        except (TypeError, ValueError, zlib.error):
            self._complain(place, "unreadable", wanted)
        low, high = learned_range(bits)
        numbers = np.frombuffer(codes, np.int8)
        if len(numbers) != count or numbers.min() < low or numbers.max() > high:
            self._complain(place, f"{len(numbers)} other codes", wanted)
        return codes

    def biases(self, model: FloatModel) -> dict[str, BiasPlan]:
        plans = {}
        for node in model.graph_module.graph.nodes:
            entry = self.document["layers"].get(node.name, {}).get("bias_correction")
            if entry is None:
                continue
            place = f"layers.{node.name}.bias_correction"
            numbers = self._list(entry, place, "add", {0, model.weight_of(node).shape[0]})
            if not all(_is_number(number) for number in numbers):
                self._complain(f"{place}.add", numbers, "finite numbers")
            plans[node.name] = BiasPlan(tuple(map(float, numbers)), str(entry.get("reason", "")))
        return plans

    def _section(self, name: str, default: object = None) -> Mapping[str, Any]:
        section = self.document.get(name, default)
        if not isinstance(section, dict):
            self._complain(name, section, "an object")
        return section

    def _same_names(self, section: str, given: Iterable[str], known: Iterable[str]) -> None:
        given, known = set(given), set(known)
        if given - known:
            name = min(given - known)
            self._complain(f"{section}.{name}", "an unknown name", f"one of {sorted(known)[:8]} …")
        if known - given:
            self._complain(f"{section}.{min(known - given)}", "missing", "an entry for each")

    def _get(self, entry: Any, place: str, key: str) -> Any:
        if not isinstance(entry, dict) or key not in entry:
            self._complain(f"{place}.{key}", "missing", "a value")
        return entry[key]

    def _whole(self, entry: Any, place: str, key: str, low: int, high: int) -> int:
        number = self._get(entry, place, key)
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
            self._complain(f"{place}.{key}", number, f"a whole number in [{low}, {high}]")
        return int(number)

    def _list(self, entry: Any, place: str, key: str, lengths: set[int]) -> list[Any]:
        items = self._get(entry, place, key)
        if not isinstance(items, list) or len(items) not in lengths:
            sizes = " or ".join(map(str, sorted(lengths)))
            self._complain(f"{place}.{key}", items, f"a list of {sizes} numbers")
        return list(items)

    def _step(self, given: Any, place: str, settings: Settings) -> float:
        """A positive number, or a text such as ``2^-5``."""
        step = given
        if isinstance(given, str) and given.startswith("2^"):
            try:
                step = math.ldexp(1.0, int(given[2:]))
            except (ValueError, OverflowError):
                self._complain(place, given, 'a power of two such as "2^-5"')
        if not _is_number(step) or step <= 0:
            self._complain(place, given, "a positive number")
        if settings.pot and math.frexp(step)[0] != 0.5:
            self._complain(place, given, "a power of two, since the settings say scales: pot")
        return float(step)

    def _complain(self, place: str, given: object, wanted: str) -> NoReturn:
        raise InputError(f"{self.where}: {place} is {given!r}; expected {wanted}.")


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def _write_step(step: float, pot: bool) -> str | float:
    mantissa, exponent = math.frexp(step)
    return f"2^{exponent - 1}" if pot and mantissa == 0.5 else step


def _one_line_lists(text: str) -> str:
    """Join lists of plain numbers, which indent=2 spreads over a line each."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
