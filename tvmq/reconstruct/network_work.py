"""A whole network while it is refined, and how far its outputs are from those of the float one.

Tensors between units are remembered: what changes some units runs only those whose inputs change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import kl_div

from tvmq.calibrate.calibrate import Calibration, Inputs
from tvmq.float_model import FloatModel
from tvmq.reconstruct.learned_steps import LearnedStep
from tvmq.reconstruct.training import CPU
from tvmq.reconstruct.unit_graph import QuantizedUnit
from tvmq.reconstruct.units import Unit
from tvmq.regions import shape_of
from tvmq.settings import Settings

MAX_IMAGES = 1024
"""Images for each of the two losses, at most."""

MAX_BYTES = 2**29
"""All tensors between units, of the images of one loss; fewer images where it would be more."""

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
    """What a refinement of the whole network did.

    Attributes:
        name: of the refinement.
        loss_before: distance of the network's outputs from the float ones on held-out images.
        loss_after: the same, at its end.
        moves: exponents that it moved, in the order in which that was done.
        learned: what it learned; None if it learns nothing.
    """

    name: str
    loss_before: float
    loss_after: float
    moves: tuple[ExponentMove, ...] = ()
    learned: TogetherFacts | None = None


@dataclass(frozen=True)
class TogetherFacts:
    """What learning all units together did.

    Attributes:
        accepted: whether it was kept; otherwise everything is as it was before.
        loss: distance of the network's outputs on held-out images with what was learned.
        iterations: of the optimizer.
        codes: of weights that changed.
        of: weights in all.
        seconds: for all of it.
    """

    accepted: bool
    loss: float
    iterations: int
    codes: int
    of: int
    seconds: float


@dataclass(frozen=True)
class NetworkWork:
    """A whole network while it is refined.

    Attributes:
        model: the float network.
        calibration: with images.
        units: all of the network, in order, as they were decided; changed in place.
        steps: of all values (``network_steps``); changed in place.
        images: the first of the calibration may be learned from, the others are held out.
        settings: of the plan that is learned from.
        generator: every random draw is from it.
        report: told what is done, what there is in all and a few words.
        device: to train on; all else is done on the CPU.
        saved: where training was when it was interrupted; None if it starts.
        save: told where it is, now and then, so that it may go on from there.
    """

    model: FloatModel
    calibration: Calibration
    units: Sequence[QuantizedUnit]
    steps: dict[str, LearnedStep]
    images: int
    settings: Settings
    generator: torch.Generator
    report: Callable[[int, int, str], None] | None = None
    device: torch.device = CPU
    saved: Mapping[str, Any] | None = None
    save: Callable[[Mapping[str, Any]], None] | None = None


def distance(output: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """How far an output is from the float one, for each image, [N].

    A matrix [N, C] with C > 1 is taken for logits: the Kullback-Leibler divergence of the class
    probabilities, since a squared error would weigh what no decision depends on. Anything else: the
    mean squared error.
    """
    if is_logits(exact):
        logs = (output.log_softmax(-1), exact.log_softmax(-1))
        # Never below 0 but for float32: logits that are equal differ by rounding.
        return kl_div(*logs, reduction="none", log_target=True).sum(1).clamp_min(0)
    return (output - exact).square().flatten(1).mean(1)


def is_logits(output: torch.Tensor) -> bool:
    """Whether an output is taken for logits: a matrix [N, C] with C > 1."""
    return output.dim() == 2 and output.shape[1] > 1


def surely_smaller(after: torch.Tensor, before: torch.Tensor, sure: float) -> bool:
    """Whether distances, [N], of the same images became smaller, and surely so of an image's share.

    The mean must fall; what must be above 0 by so many standard errors is the mean of
    ``(before - after) / (before + after)``. That is within -1 and 1, while a few images on which
    the network is wrong are ten times as far away as others, and would decide by themselves.
    """
    if len(before) < 2 or after.mean() >= before.mean():
        return False
    gains = (before - after) / (before + after).clamp_min(torch.finfo(before.dtype).tiny)
    return bool(gains.mean() > sure * gains.std() / math.sqrt(len(gains)))


def most_to_compare(model: FloatModel, units: Sequence[Unit]) -> int:
    """Images for one loss, as memory allows; 1 at least."""
    between = {name for unit in units for name in unit.outputs}
    nodes = [node for node in model.graph_module.graph.nodes if node.name in between]
    bytes_each = 4 * sum(math.prod(shape_of(node)[1:]) for node in nodes)
    return max(1, min(MAX_IMAGES, MAX_BYTES // bytes_each))


def images_to_compare(
    model: FloatModel, calibration: Calibration, units: Sequence[QuantizedUnit], images: int
) -> tuple[Inputs, Inputs]:
    """Of those learned from and of the others, as many as memory allows."""
    most = most_to_compare(model, [unit.unit for unit in units])
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


class NetworkOutputs:
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
        self.names = [node.name for node in output.args[0]]
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
