"""A profile in words: headings, rows and summary for the terminal; computes no costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tvmq.profile.profile import OperatorProfile, Profile

_REASONS, _NAMES = 4, 6
"""Lines, and names in a line, of what leaves multipliers empty."""


@dataclass(frozen=True)
class Table:
    """Headings, cells, which headings stand over numbers, and which a narrow terminal can miss."""

    headings: list[str]
    rows: list[list[str]]
    numbers: set[str]
    dispensable: tuple[str, ...]


def operator_table(profile: Profile) -> Table:
    """One row per operator."""
    numbers = ["cycles", "µs", "MACs", "bytes", "util %", "filled %", "busy %", "energy µJ"]
    headings = [
        *("operator", "kind", "device", *numbers),
        *("bound by", "array waits for", "where in the model"),
    ]
    rows = [
        [
            row.name,
            row.op,
            row.device,
            f"{row.cycles:,}" if row.device == "npu" else "",
            f"{row.us:,.1f}",
            f"{row.macs:,}",
            f"{row.bytes:,}" if row.device != "cpu" else "",
            *(
                f"{100 * share:.1f}" if row.device == "npu" else ""
                for share in (row.utilization, row.filled, row.busy)
            ),
            f"{row.energy_pj / 1e6:,.2f}" if row.device != "cpu" else "",
            row.bound,
            array_waits(row),
            row.layer,
        ]
        for row in profile.operators
    ]
    dispensable = (
        "energy µJ",
        "busy %",
        "filled %",
        "array waits for",
        "kind",
        "µs",
        "bytes",
        "MACs",
        "device",
    )
    return Table(headings, rows, set(numbers), dispensable)


def with_host_as_one(profile: Profile) -> Profile:
    """The same profile with one row for all work of the host, which is no layer of the network."""
    host = [row for row in profile.operators if row.op == "host"]
    if not host:
        return profile
    one = replace(
        host[0],
        name=f"{len(host)} on the host",
        layer="input to codes, sums to floats",
        us=sum(row.us for row in host),
    )
    rows = [row for row in profile.operators if row.op != "host"]
    return replace(profile, operators=(*rows, one))


def array_waits(row: OperatorProfile, most: int = 2) -> str:
    """The largest classes of the array's cycles that aren't work, such as "LD 24 %, VU 3 %"."""
    if not row.cycles:
        return ""
    waits = {name: n for name, n in row.stalls["MM"].items() if name not in ("work", "done")}
    largest = sorted(waits, key=lambda name: -waits[name])[:most]
    shares = [(name, 100 * waits[name] / row.cycles) for name in largest]
    return ", ".join(f"{name} {share:.0f} %" for name, share in shares if share >= 1)


def summary(profile: Profile) -> Iterator[str]:
    """``totals``, and why layers are on the CPU."""
    yield from totals(profile)
    for reason, rows in off_the_npu(profile).items():
        layers = [f"{row.name} ({row.layer})" for row in rows if row.device == "cpu"]
        if layers and rows[0].op != "host":
            rest = f" and {len(layers) - _NAMES} more" if len(layers) > _NAMES else ""
            yield f"CPU: {'; '.join(layers[:_NAMES])}{rest}: {reason}"


def totals(profile: Profile) -> Iterator[str]:
    """What an image costs, and what bounds the NPU."""
    yield (
        f"{profile.total_cycles:,} NPU cycles, {profile.total_ms:.3f} ms per image; "
        f"MAC array used {100 * profile.mac_utilization:.1f} % of the NPU's time"
    )
    if profile.total_cycles:
        shares = ", ".join(f"{bound} {share:.0%}" for bound, share in bound_shares(profile))
        energy = sum(row.energy_pj for row in profile.operators) / 1e6
        yield f"NPU cycles by what bounds the layer: {shares}"
        yield (
            f"energy {energy:,.1f} µJ, relative: events at the prices of {profile.energy_table}, "
            f"not a chip's"
        )
        yield from unfilled(profile)
    yield "NPU time is modelled, CPU time measured on this machine."


def unfilled(profile: Profile) -> Iterator[str]:
    """Why multipliers have no data in layers that the array bounds, each reason once."""
    reasons: dict[str, list[OperatorProfile]] = {}
    for row in profile.operators:
        if row.unfilled and row.bound == "MAC array":
            reasons.setdefault(f"{100 * row.filled:.0f} % filled, {row.unfilled}", []).append(row)
    most = sorted(reasons.items(), key=lambda item: -sum(row.cycles for row in item[1]))
    for reason, rows in most[:_REASONS]:
        names = ", ".join(row.name for row in rows[:_NAMES])
        rest = f" and {len(rows) - _NAMES} more" if len(rows) > _NAMES else ""
        yield f"MAC array {reason}: {names}{rest}"


def off_the_npu(profile: Profile) -> dict[str, list[OperatorProfile]]:
    """Operators that aren't on the NPU, by the reason why."""
    reasons: dict[str, list[OperatorProfile]] = {}
    for row in profile.operators:
        if row.reason:
            reasons.setdefault(row.reason, []).append(row)
    return reasons


def bound_shares(profile: Profile) -> list[tuple[str, float]]:
    """What bounds layers, with their share of the NPU's cycles, largest first."""
    cycles: dict[str, int] = {}
    for row in profile.operators:
        if row.cycles:
            cycles[row.bound] = cycles.get(row.bound, 0) + row.cycles
    total = sum(cycles.values())
    return sorted(((b, n / total) for b, n in cycles.items()), key=lambda item: -item[1])
