"""What a method that learns did, as tables of the profile's page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

_UNITS = ("unit", "kept", "nearest", "compensated", "learned", "p of the loss", "iterations", "s")
_MOVES = ("values", "log2 of the step, before", "after", "distance of the outputs")
_COSTS = (
    *("layer", "weights, free step %", "weights, power of two %"),
    *("value made", "value, free step %", "value, power of two %"),
)


def reconstruction_section(facts: Mapping[str, Any]) -> Iterator[str]:
    """HTML of ``Manifest.reconstruction``; nothing for an empty one."""
    if not facts:
        return
    yield "<h2>Reconstruction</h2><p>Losses on calibration images that were held out.</p>"
    yield from _table(
        _UNITS,
        [
            [
                *(unit["unit"], unit["kept"], f"{unit['nearest_loss']:.4g}"),
                "" if unit["compensated_loss"] is None else f"{unit['compensated_loss']:.4g}",
                *(f"{unit['learned_loss']:.4g}", unit["power"], unit["iterations"]),
                f"{unit['seconds']:.1f}",
            ]
            for unit in facts["units"]
        ],
    )
    network = facts["network"]
    if network is not None:
        yield (
            f"<p>Pass over the network: distance of the outputs from the float ones "
            f"{network['loss_before']:.4g} -&gt; {network['loss_after']:.4g}.</p>"
        )
        if network["moves"]:
            moves = [
                [", ".join(m["values"]), m["before"], m["after"], f"{m['loss']:.4g}"]
                for m in network["moves"]
            ]
            yield from _table(_MOVES, moves)
        else:
            yield "<p>No exponent was moved.</p>"
    if facts["power_of_two_cost"]:
        yield (
            "<h2>Cost of powers of two</h2><p>Squared error of rounding to nearest, in percent of "
            "the squares, with the best free step and with the one that is used.</p>"
        )
        yield from _table(_COSTS, [_cost(cost) for cost in facts["power_of_two_cost"]])


def _cost(cost: Mapping[str, Any]) -> list[str]:
    weights = [f"{100 * cost[name]:.3g}" for name in ("weights_free", "weights_used")]
    values = [f"{100 * cost[name]:.3g}" for name in ("output_free", "output_used")]
    return [cost["layer"], *weights, cost["output"], *(values if cost["output"] else ["", ""])]


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield "<table><thead><tr>"
    yield "".join(f"<th>{escape(name)}</th>" for name in headings)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>"
    yield "</tbody></table>"
