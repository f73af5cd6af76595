"""Exponents of activations once more, over the whole network: by what they do to its outputs.

Units are learned one by one, each for its own output. Behind them, each exponent is tried one up
and one down, in the order of the network, and moved if the network's outputs come closer to those
of the float network on images it was learned from *and* on held-out ones, by more than chance. All
tensors between units are remembered: a trial runs the units whose inputs it changes, some images at
a time, and ends once these say that the outputs move away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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

BATCH_BYTES = 2**25
"""The largest tensor of the images that are run at a time."""

ENOUGH = 32
"""Images, at least, after which a trial may end."""

AWAY = 1.0
"""Standard errors by which the outputs have then moved away, where a trial ends.

What would be accepted in the end has gained by most images: of moves that gain 4 standard errors,
one in a thousand looks so bad after a quarter of the images.
"""


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
            if surely_smaller(torch.cat(found), torch.cat(losses)):
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


def surely_smaller(after: torch.Tensor, before: torch.Tensor, sure: float = SURE) -> bool:
    """Whether distances, [N], of the same images became smaller by more standard errors."""
    gains = before - after
    return len(gains) > 1 and bool(gains.mean() > sure * gains.std() / math.sqrt(len(gains)))


def _movable(
    steps: Mapping[str, LearnedStep], units: Sequence[QuantizedUnit]
) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
    """Values that share a step, with the units that make one; network inputs stay."""
    owner = {name: i for i, unit in enumerate(units) for name in unit.unit.values}
    groups = [names for names in sharing(steps) if all(name in owner for name in names)]
    return sorted((tuple(sorted({owner[name] for name in names})), names) for names in groups)


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
    """The network on some images, as far as a trial changes it, against the float outputs.

    Attributes:
        names: of the outputs.
        exact: the float outputs.
        tensors: all that units read and give, as the network is now.
    """

    def __init__(
        self,
        model: FloatModel,
        units: Sequence[QuantizedUnit],
        steps: dict[str, LearnedStep],
        inputs: Inputs,
    ) -> None:
        self.units, self.count = units, len(inputs[0])
        graph = model.graph_module.graph
        (output,) = graph.find_nodes(op="output")
        self.names = [node.name for node in output.all_input_nodes]
        nodes = [node for node in graph.nodes if node.op not in ("get_attr", "output")]
        largest = max(4 * math.prod(shape_of(node)[1:]) for node in nodes)
        self.batch = max(1, min(ENOUGH, BATCH_BYTES // largest))
        names = [node.name for node in nodes if node.op == "placeholder"]
        with torch.no_grad():
            self.tensors = {n: steps[n](t) for n, t in zip(names, inputs, strict=True)}
            exact = [model.graph_module(*(t[some] for t in inputs)) for some in self._parts()]
        self.exact = [torch.cat(tensors) for tensors in zip(*exact, strict=True)]
        self.accept(range(len(units)))

    def losses(self) -> torch.Tensor:
        """Distances of the outputs from the float ones, [N]."""
        return torch.cat([self._distances({}, some) for some in self._parts()])

    def tried(self, owners: Sequence[int], before: torch.Tensor) -> torch.Tensor | None:
        """The same if these units are other ones than before.

        Args:
            owners: their indices.
            before: distances as the network is now.

        Returns:
            Distances, [N]; None as soon as it is seen that they become larger.
        """
        found = torch.empty(0)
        for some in self._parts():
            changed = self._changed(owners, some)
            found = torch.cat([found, self._distances(changed, some)])
            if len(found) >= ENOUGH and surely_smaller(before[: len(found)], found, AWAY):
                return None
        return found

    def accept(self, owners: Sequence[int]) -> None:
        """Remember what these units, as they are, make of the network."""
        for some in self._parts():
            for name, tensor in self._changed(owners, some).items():
                if name not in self.tensors:
                    images = tensor.dim() == 4
                    order = torch.channels_last if images else torch.contiguous_format
                    shape = (self.count, *tensor.shape[1:])
                    self.tensors[name] = torch.empty(shape, memory_format=order)
                self.tensors[name][some] = tensor

    def _parts(self) -> Iterator[slice]:
        for first in range(0, self.count, self.batch):
            yield slice(first, min(first + self.batch, self.count))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _changed(self, owners: Sequence[int], some: slice) -> dict[str, torch.Tensor]:
        """Tensors between units that aren't what they were, of some images."""
        changed: dict[str, torch.Tensor] = {}
        for index in range(min(owners), len(self.units)):
            inputs = self.units[index].unit.inputs
            if index not in owners and not changed.keys() & set(inputs):
                continue
            read = (changed[n] if n in changed else self.tensors[n][some] for n in inputs)
            made = self.units[index](*read)
            for name, tensor in zip(self.units[index].unit.outputs, made, strict=True):
                known = self.tensors.get(name)
                if known is None or not torch.equal(tensor, known[some]):
                    changed[name] = tensor
        return changed

    def _distances(self, changed: Mapping[str, torch.Tensor], some: slice) -> torch.Tensor:
        distances = [
            distance(changed[name] if name in changed else self.tensors[name][some], exact[some])
            for name, exact in zip(self.names, self.exact, strict=True)
        ]
        return torch.stack(distances).sum(0)
