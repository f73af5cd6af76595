"""Two profiles side by side: rows of the same name together, in the order of the first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvmq.profile.as_json import to_json
from tvmq.profile.profile import OperatorProfile, Profile
from tvmq.profile.table import Table


@dataclass(frozen=True)
class Pair:
    """An operator in both profiles, or in one of them."""

    name: str
    first: OperatorProfile | None
    second: OperatorProfile | None

    @property
    def speedup(self) -> float | None:
        """Time of the first over time of the second; None where there is nothing to divide."""
        if self.first is None or self.second is None or not self.second.us:
            return None
        return self.first.us / self.second.us


def pairs(first: Profile, second: Profile) -> list[Pair]:
    """All operators of both; those of the second that the first lacks come last."""
    ours = {row.name: row for row in first.operators}
    theirs = {row.name: row for row in second.operators}
    names = list(dict.fromkeys([*ours, *theirs]))
    return [Pair(name, ours.get(name), theirs.get(name)) for name in names]


def comparison_table(first: Profile, second: Profile) -> Table:
    """What each costs in both, and how much faster the second is."""
    numbers = ["cycles 1", "cycles 2", "µs 1", "µs 2", "faster", "bytes 1", "bytes 2"]
    numbers += ["util % 1", "util % 2"]
    headings = ["operator", "device 1", "device 2", *numbers, "bound 1", "bound 2"]
    rows = []
    for pair in pairs(first, second):
        both = (pair.first, pair.second)
        speedup = pair.speedup
        rows.append(
            [
                pair.name,
                *(row.device if row else "-" for row in both),
                *(f"{row.cycles:,}" if row and row.device == "npu" else "" for row in both),
                *(f"{row.us:,.1f}" if row else "" for row in both),
                f"{speedup:.2f}x" if speedup is not None else "",
                *(f"{row.bytes:,}" if row and row.device != "cpu" else "" for row in both),
                *(
                    f"{100 * row.utilization:.1f}" if row and row.device == "npu" else ""
                    for row in both
                ),
                *(row.bound if row else "" for row in both),
            ]
        )
    dispensable = ("util % 1", "util % 2", "bound 1", "bytes 1", "bytes 2", "µs 1", "µs 2")
    return Table(headings, rows, set(numbers), dispensable)


def comparison_summary(first: Profile, second: Profile) -> Iterator[str]:
    """Both totals, and their ratios."""
    for number, profile in enumerate((first, second), 1):
        yield (
            f"{number}: {profile.artifact} ({profile.target}): {profile.total_cycles:,} NPU "
            f"cycles, {profile.total_ms:.3f} ms, "
            f"MAC array used {100 * profile.mac_utilization:.1f} %"
        )
    if first.total_cycles and second.total_cycles:
        yield f"NPU cycles of 1 over 2: {first.total_cycles / second.total_cycles:.2f}x"
    if second.total_ms:
        yield f"time of 1 over 2: {first.total_ms / second.total_ms:.2f}x"


def comparison_json(first: Profile, second: Profile) -> dict[str, Any]:
    """Both profiles, and per operator the speedup of the second."""
    return {
        "first": to_json(first),
        "second": to_json(second),
        "operators": [
            {"name": pair.name, "speedup": None if pair.speedup is None else round(pair.speedup, 4)}
            for pair in pairs(first, second)
        ],
    }
