"""Steps of what concatenations join: which values share one, which are requantized where joined.

A concatenation has one step, the best for all that it joins. A value that nothing else reads is
written in it from the start, which costs nothing. One that others read as well shares it unless it
would be much too coarse for them: then it keeps a step of its own, and the copy that is joined is
requantized by a table of 256 codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

from tvmq.calibrate.observers import Codes, Histogram, choose_codes
from tvmq.plan.masked_scores import scores_of, without_hidden
from tvmq.plan.plan import ValuePlan
from tvmq.regions import Regions
from tvmq.settings import Settings

MUCH_TOO_COARSE = 4
"""Times the step that a value would have alone: two bits are lost. A table for less is too dear."""

Join = tuple[str, str]
"""A value and the concatenation that joins it."""


def same_codes(a: ValuePlan, b: ValuePlan) -> bool:
    """Whether a code of one stands for the same number in the other, so that both can be joined."""
    return (a.step, a.zero_point, a.signed, a.bits) == (b.step, b.zero_point, b.signed, b.bits)


def tied_values(regions: Regions, values: Mapping[str, ValuePlan]) -> tuple[tuple[str, ...], ...]:
    """All values in groups: those that concatenations join as they are; most are alone."""
    shared = [
        (name, join) for name, join in _joins(regions) if same_codes(values[name], values[join])
    ]
    return _groups(regions, shared)


def choose_joined(
    regions: Regions,
    histograms: Mapping[str, Histogram],
    bits: Mapping[str, int],
    settings: Settings,
) -> dict[str, tuple[int, Codes]]:
    """Bits, step, zero point and type of every value.

    Args:
        regions: which values are joined.
        histograms: of all values.
        bits: of all values; those that share a step take the most of them.
        settings: how a range is chosen.
    """
    known: dict[tuple[str, ...], tuple[int, Codes]] = {}
    matrices = [layer for layer in regions.layers.values() if layer.kind == "matmul"]
    centred = {name for layer in matrices for name in layer.inputs}
    weights = {layer.inputs[1] for layer in matrices}  # the array multiplies by int8
    scores = scores_of(regions, histograms)

    def best(names: tuple[str, ...]) -> tuple[int, Codes]:
        if names not in known:
            most = max(bits[name] for name in names)
            histogram = reduce(Histogram.merge, (histograms[name] for name in names))
            if scores.issuperset(names):
                histogram = without_hidden(histogram)
            codes = choose_codes(histogram, most, settings)
            if codes.zero_point and centred.intersection(names):
                codes = choose_codes(histogram, most, settings, symmetric=True)
                why = f"{codes.reason}; zero point 0, since matrices are multiplied as raw codes"
                codes = replace(codes, reason=why)
            if not codes.signed and weights.intersection(names):
                codes = choose_codes(histogram, most, settings, signed=True)
                why = f"{codes.reason}; signed, since it is multiplied by as weights are"
                codes = replace(codes, reason=why)
            known[names] = most, codes
        return known[names]

    joins = _joins(regions)
    while True:
        groups = _groups(regions, joins)
        group_of = {name: names for names in groups for name in names}
        coarse = [
            join
            for join in joins
            if regions.joined_only(join[0]) != join[1]
            and best(group_of[join[1]])[1].step >= MUCH_TOO_COARSE * best((join[0],))[1].step
        ]
        if not coarse:
            break
        joins.remove(coarse[0])
    return {name: _named(best(group_of[name]), group_of[name]) for name in regions.values}


def _named(chosen: tuple[int, Codes], names: tuple[str, ...]) -> tuple[int, Codes]:
    bits, codes = chosen
    if len(names) == 1:
        return chosen
    reason = f"{codes.reason}, one step for {', '.join(names)}"
    return bits, Codes(codes.step, codes.zero_point, codes.signed, reason)


def _joins(regions: Regions) -> list[Join]:
    return [(name, value.name) for value in regions.values.values() for name in value.joins]


def _groups(regions: Regions, joins: Sequence[Join]) -> tuple[tuple[str, ...], ...]:
    """Values that these concatenations connect, in the order of the graph."""
    group = {name: [name] for name in regions.values}
    for a, b in joins:
        if group[a] is not group[b]:
            group[a] += group[b]
            for name in group[b]:
                group[name] = group[a]
    order = {name: i for i, name in enumerate(regions.values)}
    distinct = {id(names): names for names in group.values()}
    return tuple(tuple(sorted(names, key=order.__getitem__)) for names in distinct.values())
