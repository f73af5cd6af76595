"""Exponents of activations once more, over the whole network: by what they do to its outputs.

Units are learned one by one, each for its own output. Behind them, each exponent is tried one up
and one down, in the order of the network, and moved if the network's outputs come closer to those
of the float network on images it was learned from *and* on held-out ones, by more than chance. A
trial runs the network from the unit that makes the value on; what comes before is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import kl_div

from tvmq.calibrate.calibrate import Calibration, Inputs
from tvmq.float_model import FloatModel
from tvmq.reconstruct.learned_steps import LearnedStep
from tvmq.reconstruct.unit_graph import QuantizedUnit, sharing
from tvmq.regions import shape_of

EXPONENTS = (-1, 1)
MAX_IMAGES = 1024
"""Images for each of the two losses, at most."""

MAX_BYTES = 2**29
"""All tensors between units, of the images of one loss; fewer images where it would be more."""

SURE = 3.0
"""Standard errors, over images, by which a move must bring the outputs closer.

Of the dozens of moves that a network is tried with, chance alone makes one or two look better by 2.
"""

BATCH = 64


@dataclass(frozen=True)
class ExponentMove:
    """An exponent that the pass over the network moved.

    Attributes:
        values: whose step it is.
        before: log2 of the step.
        after: log2 of the new step.
        loss: distance of the network's outputs on held-out images, after the move.
    """

    values: tuple[str, ...]
    before: int
    after: int
    loss: float


@dataclass(frozen=True)
class NetworkPass:
    """What the pass over the network did.

    Attributes:
        name: of the refinement.
        loss_before: distance of the network's outputs from the float ones on held-out images.
        loss_after: the same, at its end.
        moves: in the order in which they were made.
    """

    name: str
    loss_before: float
    loss_after: float
    moves: tuple[ExponentMove, ...]


@dataclass(frozen=True)
class NetworkWork:
    """A whole network while it is refined.

    Attributes:
        model: the float network.
        calibration: with images.
        units: all of the network, in order, as they were decided; changed in place.
        steps: of all values (``network_steps``); changed in place.
        images: the first of the calibration may be learned from, the others are held out.
        report: told what is done, what there is in all and a few words.
    """

    model: FloatModel
    calibration: Calibration
    units: Sequence[QuantizedUnit]
    steps: dict[str, LearnedStep]
    images: int
    report: Callable[[int, int, str], None] | None = None


def search_network(work: NetworkWork) -> NetworkPass:
    """Move the exponents of activations, all powers of two, in place."""
    model, units, steps = work.model, work.units, work.steps
    learned, held_out = _images(model, work.calibration, units, work.images)
    trials = _Outputs(model, units, steps, learned), _Outputs(model, units, steps, held_out)
    losses = [trial.losses(0) for trial in trials]
    before = float(losses[1].mean())
    groups = _movable(steps, units)
    moves = []
    for done, (first, names) in enumerate(groups):
        step = steps[names[0]]
        start = step.exact
        for trial in trials:
            trial.reach(first)
        for exponent in EXPONENTS:
            step.fix(start * 2.0**exponent)
            found = [trials[0].losses(first)]
            if found[0].mean() >= losses[0].mean():
                continue
            found.append(trials[1].losses(first))
            closer = found[1].mean() < losses[1].mean()
            if closer and surely_smaller(torch.cat(found), torch.cat(losses)):
                log = round(math.log2(start))
                moves.append(ExponentMove(names, log, log + exponent, float(found[1].mean())))
                losses = found
                break
        else:
            step.fix(start)
        if work.report is not None:
            words = f"exponents over the network, distance {losses[1].mean():.4g}"
            work.report(done + 1, len(groups), words)
    return NetworkPass("exponents", before, float(losses[1].mean()), tuple(moves))


def distance(output: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """How far an output is from the float one, for each image, [N].

    A matrix [N, C] with C > 1 is taken for logits: the Kullback-Leibler divergence of the class
    probabilities, since a squared error would weigh what no decision depends on. Anything else: the
    mean squared error.
    """
    if exact.dim() == 2 and exact.shape[1] > 1:
        logs = (output.log_softmax(-1), exact.log_softmax(-1))
        # Never below 0 but for float32: logits that are equal differ by rounding.
        return kl_div(*logs, reduction="none", log_target=True).sum(1).clamp_min(0)
    return (output - exact).square().flatten(1).mean(1)


def surely_smaller(after: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether distances, [N], of the same images became smaller by more than chance."""
    gains = before - after
    return len(gains) > 1 and bool(gains.mean() > SURE * gains.std() / math.sqrt(len(gains)))


def _movable(
    steps: Mapping[str, LearnedStep], units: Sequence[QuantizedUnit]
) -> list[tuple[int, tuple[str, ...]]]:
    """Values that share a step, with the first unit that makes one; network inputs stay."""
    owner = {name: i for i, unit in enumerate(units) for name in unit.unit.values}
    groups = [names for names in sharing(steps) if all(name in owner for name in names)]
    return sorted((min(owner[name] for name in names), names) for names in groups)


def _images(
    model: FloatModel, calibration: Calibration, units: Sequence[QuantizedUnit], images: int
) -> tuple[Inputs, Inputs]:
    """Of those learned from and of the others, as many as memory allows."""
    between = {name for unit in units for name in unit.unit.outputs}
    nodes = [node for node in model.graph_module.graph.nodes if node.name in between]
    bytes_each = 4 * sum(math.prod(shape_of(node)[1:]) for node in nodes)
    most = max(1, min(MAX_IMAGES, MAX_BYTES // bytes_each))
    parts: tuple[list[Inputs], list[Inputs]] = [], []
    kept, seen = [0, 0], 0
    for batch in calibration.batches():
        count = len(batch[0])
        cuts = max(0, min(images - seen, count))
        for side, part in enumerate((slice(0, cuts), slice(cuts, count))):
            taken = tuple(tensor[part][: most - kept[side]] for tensor in batch)
            kept[side] += len(taken[0])
            parts[side].append(taken)
        seen += count
    learned, held_out = (
        tuple(torch.cat(tensors) for tensors in zip(*some, strict=True)) for some in parts
    )
    return learned, held_out


class _Outputs:
    """The network on some images: run from any unit on, against the float outputs."""

    def __init__(
        self,
        model: FloatModel,
        units: Sequence[QuantizedUnit],
        steps: dict[str, LearnedStep],
        inputs: Inputs,
    ) -> None:
        self.units, self.reached = units, 0
        graph = model.graph_module.graph
        (output,) = graph.find_nodes(op="output")
        self.names = [node.name for node in output.all_input_nodes]
        names = [node.name for node in graph.nodes if node.op == "placeholder"]
        with torch.no_grad():
            chunks = [tuple(t[i : i + BATCH] for t in inputs) for i in self._starts(inputs)]
            exact = [model.graph_module(*chunk) for chunk in chunks]
            self.exact = [torch.cat(tensors) for tensors in zip(*exact, strict=True)]
            self.prefix = {n: steps[n](t) for n, t in zip(names, inputs, strict=True)}

    def reach(self, index: int) -> None:
        """Remember the tensors that units from ``index`` on read; those before stay as they are."""
        while self.reached < index:
            self._run(self.reached, self.prefix)
            self.reached += 1
            needed = {name for unit in self.units[self.reached :] for name in unit.unit.inputs}
            needed |= set(self.names)
            self.prefix = {n: t for n, t in self.prefix.items() if n in needed}

    def losses(self, first: int) -> torch.Tensor:
        """Distances of the outputs from the float ones, [N], run from a unit that was reached."""
        self.reach(first)
        tensors = dict(self.prefix)
        for index in range(first, len(self.units)):
            self._run(index, tensors)
        distances = [
            distance(tensors[name], exact)
            for name, exact in zip(self.names, self.exact, strict=True)
        ]
        return torch.stack(distances).sum(0)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _run(self, index: int, tensors: dict[str, torch.Tensor]) -> None:
        """Add what a unit makes."""
        unit = self.units[index]
        inputs = tuple(tensors[name] for name in unit.unit.inputs)
        parts = [unit(*(t[i : i + BATCH] for t in inputs)) for i in self._starts(inputs)]
        for name, made in zip(unit.unit.outputs, zip(*parts, strict=True), strict=True):
            tensors[name] = torch.cat(made)

    @staticmethod
    def _starts(inputs: Inputs) -> range:
        return range(0, len(inputs[0]), BATCH)
