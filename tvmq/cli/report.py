"""Numbers to words: lines and table rows for the terminal; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.refusal import by_reason
from tvmq.artifact.description import cpu_text, placement_text, settings_text, verdict_text

if TYPE_CHECKING:  # so that printing does not import torch
    from relay_passes.place import Placement
    from tvmq.artifact.artifact import FloatEndsEntry, FloatEntry, FloatIslandEntry, RangeEntry
    from tvmq.flow import BuildResult
    from tvmq.tune.retune import TuneResult
    from tvmq.tune.retune_kernels import KernelTuneResult

MOST_RANGES = 3
"""Lines about tensors that are too narrow; the manifest names them all."""

NAMED_CHANNELS = 8
"""More are counted."""


def build_summary(result: BuildResult) -> list[str]:
    """What `tvmq build` says at its end."""
    manifest = result.manifest
    lines = [
        f"{result.artifact}: {manifest.model['file']} ({manifest.model['kind']}) "
        f"for {manifest.target}",
        f"  {settings_text(manifest.settings)}",
        f"  calibration: {manifest.calibration['source']}",
        *_reconstruction_lines(manifest.reconstruction),
        *residual_lines(manifest.residuals),
        *range_lines(manifest.ranges),
        *([] if manifest.cpu is None else [f"  CPU: {cpu_text(manifest.cpu)}"]),
        f"  operators: {placement_text(manifest.placement)}",
        *tuning_lines(manifest.tuning),
        *float_end_lines(manifest.float_ends),
        *float_island_lines(manifest.float_islands, result.placements),
    ]
    refused = [
        (f"{place.name} ({place.source})", place.refusal)
        for place in result.placements
        if place.device == "cpu" and place.refusal is not None
    ]
    lines += [f"    CPU: {line}" for line in by_reason(refused)]
    stages = ", ".join(f"{name} {value:.1f}" for name, value in manifest.seconds.items())
    lines += [
        f"  {verdict_text(manifest)}",
        f"  {sum(manifest.seconds.values()):.1f} s ({stages})",
        f"Next: tvmq eval {result.artifact} --data D, tvmq profile {result.artifact}",
    ]
    return lines


def tune_summary(result: TuneResult | KernelTuneResult, source: Path) -> list[str]:
    """What `tvmq tune` says at its end."""
    verdict = "identical, bit for bit" if result.manifest.bit_exact else "DIFFERENT"
    lines = [
        f"{result.artifact}: {result.manifest.model['file']} for {result.manifest.target}",
        *tuning_lines(result.manifest.tuning),
        f"  outputs for golden.npz: {verdict}",
    ]
    if result.artifact != source:
        lines.append(f"Next: tvmq profile {source} {result.artifact}")
    return lines


def tuning_lines(facts: Mapping[str, Any]) -> list[str]:
    """Cycles and times before and after, and the trials that it took."""
    lines = []
    if "cycles" in facts:
        before, after = (sum(facts["cycles"][name]) for name in ("before", "after"))
        change = f"{before:,} cycles by rule, {after:,} now"
        lines.append(f"  tuned: {change} {_gain(before, after, 'fewer')}, {_trials(facts)}")
    if cpu := facts.get("cpu"):
        before, after = (cpu["nanoseconds"][name] for name in ("before", "after"))
        kept = sum(not each["by_rule"] for each in cpu["kernels"])
        now = "now" if cpu["kept"] else "as tried, which the network is slower with: not kept"
        change = f"{before / 1e6:.3f} ms by rule, {after / 1e6:.3f} ms {now}"
        lines += [
            f"  tuned on the CPU ({cpu['machine']}):",
            f"    kernels one by one: {change} {_gain(before, after, 'less')}, {kept} of "
            f"{len(cpu['kernels'])} kernels cut otherwise, {_trials(cpu)}",
        ]
        if "network_seconds" in cpu:
            before, after = (1e3 * cpu["network_seconds"][name] for name in ("before", "after"))
            change = f"{before:.3f} ms before, {after:.3f} ms now"
            lines.append(f"    the network, an image: {change} {_gain(before, after, 'less')}")
    return lines


def _gain(before: float, after: float, word: str) -> str:
    return f"({100 * (before - after) / max(before, 1e-9):.2f} % {word})"


def _trials(facts: Mapping[str, Any]) -> str:
    failed = f", of which {facts['failed']} could not be made" if facts["failed"] else ""
    return f"{facts['trials']} trials{failed}"


def float_end_lines(ends: FloatEndsEntry | None) -> list[str]:
    """What stays in float at each end, each reason once."""
    if ends is None:
        return []
    return [*_float_lines("float head", ends.head), *_float_lines("float tail", ends.tail)]


def float_island_lines(
    islands: Sequence[FloatIslandEntry], placements: Sequence[Placement]
) -> list[str]:
    """What runs in float in the middle of the network, each reason once, and its price."""
    if not islands:
        return []
    lines = [line for island in islands for line in _float_lines(island.name, island.operators)]
    macs = sum(island.macs for island in islands)
    total = macs + sum(place.macs for place in placements if place.device != "float")
    programs = {place.program for place in placements} - {None}
    price = (
        f"{100 * macs / max(total, 1):.2g} % of the multiply-accumulates, "
        f"{sum(island.bytes for island in islands):,} bytes per image between codes and floats"
    )
    if programs:
        price += f"; the NPU runs the rest in {len(programs)} programs"
    return [*lines, f"    float islands: {len(islands)}, {price}"]


def _float_lines(name: str, operators: Sequence[FloatEntry]) -> list[str]:
    reasons: dict[str, list[FloatEntry]] = {}
    for operator in operators:
        reasons.setdefault(operator.reason, []).append(operator)
    return [
        f"    {name}: {', '.join(dict.fromkeys(operator.kind for operator in alike))} "
        f"({alike[0].source}): {reason}"
        for reason, alike in reasons.items()
    ]


def range_lines(ranges: Sequence[RangeEntry]) -> list[str]:
    """The worst of what is too narrow, and what to do about each kind."""
    worst = sorted(ranges, key=lambda entry: -entry.lost)[:MOST_RANGES]
    lines = [f"  too narrow: {_range_text(entry)}" for entry in worst]
    if len(ranges) > len(worst):
        lines.append(f"  and {len(ranges) - len(worst)} more: ranges in manifest.json")
    return lines + [f"    {remedy}" for remedy in dict.fromkeys(e.remedy for e in worst)]


def _range_text(entry: RangeEntry) -> str:
    which = f"{len(entry.channels)} of {entry.count} channels"
    if len(entry.channels) <= min(NAMED_CHANNELS, entry.count - 1):
        word = "channel" if len(entry.channels) == 1 else "channels"
        which = f"{word} {', '.join(map(str, entry.channels))} of {entry.count}"
    narrowest, widest = (f"{steps:.2g}" for steps in entry.steps)
    steps = narrowest if narrowest == widest else f"{narrowest} to {widest}"
    what = {"weights": "weights of ", "joined": "of what is joined, "}.get(entry.kind, "")
    place = f" ({entry.source})" if entry.source else ""
    does = "makes" if entry.kind == "weights" else "adds up"
    return (
        f"{what}{entry.name}{place}: {which} span {steps} steps, rounding loses "
        f"{100 * entry.lost:.0f} % of what {entry.layer} {does}."
    )


def _reconstruction_lines(facts: Mapping[str, Any]) -> list[str]:
    if not facts or not facts["units"]:
        return []
    units, network = facts["units"], facts["network"]
    refused = [
        unit["unit"]
        for unit in units
        if not any(candidate["accepted"] for candidate in unit["candidates"][1:])
    ]
    note = f"; rounded to nearest, since nothing else helped: {', '.join(refused)}"
    lines = [
        f"  reconstruction: {len(units) - len(refused)} of {len(units)} units closer to the float "
        f"network on held-out images{note if refused else ''}"
    ]
    lines += [_network_line(refined) for refined in network]
    return lines + _product_lines(facts.get("products")) + _border_lines(facts.get("borders"))


def _network_line(refined: Mapping[str, Any]) -> str:
    """What was done for all units together."""
    name, before = refined["name"], refined["loss_before"]
    learned = refined.get("learned")
    if learned is None:
        moved = f"{name} moved for the network's outputs: {len(refined['moves'])}"
        return f"  {moved}, distance {before:.4g} -> {refined['loss_after']:.4g}"
    distances = f"distance of the outputs {before:.4g} -> {learned['loss']:.4g}"
    codes = f"{learned['codes']:,} of {learned['of']:,} codes changed"
    kept = "" if learned["accepted"] else "; not kept"
    return f"  {name}: {distances}, {codes}{kept}"


def _product_lines(cost: Mapping[str, Any] | None) -> list[str]:
    """What factors of products cost."""
    if cost is None:
        return []
    words = [f"{100 * cost['share']:.2f} % more operations"]
    words += _more(cost["with_factors"], cost["without"])
    return [f"  factors of products in {cost['layers']} layers: {', '.join(words)}"]


def _border_lines(cost: Mapping[str, Any] | None) -> list[str]:
    """What borders of activations cost."""
    if cost is None:
        return []
    words = [f"{cost['table_bytes']:,} bytes", f"{cost['comparisons']:,} comparisons per image"]
    words += _more(cost["with_borders"], cost["without"])
    return [f"  borders of {cost['values']} activations: {', '.join(words)}"]


def residual_lines(cost: Mapping[str, Any]) -> list[str]:
    """What residuals of more bits cost."""
    if not cost:
        return []
    words = [f"{cost['values']} values, {cost['roundings']} rounded copies of them"]
    words += _more(cost["with_residuals"], cost["without"])
    return [f"  residuals of {cost['bits']} bits: {', '.join(words)}"]


def _more(price: Mapping[str, float] | None, without: Mapping[str, float] | None) -> list[str]:
    """What a price is more than another, in words; nothing without an NPU."""
    if price is None or without is None:
        return []
    return [
        f"{100 * (price[name] / without[name] - 1):+.2f} % {what}"
        for name, what in (
            ("cycles", "cycles"),
            ("dram_bytes", "bytes of DRAM"),
            ("picojoules", "relative energy"),
        )
    ]
