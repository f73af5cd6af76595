"""The figure of benchmarks/ablation.py: accuracy over cycles, and rows that none is better than."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from tvmq.pages.svg import drawing, svg_file


def draw(points: Mapping[tuple[str, str], tuple[int, float]], path: Path) -> None:
    """Write the figure as SVG; the same numbers give the same file.

    Args:
        points: cycles and top-1 in percent, by case and method.
        path: of the file.
    """
    with drawing():
        path.write_text(svg_file(_figure(points)), encoding="utf-8")


def pareto(points: Mapping[str, tuple[int, float]]) -> list[str]:
    """Those of which none other has fewer cycles and a higher top-1, from the fewest cycles on."""
    best, found = -1.0, []
    for name, (_, top1) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if top1 > best:
            best = top1
            found.append(name)
    return found


def _figure(points: Mapping[tuple[str, str], tuple[int, float]]) -> Figure:
    cases = list(dict.fromkeys(case for case, _ in points))
    figure = Figure(figsize=(9, 4.5 * len(cases)), layout="constrained")
    for place, case in enumerate(cases):
        axes = figure.add_subplot(len(cases), 1, place + 1)
        own = {method: point for (of, method), point in points.items() if of == case}
        front = pareto(own)
        axes.step(*zip(*(own[m] for m in front), strict=True), where="post", color="0.7")
        for method, point in own.items():
            axes.plot(*point, "o" if method in front else "x", label=method)
        axes.set_title(f"{case}; circles: no other has fewer cycles and a higher top-1")
        axes.set_xlabel("cycles of an image on e256")
        axes.set_ylabel("top-1, %")
        axes.grid()
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
