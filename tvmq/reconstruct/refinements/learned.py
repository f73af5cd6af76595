"""Soft decisions and activation steps, learned by gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tvmq.reconstruct.refinement import ROUNDING, Refinement

if TYPE_CHECKING:
    from tvmq.reconstruct.unit_work import UnitWork
    from tvmq.settings import Settings


@dataclass(frozen=True)
class Phase:
    """One run of the training loop over a unit.

    Attributes:
        weights: the rounding of weights is learned (AdaRound, arXiv 2004.10568, eq. 21 to 24).
        steps: activation steps are learned (LSQ, arXiv 1902.08153, eq. 3).
        drop: share of activations that stay float, in [0, 1] (QDrop, arXiv 2203.05740); 1: none is
            quantized inside.
        share: of the iterations that were asked for.
        borders: degree of the polynomials by which the borders that there are are moved; None:
            they stay.
    """

    weights: bool
    steps: bool
    drop: float
    share: float = 1.0
    borders: int | None = None

    def iterations(self, asked: int) -> int:
        """How many of those that were asked for."""
        return max(1, round(asked * self.share))


@dataclass(frozen=True)
class Learned(Refinement):
    """Weights and activation steps learned in phases; biases move along with the weights.

    Attributes:
        phases: in order; only what is there after the last one is proposed.
        start: how far from the float weight to the codes that there are decisions start, in [0, 1].
    """

    name: ClassVar[str] = "learned"
    decides: ClassVar[frozenset[str]] = frozenset({ROUNDING})
    phases: tuple[Phase, ...]
    start: float = 0.0

    def iterations(self, settings: Settings) -> int:
        """Of all phases."""
        return sum(phase.iterations(settings.iterations) for phase in self.phases)

    def propose(self, work: UnitWork) -> None:
        """Train the unit and harden it."""
        from tvmq.reconstruct.training import Training, train_unit

        settings, unit = work.settings, work.unit
        for name, weight in unit.weights.items():
            if self.start:
                weight.start_from(weight.codes, self.start, unit.spread(name))
            else:
                weight.start_at_weight(unit.spread(name))
        training = Training(
            settings.iterations,
            settings.learn_batch,
            loss=work.loss,
            correct_biases=settings.bias_correction,
            device=work.device,
        )
        before = 0
        for phase in self.phases:
            if not phase.weights and not unit.own_steps(work.cache.steps):
                continue  # sums that leave the network have no step that could be learned

            def told(done: int, loss: float, before: int = before) -> None:
                work.report(before + done, loss)

            work.iterations += train_unit(
                unit, work.cache, phase, training, work.images, work.generator, told
            )
            before += phase.iterations(settings.iterations)
