"""Exponents of activations once more, over the whole network: by what they do to its outputs.

Units are learned one by one, each for its own output. Behind them, each exponent is tried one up
and one down, in the order of the network, and moved if the network's outputs come closer to those
of the float network on images it was learned from *and* on held-out ones, by more than chance. All
tensors between units are remembered: a trial runs the units whose inputs it changes, some images at
a time, and ends once these say that the outputs move away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from tvmq.reconstruct.learned_steps import LearnedStep
from tvmq.reconstruct.network_work import (
    ExponentMove,
    NetworkOutputs,
    NetworkPass,
    NetworkWork,
    images_to_compare,
    surely_smaller,
)
from tvmq.reconstruct.unit_graph import QuantizedUnit, sharing

EXPONENTS = (-1, 1)
SURE = 3.0
"""Standard errors, over images, by which a move must bring the outputs closer.

Of the dozens of moves that a network is tried with, chance alone makes one or two look better by 2.
"""


def search_network(work: NetworkWork) -> NetworkPass:
    """Move the exponents of activations, all powers of two, in place."""
    model, units, steps = work.model, work.units, work.steps
    learned, held_out = images_to_compare(model, work.calibration, units, work.images)
    trials = [NetworkOutputs(model, units, steps, some) for some in (learned, held_out)]
    losses = [trial.losses() for trial in trials]
    before = float(losses[1].mean())
    groups = _movable(steps, units)
    moves = []
    for done, (owners, names) in enumerate(groups):
        step = steps[names[0]]
        start = step.exact
        for exponent in EXPONENTS:
            step.fix(start * 2.0**exponent)
            learned_loss = trials[0].tried(owners, losses[0])
            if learned_loss is None or learned_loss.mean() >= losses[0].mean():
                continue
            held_out_loss = trials[1].tried(owners, losses[1])
            if held_out_loss is None or held_out_loss.mean() >= losses[1].mean():
                continue
            found = [learned_loss, held_out_loss]
            if surely_smaller(torch.cat(found), torch.cat(losses), SURE):
                log = round(math.log2(start))
                moves.append(ExponentMove(names, log, log + exponent, float(found[1].mean())))
                for trial in trials:
                    trial.accept(owners)
                losses = found
                break
        else:
            step.fix(start)
        if work.report is not None:
            words = f"exponents over the network, distance {losses[1].mean():.4g}"
            work.report(done + 1, len(groups), words)
    return NetworkPass("exponents", before, float(losses[1].mean()), tuple(moves))


def _movable(
    steps: Mapping[str, LearnedStep], units: Sequence[QuantizedUnit]
) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
    """Values that share a step, with the units that make one; network inputs stay."""
    owner = {name: i for i, unit in enumerate(units) for name in unit.unit.values}
    groups = [names for names in sharing(steps) if all(name in owner for name in names)]
    return sorted((tuple(sorted({owner[name] for name in names})), names) for names in groups)
