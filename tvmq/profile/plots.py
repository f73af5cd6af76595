"""Plots of a profile as SVG text: a roofline of the layers, and what the units did over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from html import escape

from targets.npu.machine.isa import UNIT_NAMES
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.layer_costs import PricedProgram
from tvmq.profile.profile import OperatorProfile, Profile

BOUND_COLOURS = {
    "MAC array": "#2b6cb0",
    "DMA": "#c05621",
    "requantize": "#6b46c1",
    "vector unit": "#97266d",
    "issue": "#975a16",
    "latency": "#4a5568",
}
WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 20, 45
BINS = 500
"""Columns of the timeline; each shows the share of its cycles."""
ROW = 44
MARGIN = 34


def roofline(profile: Profile) -> str:
    """MACs per cycle over MACs per DRAM byte, both logarithmic, under the machine's roofs.

    Layers without MACs, or without traffic, have no place in it.
    """
    spec = profile.spec
    rows = [row for row in profile.operators if row.device == "npu" and row.macs and row.bytes]
    if spec is None or not rows:
        return ""
    xs = [row.macs / row.bytes for row in rows]
    ys = [row.macs / row.cycles for row in rows]
    peak = spec.peak_macs_per_cycle * max(8 // bits for bits in spec.array.precisions)
    beyond = 4 * peak / spec.dma.bytes_per_cycle  # so that every roof is seen
    x_axis = _Axis([*xs, beyond], LEFT, WIDTH - RIGHT)
    y_axis = _Axis([*ys, peak], HEIGHT - BOTTOM, TOP)
    parts = [*_grid(x_axis, y_axis), *_roofs(spec, x_axis, y_axis)]
    parts += (_dot(row, x_axis(x), y_axis(y)) for row, x, y in zip(rows, xs, ys, strict=True))
    return _svg(WIDTH, HEIGHT, parts)


def timeline(profile: Profile) -> str:
    """The four units over the cycles of all programs: work, overhead, and waiting as nothing."""
    total = profile.total_cycles
    if not total:
        return ""
    scale = (WIDTH - LEFT - RIGHT) / total
    height = MARGIN + ROW * len(UNIT_NAMES) + 20
    parts: list[str] = []
    begin = 0
    for priced in profile.programs.values():
        parts += _layer_bands(priced, begin, scale, height)
        begin += priced.timeline.total
    for unit, name in enumerate(UNIT_NAMES):
        base = MARGIN + ROW * (unit + 1) - 6
        parts.append(_text(LEFT - 8, base - 10, name, "end"))
        work, overhead = _shares(profile, unit)
        stacked = [w + o for w, o in zip(work, overhead, strict=True)]
        parts.append(_area(stacked, base, "overhead"))
        parts.append(_area(work, base, "work"))
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    parts.append(_text(LEFT, height - 4, "0", "start"))
    parts.append(_text(WIDTH - RIGHT, height - 4, f"{total:,} cycles", "end"))
    return _svg(WIDTH, height, parts)


class _Axis:
    """A logarithmic axis from pixel ``begin`` to ``end`` that shows all values."""

    def __init__(self, values: list[float], begin: float, end: float) -> None:
        self.low = math.floor(math.log10(min(values)))
        self.high = math.ceil(math.log10(max(values)) + 0.05)
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def decades(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def _grid(x_axis: _Axis, y_axis: _Axis) -> Iterator[str]:
    for value in x_axis.decades():
        x = x_axis(value)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="grid"/>'
        yield _text(x, HEIGHT - BOTTOM + 16, f"{value:g}", "middle")
    for value in y_axis.decades():
        y = y_axis(value)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        yield _text(LEFT - 8, y + 4, f"{value:g}", "end")
    yield _text((LEFT + WIDTH) / 2, HEIGHT - 8, "MACs per DRAM byte", "middle")
    yield _text(LEFT + 4, TOP - 6, "MACs per cycle", "start")


def _roofs(spec: NpuSpec, x_axis: _Axis, y_axis: _Axis) -> Iterator[str]:
    bandwidth = spec.dma.bytes_per_cycle
    left, right = 10.0**x_axis.low, 10.0**x_axis.high
    for bits in spec.array.precisions:
        peak = spec.peak_macs_per_cycle * 8 // bits
        knee = min(max(peak / bandwidth, left), right)
        start = max(left, 10.0**y_axis.low / bandwidth)
        points = [(start, min(peak, start * bandwidth)), (knee, min(peak, knee * bandwidth))]
        points.append((right, min(peak, right * bandwidth)))
        path = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in points)
        yield f'<polyline points="{path}" class="roof"/>'
        if right * bandwidth > peak:
            yield _text(WIDTH - RIGHT - 4, y_axis(peak) - 5, f"{bits} bit: {peak} MACs", "end")


def _dot(row: OperatorProfile, x: float, y: float) -> str:
    colour = BOUND_COLOURS.get(row.bound, "#000")
    about = f"{row.name}: {row.cycles:,} cycles, {100 * row.utilization:.1f} %, {row.bound}"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}" data-layer="{escape(row.name)}">'
        f"<title>{escape(about)}</title></circle>"
    )


def _layer_bands(priced: PricedProgram, begin: int, scale: float, height: float) -> Iterator[str]:
    """Windows of layers behind the units, every second one shaded."""
    for number, layer in enumerate(cost for cost in priced.layers if cost.cycles):
        x = LEFT + (begin + layer.begin) * scale
        shade = "band odd" if number % 2 else "band"
        about = f"{layer.name}: {layer.cycles:,} cycles, {layer.bound}"
        yield (
            f'<rect x="{x:.2f}" y="10" width="{layer.cycles * scale:.2f}" height="{height - 30}" '
            f'class="{shade}" data-layer="{escape(layer.name)}">'
            f"<title>{escape(about)}</title></rect>"
        )


def _shares(profile: Profile, unit: int) -> tuple[list[float], list[float]]:
    """Share of every column's cycles in which a unit works, and in which it pays for working."""
    size = profile.total_cycles / BINS
    work, overhead = [0.0] * BINS, [0.0] * BINS
    start = 0
    for priced in profile.programs.values():
        for span in priced.spans[unit]:
            if span.kind == "work":
                _spread(work, start + span.begin, start + span.end, size)
            elif span.kind in ("weights", "decode", "bus", "latency"):
                _spread(overhead, start + span.begin, start + span.end, size)
        start += priced.timeline.total
    return work, overhead


def _spread(bins: list[float], begin: int, end: int, size: float) -> None:
    first = int(begin / size)
    for column in range(first, min(BINS, math.ceil(end / size))):
        inside = min(end, (column + 1) * size) - max(begin, column * size)
        bins[column] += max(0.0, inside) / size


def _area(shares: list[float], base: float, name: str) -> str:
    step = (WIDTH - LEFT - RIGHT) / BINS
    points = [f"{LEFT},{base}"]
    for column, share in enumerate(shares):
        y = base - min(1.0, share) * (ROW - 12)
        x = LEFT + column * step
        points += [f"{x:.1f},{y:.1f}", f"{x + step:.1f},{y:.1f}"]
    points.append(f"{WIDTH - RIGHT},{base}")
    return f'<polygon points="{" ".join(points)}" class="{name}"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(width: float, height: float, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {width} {height}" role="img">\n{body}\n</svg>'
