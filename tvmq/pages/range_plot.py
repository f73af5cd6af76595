"""How large the weights of each channel are, layer by layer, as one SVG.

Channels of one layer that differ a lot are what one step per layer can't hold: a channel whose
largest weight is 2**-7 of the layer's rounds to -1, 0 and 1. Batch norms fold into such weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from targets.whole_files import whole_file
from tvmq.float_model import FloatModel
from tvmq.pages.svg import drawing, printable, svg_file
from tvmq.regions import PRODUCTS, op_of

ROW = 0.22
"""Inches that a layer takes."""
LONGEST = 40
"""Letters of a layer's name."""
LOST = 0.5 / 127
"""Of the layer's largest weight: below this an 8-bit step per layer rounds a whole channel to 0."""
LABELS = {False: "keeps a value", True: "rounds to 0 with one 8-bit step per layer"}
COLOURS = {False: "#2b6cb0", True: "#c53030"}
"""By whether a channel is lost."""


def channel_ranges(model: FloatModel) -> dict[str, torch.Tensor]:
    """By layer, the largest magnitude among the weights of each output channel, float32[K].

    Args:
        model: batch norms are folded into its weights.
    """
    nodes = [node for node in model.graph_module.graph.nodes if op_of(node) in PRODUCTS]
    return {node.name: model.weight_of(node).flatten(1).abs().amax(dim=1) for node in nodes}


def write_range_plot(ranges: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write ``range_plot`` to a file.

    Raises:
        InputError: it can't be written.
    """
    with whole_file(path) as file:
        file.write(range_plot(ranges).encode())


def range_plot(ranges: Mapping[str, torch.Tensor]) -> str:
    """A row per layer, a stroke per channel; x is log2 of its share of the layer's largest.

    Args:
        ranges: as ``channel_ranges`` gives them.
    """
    strokes: dict[bool, list[tuple[float, int]]] = {False: [], True: []}
    with drawing():
        figure = Figure(figsize=(10, 1.5 + ROW * len(ranges)))
        axes = figure.add_subplot()
        for row, largest in enumerate(ranges.values()):
            exponents = torch.log2(largest[largest > 0] / largest.max()).tolist()
            for exponent in exponents:
                strokes[2.0**exponent < LOST].append((exponent, row))
            words = f"2^{min(exponents):.1f}" if exponents else "all 0"
            axes.text(0.15, row, words, va="center", fontsize=8)
        for lost, label in LABELS.items():
            _draw(axes, strokes[lost], COLOURS[lost], label)
        axes.set_title("Largest weight of each output channel, relative to the layer's largest")
        axes.set_yticks(range(len(ranges)), [printable(name, LONGEST) for name in ranges])
        axes.set_ylim(len(ranges) - 0.5, -0.5)
        lowest = min((exponent for both in strokes.values() for exponent, _ in both), default=0.0)
        axes.set_xlim(min(-8.0, lowest) - 0.1, 0.1)
        axes.xaxis.set_major_locator(MultipleLocator(2))
        axes.xaxis.set_major_formatter(lambda exponent, _: f"2^{exponent:g}" if exponent else "1")
        axes.tick_params(top=True, labeltop=True)
        axes.grid(axis="x")
        figure.legend(loc="outside lower center", ncols=2)
        return svg_file(figure)


def _draw(axes: Axes, strokes: list[tuple[float, int]], colour: str, label: str) -> None:
    """All strokes as one line with gaps, which takes a third of the file that markers take."""
    xs = [x for exponent, _ in strokes for x in (exponent, exponent, math.nan)]
    ys = [y for _, row in strokes for y in (row - 0.3, row + 0.3, math.nan)]
    axes.plot(xs, ys, color=colour, alpha=0.6, linewidth=1, label=label)
