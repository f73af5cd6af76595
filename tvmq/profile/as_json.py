"""A profile as JSON and as CSV: the same numbers, for machines."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any

from targets.npu.machine.isa import UNIT_NAMES
from targets.npu.price.stalls import CLASSES
from tvmq.profile.profile import Profile

_COLUMNS = (
    *("name", "layer", "op", "device", "cycles", "us", "macs", "bytes", "utilization", "bound"),
    *("filled", "busy", "unfilled", "energy_pj", "reason"),
)


def to_json(profile: Profile) -> dict[str, Any]:
    """Totals, the machine's peaks, and a list of operators."""
    spec = profile.spec
    machine = None
    if spec is not None:
        machine = {
            "name": spec.name,
            "clock_hz": spec.clock_hz,
            "peak_macs_per_cycle": spec.peak_macs_per_cycle,
            "dram_bytes_per_cycle": spec.dma.bytes_per_cycle,
        }
    return {
        "artifact": profile.artifact,
        "target": profile.target,
        "about": list(profile.about),
        "machine": machine,
        "total_cycles": profile.total_cycles,
        "total_ms": profile.total_ms,
        "mac_utilization": profile.mac_utilization,
        "energy_table": profile.energy_table,
        "energy_pj": round(sum(row.energy_pj for row in profile.operators), 1),
        "operators": [asdict(row) for row in profile.operators],
    }


def to_csv(profile: Profile) -> str:
    """One line per operator; a column per unit and class of cycles, such as "MM latency"."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = [(unit, kind) for unit in UNIT_NAMES for kind in CLASSES if kind != unit]
    writer.writerow([*_COLUMNS, *(f"{unit} {kind}" for unit, kind in classes)])
    for row in profile.operators:
        stalls = [row.stalls.get(unit, {}).get(kind, 0) for unit, kind in classes]
        writer.writerow([*(getattr(row, name) for name in _COLUMNS), *stalls])
    return text.getvalue()
