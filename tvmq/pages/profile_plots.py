"""Plots of a profile: a roofline of the layers, what each costs, and what the units did over time.

Every mark of an operator has the operator's number as its group id.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from targets.npu.machine.isa import UNIT_NAMES
from targets.npu.machine.spec import NpuSpec
from targets.npu.price.stalls import Span
from tvmq.pages.svg import INK, drawing, printable, svg_in_page
from tvmq.profile.profile import OperatorProfile, Profile

BOUND_COLOURS = {
    "MAC array": "#3b82c4",
    "DMA": "#d9722e",
    "requantize": "#8f63d2",
    "vector unit": "#c9478f",
    "issue": "#b08d1e",
    "latency": "#7c8794",
    "host": "#2f9e6e",
    "handover": "#b0654f",
}
"""Readable on white and on black, as all colours of data here."""
ENERGY, WORK, OVERHEAD = "#4f9d9d", "#3b82c4", "#94bfe6"
PAYS = ("weights", "decode", "bus", "latency")
"""Classes in which a unit doesn't work but pays for working; in the others it waits for another."""
BINS = 500
"""Columns of the timeline; each shows the share of its cycles."""
NAMES = 80
"""Names that fit side by side under the bars; of more operators every second, third... is named."""
LONGEST = 26
"""Letters of a name under a bar."""
LETTERS = 150
"""Letters of a layer's name that fit across the timeline."""
WIDTH = 10.0


def profile_plots(profile: Profile) -> list[str]:
    """SVG elements; without those that would be empty."""
    figures = (("Roofline", _roofline), ("Time and energy", _costs), ("Timeline", _timeline))
    titles = {str(number): _about(row) for number, row in enumerate(profile.operators)}
    with drawing():
        drawn = [(label, draw(profile)) for label, draw in figures]
        return [svg_in_page(figure, label, titles) for label, figure in drawn if figure is not None]


def _about(row: OperatorProfile) -> str:
    cost = f"{row.cycles:,} cycles, {100 * row.utilization:.1f} %" if row.cycles else ""
    return printable(f"{row.name}: {cost or f'{row.us:,.1f} µs'}, {row.bound}")


def _roofline(profile: Profile) -> Figure | None:
    """MACs per cycle over MACs per DRAM byte, both logarithmic, under the machine's roofs.

    Layers without MACs, or without traffic, have no place in it.
    """
    rows = {n: row for n, row in enumerate(profile.operators) if row.cycles}
    rows = {n: row for n, row in rows.items() if row.macs and row.bytes}
    spec = profile.spec
    if spec is None or not rows:
        return None
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.add_subplot(xscale="log", yscale="log")
    for number, row in rows.items():
        (dot,) = axes.plot(
            row.macs / row.bytes,
            row.macs / row.cycles,
            linestyle="none",
            marker="o",
            markersize=6,
            markeredgewidth=0,
            alpha=0.8,
            color=BOUND_COLOURS.get(row.bound, INK),
        )
        mark(dot, number)
    _roofs(axes, spec, [row.macs / row.bytes for row in rows.values()])
    axes.set_title("Roofline: how close each layer comes to what the machine allows")
    axes.set_ylabel("MACs per cycle")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())  # powers in TeX, where there is a decade or less
    axes.grid()
    _key(axes, "layer bound by", rows.values())
    return figure


def _roofs(axes: Axes, spec: NpuSpec, intensities: Iterable[float]) -> None:
    """What the bus allows, up to what the array does at each width of its operands."""
    bandwidth = spec.dma.bytes_per_cycle
    peaks = {bits: spec.peak_macs_per_cycle * 8 // bits for bits in spec.array.precisions}
    left = min([*intensities, 1.0]) / 2
    right = 4 * max([*intensities, max(peaks.values()) / bandwidth])  # so that every roof is seen
    for bits, peak in peaks.items():
        points = [left, max(left, peak / bandwidth), right]
        heights = [min(peak, x * bandwidth) for x in points]
        axes.plot(points, heights, color=INK, alpha=0.6, linewidth=1.2, zorder=1)
        beside = axes.get_yaxis_transform()  # x in widths of the plot, y in MACs per cycle
        axes.text(1.01, peak, f"{bits} bit: {peak:,}", va="center", fontsize=8, transform=beside)
    axes.set_xlim(left, right)
    axes.set_xlabel(f"MACs per DRAM byte; the slope is {bandwidth:,} bytes per cycle")


def _costs(profile: Profile) -> Figure | None:
    """A bar of time for every operator in its bound's colour, and one of energy below."""
    rows = profile.operators
    if not rows:
        return None
    energy = any(row.energy_pj for row in rows)
    figure = Figure(figsize=(WIDTH, 5.2 if energy else 3.6))
    panels = figure.subplots(2 if energy else 1, sharex=True, squeeze=False)[:, 0]
    colours = [BOUND_COLOURS.get(row.bound, INK) for row in rows]
    _bars(panels[0], [row.us for row in rows], colours)
    panels[0].set_title("Time of one image, operator by operator")
    panels[0].set_ylabel("µs")
    _key(panels[0], "bound by", rows)
    if energy:
        _bars(panels[1], [row.energy_pj / 1e6 for row in rows], [ENERGY] * len(rows))
        panels[1].set_title(f"Energy, relative (prices of {printable(profile.energy_table)})")
        panels[1].set_ylabel("µJ")
    for axes in panels:
        axes.grid(axis="y")
    name_operators(panels[-1], [row.name for row in rows])
    return figure


def name_operators(axes: Axes, names: Sequence[str]) -> None:
    """Write the operators' names under their bars, at 0, 1, 2, ..., as far as they fit."""
    step = math.ceil(len(names) / NAMES)
    shown = [printable(name, LONGEST) for name in names[::step]]
    axes.set_xticks(range(0, len(names), step), shown, rotation=90, fontsize=7)
    axes.set_xlim(-1, len(names))
    if step > 1:
        axes.set_xlabel(f"one of {step} operators is named")


def _bars(axes: Axes, heights: Sequence[float], colours: Sequence[str]) -> None:
    width = 0.8 if len(heights) <= NAMES else 1.0  # gaps between thin bars would only pale them
    bars = axes.bar(range(len(heights)), heights, width, color=colours)
    for number, bar in enumerate(bars):
        mark(bar, number)


def _timeline(profile: Profile) -> Figure | None:
    """The four units over the cycles of all programs: work, overhead, and waiting as nothing."""
    total = profile.total_cycles
    if not total:
        return None
    figure = Figure(figsize=(WIDTH, 3.8))
    axes = figure.add_subplot()
    rows = {row.name: number for number, row in enumerate(profile.operators)}
    begin, count = 0, 0
    for priced in profile.programs.values():
        for layer in priced.layers:
            if layer.cycles:
                first, last = begin + layer.begin, begin + layer.end
                shade = (INK, 0.1 if count % 2 else 0.0)
                band = axes.axvspan(first, last, facecolor=shade, linewidth=0)
                mark(band, rows[layer.name])
                if layer.cycles / total * LETTERS > len(layer.name):
                    middle = (first + last) / 2
                    name = printable(layer.name)
                    axes.text(middle, len(UNIT_NAMES) + 0.05, name, ha="center", fontsize=7)
                count += 1
        begin += priced.timeline.total
    edges = np.linspace(0, total, BINS + 1)
    for unit in range(len(UNIT_NAMES)):
        base = len(UNIT_NAMES) - 1 - unit
        work = base + 0.8 * _shares(profile, unit, ("work",), edges)
        busy = base + 0.8 * _shares(profile, unit, ("work", *PAYS), edges)
        axes.stairs(busy, edges, baseline=base, fill=True, color=OVERHEAD, linewidth=0)
        axes.stairs(work, edges, baseline=base, fill=True, color=WORK, linewidth=0)
        axes.axhline(base, color=INK, linewidth=0.5, alpha=0.6)
    axes.set_title("Units over time: share of the cycles in which each is busy", pad=14)
    axes.set_yticks([n + 0.4 for n in range(len(UNIT_NAMES))], reversed(UNIT_NAMES))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, total)
    axes.set_ylim(0, len(UNIT_NAMES))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(f"cycle, of {total:,} cycles; layers in alternating shades")
    colours = {"works": WORK, f"pays for working ({', '.join(PAYS)})": OVERHEAD}
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower right", ncols=2)
    return figure


def _shares(profile: Profile, unit: int, kinds: tuple[str, ...], edges: np.ndarray) -> np.ndarray:
    """float64[BINS] in [0, 1]: of the cycles between edges, those a unit spends on ``kinds``."""
    spans: list[Span] = []
    begins: list[int] = []
    start = 0
    for priced in profile.programs.values():
        own = [span for span in priced.spans[unit] if span.kind in kinds]
        spans += own
        begins += [start + span.begin for span in own]
        start += priced.timeline.total
    lengths = np.array([span.end - span.begin for span in spans], np.float64)
    # Cycles spent until a time: they grow with slope 1 inside spans, and stand still between them.
    spent = np.concatenate([[0.0], np.cumsum(lengths)])
    times = np.stack([begins, np.array(begins) + lengths], axis=1).ravel()
    until = np.stack([spent[:-1], spent[1:]], axis=1).ravel()
    if not len(times):
        return np.zeros(len(edges) - 1)
    return np.diff(np.interp(edges, times, until)) / np.diff(edges)


def mark(artist: Artist, number: int) -> None:
    """Let an artist stand for an operator.

    Marks lie inside their axes: the layout need not measure thousands of them, nor each name what
    it is clipped to.
    """
    artist.set_gid(str(number))
    artist.set_in_layout(False)
    artist.set_clip_on(False)


def _key(axes: Axes, title: str, rows: Iterable[OperatorProfile]) -> None:
    """Outside on the right; only the bounds that occur."""
    bounds = {row.bound for row in rows}
    shown: Mapping[str, str] = {b: c for b, c in BOUND_COLOURS.items() if b in bounds}
    handles = [Patch(color=colour, label=bound) for bound, colour in shown.items()]
    axes.legend(handles=handles, title=title, loc="lower left", bbox_to_anchor=(1, 0))
