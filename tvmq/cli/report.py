"""Numbers to words: lines and table rows for the terminal; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from targets.refusal import by_reason
from tvmq.artifact.description import settings_text

if TYPE_CHECKING:  # so that printing does not import torch
    from tvmq.flow import BuildResult


def build_summary(result: BuildResult) -> list[str]:
    """What `tvmq build` says at its end."""
    manifest = result.manifest
    lines = [
        f"{result.artifact}: {manifest.model['file']} ({manifest.model['kind']}) "
        f"for {manifest.target}",
        f"  {settings_text(manifest.settings)}",
        f"  calibration: {manifest.calibration['source']}",
        *_reconstruction_lines(manifest.reconstruction),
        f"  operators: {manifest.placement['npu']} on the NPU, {manifest.placement['cpu']} on "
        f"the CPU",
    ]
    refused = [
        (f"{place.name} ({place.source})", place.refusal)
        for place in result.placements
        if place.refusal is not None
    ]
    lines += [f"    CPU: {line}" for line in by_reason(refused)]
    devices = "reference and CPU" if manifest.target == "cpu" else "reference, CPU and NPU"
    verdict = "identical, bit for bit" if manifest.bit_exact else "DIFFERENT"
    stages = ", ".join(f"{name} {value:.1f}" for name, value in manifest.seconds.items())
    lines += [
        f"  {devices} on golden.npz: {verdict}",
        f"  {sum(manifest.seconds.values()):.1f} s ({stages})",
        f"Next: tvmq eval {result.artifact} --data D, tvmq profile {result.artifact}",
    ]
    return lines


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
    lines += [
        f"  {refined['name']} moved for the network's outputs: {len(refined['moves'])}, distance "
        f"{refined['loss_before']:.4g} -> {refined['loss_after']:.4g}"
        for refined in network
    ]
    return lines
