"""How large the weights of each channel are, layer by layer, as one SVG.

Channels of one layer that differ a lot are what one step per layer can't hold: a channel whose
largest weight is 2**-7 of the layer's rounds to -1, 0 and 1. Batch norms fold into such weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import torch

from targets.errors import InputError
from tvmq.float_model import FloatModel
from tvmq.regions import PRODUCTS, op_of

LEFT, RIGHT, TOP, ROW, WIDTH = 150, 70, 44, 20, 820
LOST = 0.5 / 127
"""Of the layer's largest weight: below this an 8-bit step per layer rounds a whole channel to 0."""
INK, DOT, DEAD, GRID = "#1a202c", "#2b6cb0", "#c53030", "#e2e8f0"


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
    try:
        path.write_text(range_plot(ranges), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}. Give a file that can be written.") from None


def range_plot(ranges: Mapping[str, torch.Tensor]) -> str:
    """A row per layer, a dot per channel, over the logarithm of its share of the layer's largest.

    Args:
        ranges: as ``channel_ranges`` gives them.
    """
    lowest = min([-8.0, *(float(_exponents(r).min()) for r in ranges.values() if r.any())])
    scale = (WIDTH - LEFT - RIGHT) / -lowest
    height = TOP + ROW * len(ranges) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(LEFT, 14, "largest weight of each output channel, relative to the layer's; red: "),
        _text(LEFT, 28, "rounds to 0 with one 8-bit step per layer", colour=DEAD),
        *_grid(lowest, scale, height),
    ]
    for number, (name, largest) in enumerate(ranges.items()):
        parts += _row(name, largest, TOP + ROW * number + ROW / 2 + 4, scale)
    return "\n".join([*parts, "</svg>\n"])


def _exponents(largest: torch.Tensor) -> torch.Tensor:
    """float32[channels that are not all zero]: log2 of their share of the layer's largest."""
    alive = largest[largest > 0]
    return torch.log2(alive / alive.max())


def _grid(lowest: float, scale: float, height: float) -> Iterator[str]:
    for exponent in range(0, int(lowest) - 1, -2):
        x = WIDTH - RIGHT + exponent * scale
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - 10}" stroke="{GRID}"/>'
        yield _text(x, TOP - 4, f"2^{exponent}" if exponent else "1", anchor="middle")


def _row(name: str, largest: torch.Tensor, y: float, scale: float) -> Iterator[str]:
    yield _text(LEFT - 8, y + 4, name, anchor="end")
    if not largest.any():
        yield _text(WIDTH - RIGHT + 8, y + 4, "all 0")
        return
    exponents = _exponents(largest)
    for exponent in exponents.tolist():
        colour = DEAD if 2.0**exponent < LOST else DOT
        x = WIDTH - RIGHT + exponent * scale
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity="0.45"/>'
    yield _text(WIDTH - RIGHT + 8, y + 4, f"2^{float(exponents.min()):.1f}")


def _text(x: float, y: float, words: str, anchor: str = "start", colour: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(words)}</text>"
    )
