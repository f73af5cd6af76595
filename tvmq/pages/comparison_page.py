"""Two profiles as one page: both artifacts in words, their times side by side, and the table."""

from __future__ import annotations

from matplotlib.figure import Figure

from tvmq.pages.profile_page import render
from tvmq.pages.profile_plots import WIDTH, mark, name_operators
from tvmq.pages.svg import drawing, printable, svg_in_page
from tvmq.profile.compare import Pair, comparison_summary, comparison_table, pairs
from tvmq.profile.profile import Profile

_COLOURS = ("#7c8794", "#3b82c4")


def comparison_page(first: Profile, second: Profile) -> str:
    """The page's text."""
    both = pairs(first, second)
    with drawing():
        plots = [_times(both)] if both else []
    return render(
        "comparison.html",
        profiles=(first, second),
        summary=list(comparison_summary(first, second)),
        plots=plots,
        table=comparison_table(first, second),
    )


def _times(both: list[Pair]) -> str:
    """Two bars for every operator; one where only one of the artifacts has it."""
    figure = Figure(figsize=(WIDTH, 3.8))
    axes = figure.add_subplot()
    for side, colour in enumerate(_COLOURS):
        rows = [(pair.first, pair.second)[side] for pair in both]
        places = [number + 0.4 * side - 0.2 for number in range(len(both))]
        heights = [row.us if row else 0.0 for row in rows]
        for number, bar in enumerate(axes.bar(places, heights, 0.4, color=colour)):
            mark(bar, number)
        axes.bar([0], [0], color=colour, label=f"artifact {side + 1}")
    axes.set_title("Time of one image, operator by operator")
    axes.set_ylabel("µs")
    axes.grid(axis="y")
    axes.legend()
    name_operators(axes, [pair.name for pair in both])
    titles = {str(number): _about(pair) for number, pair in enumerate(both)}
    return svg_in_page(figure, "Times of both", titles)


def _about(pair: Pair) -> str:
    times = [f"{row.us:,.1f} µs" if row else "-" for row in (pair.first, pair.second)]
    return printable(f"{pair.name}: {times[0]}, {times[1]}")
