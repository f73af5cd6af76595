"""The figure of docs/validation.md: our cycles of every layer over those of Vela and ZigZag."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.anchors import VELA, ZIGZAG, Anchor
from tvmq.pages.svg import drawing, svg_file

TICKS = (0.3, 0.5, 0.7, 1, 1.5, 2, 3)


def draw(layers: list[Anchor], cycles: dict[tuple[str, str], int], path: Path) -> None:
    """Write the figure as SVG; the same numbers give the same file."""
    with drawing():
        path.write_text(svg_file(_figure(layers, cycles)), encoding="utf-8")


def _figure(layers: list[Anchor], cycles: dict[tuple[str, str], int]) -> Figure:
    figure = Figure(figsize=(9, 5))
    axes = figure.add_subplot()
    axes.axhspan(0.97, 1.03, color="0.85", label="3 %")
    axes.axhspan(0.90, 1.10, color="0.93", zorder=0, label="10 %")
    axes.axhline(1, color="0.5", linewidth=0.8)
    for tool, setting, marker in (("vela", VELA, "o"), ("zigzag", ZIGZAG, "s")):
        shown = [layer for layer in layers if getattr(layer, tool)]
        ratios = [cycles[layer.name, setting.name] / getattr(layer, tool) for layer in shown]
        inside = [bool(getattr(layer, f"{tool}_percent")) for layer in shown]
        colour = "tab:blue" if tool == "vela" else "tab:orange"
        axes.scatter(
            [layer.name for layer in shown],
            ratios,
            marker=marker,
            s=45,
            edgecolors=colour,
            facecolors=[colour if filled else "none" for filled in inside],
            label=f"{'Vela' if tool == 'vela' else 'ZigZag'} ({setting.name})",
        )
    axes.set_yscale("log")
    axes.set_yticks(TICKS, [f"{ratio:g}" for ratio in TICKS])
    axes.minorticks_off()
    axes.set_ylabel("our cycles / theirs")
    axes.set_title("Filled: layers with an acceptance band. Others have a reason in the table.")
    axes.tick_params(axis="x", rotation=60)
    axes.legend(fontsize="small")
    axes.grid(axis="y")
    return figure
