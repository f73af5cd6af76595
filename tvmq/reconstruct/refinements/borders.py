"""Borders of activations, for the weights and steps that there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tvmq.reconstruct.refinement import Refinement
from tvmq.reconstruct.refinements.learned import Phase

if TYPE_CHECKING:
    from tvmq.reconstruct.unit_work import UnitWork
    from tvmq.settings import Settings

BORDERS = "borders of activations"
LEARNED = Phase(weights=False, steps=False, drop=0.0, share=0.25, borders=2)


@dataclass(frozen=True)
class Borders(Refinement):
    """The best of AQuant's closed form and of measured borders, and these learned further.

    Attributes:
        phase: in which they are learned, and biases beside them.
    """

    name: ClassVar[str] = "borders"
    decides: ClassVar[frozenset[str]] = frozenset({BORDERS})
    phase: Phase = LEARNED

    def iterations(self, settings: Settings) -> int:
        """Of the phase."""
        return self.phase.iterations(settings.iterations)

    def propose(self, work: UnitWork) -> None:
        """Choose borders of the values that may have some, each step kept if the unit gains by it.

        Biases are corrected before and after, so that what borders are kept for is not what a bias
        would do. Whether the unit gains is seen on the images that it learns from; where no borders
        do better, it stays as it was.
        """
        from tvmq.reconstruct.border_search import search_borders, values_with_borders
        from tvmq.reconstruct.training import Training, train_unit
        from tvmq.reconstruct.unit_state import apply_state, state_of

        before = state_of(work.unit)
        if not values_with_borders(work.unit, work.cache):
            return
        work.correct_biases()
        least = work.learned_loss()
        found = search_borders(work)
        if not found < least:
            apply_state(work.unit, before)
            return
        kept = state_of(work.unit)
        settings = work.settings
        training = Training(
            settings.iterations,
            settings.learn_batch,
            loss=work.loss,
            correct_biases=settings.bias_correction,
        )
        work.iterations += train_unit(
            work.unit, work.cache, self.phase, training, work.images, work.generator, work.report
        )
        if not work.learned_loss() < found:
            apply_state(work.unit, kept)
