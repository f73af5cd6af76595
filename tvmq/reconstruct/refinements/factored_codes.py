"""Factors of products and codes that suit each other, as a start for what is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tvmq.reconstruct.refinement import Refinement

if TYPE_CHECKING:
    from tvmq.reconstruct.unit_work import UnitWork

ROUNDS = 3


@dataclass(frozen=True)
class FactoredCodes(Refinement):
    """Factors for the codes that there are and codes for these factors, in turn, layer by layer."""

    name: ClassVar[str] = "factored codes"

    def propose(self, work: UnitWork) -> None:
        """Choose compensating codes of all layers, then factors of those that can have some.

        What brings the unit closer to the float one stays, mean errors taken away, on the images
        that it learns from. Where the factors don't do so on the held-out images, all are left
        out, and weights are learned without any.
        """
        from tvmq.reconstruct.compensation import MAX_IMAGES, compensate_layer
        from tvmq.reconstruct.product_solve import best_factors
        from tvmq.reconstruct.unit_state import apply_state, state_of
        from tvmq.reconstruct.unit_work import unit_loss

        unit, rows = work.unit, slice(0, min(work.images, MAX_IMAGES))
        exponents = (0, -1, 1) if work.settings.pot else (0,)
        kept, least = state_of(unit), unit_loss(unit, work.cache, work.loss, rows)

        def compensate(name: str) -> None:
            nonlocal kept, least
            compensate_layer(unit, work.cache, name, work.images, exponents)
            work.correct_biases()
            found = unit_loss(unit, work.cache, work.loss, rows)
            if found < least:
                kept, least = state_of(unit), found

        for name in unit.weights:
            compensate(name)
            apply_state(unit, kept)
        without, before = kept, work.held_out_loss()
        for name, scale in unit.products.items():
            for _ in range(ROUNDS):
                scale.use(best_factors(unit, work.exact, work.cache, name, rows.stop))
                compensate(name)
            apply_state(unit, kept)
        if not work.held_out_loss() < before:
            apply_state(unit, without)
