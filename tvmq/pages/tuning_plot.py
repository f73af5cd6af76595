"""The fewest cycles that a tuning has found after each trial, as one SVG."""

from __future__ import annotations

from matplotlib.figure import Figure

from tvmq.pages.svg import drawing, svg_file
from tvmq.tune.tuning import Tuned

BEST, RULE = "#2b6cb0", "#c53030"
"""Colours."""


def cycles_over_trials(tuned: Tuned) -> list[int]:
    """Of all programs together, before the first trial and after each.

    Programs are tuned one after the other: until its turn a program has the rule's cycles.
    """
    cycles = [tuned.before]
    for found in tuned.found:
        others = cycles[-1] - found.before
        cycles += [others + best for best in found.best]
        cycles[-1] = others + found.after  # which records may have made fewer
    return cycles


def tuning_plot(tuned: Tuned) -> str:
    """A line that falls, and one where it would be by rule."""
    cycles = cycles_over_trials(tuned)
    with drawing():
        figure = Figure(figsize=(8, 4))
        axes = figure.add_subplot()
        axes.axhline(tuned.before, color=RULE, linewidth=1, linestyle="--", label="by rule")
        axes.step(range(len(cycles)), cycles, where="post", color=BEST, label="best so far")
        axes.set_title("Cycles of the NPU programs")
        axes.set_xlabel("trials")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(axis="y")
        axes.legend()
        return svg_file(figure)
