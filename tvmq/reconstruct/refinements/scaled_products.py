"""Factors of products by groups of input channels, for the codes that there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tvmq.reconstruct.refinement import Refinement

if TYPE_CHECKING:
    from tvmq.reconstruct.unit_work import UnitWork


@dataclass(frozen=True)
class ScaledProducts(Refinement):
    """The factors that bring each layer closest to the float one, where the unit gains by them."""

    name: ClassVar[str] = "scaled products"
    decides: ClassVar[frozenset[str]] = frozenset({"factors of products"})

    def propose(self, work: UnitWork) -> None:
        """Choose the factors of all layers that can have some, one after the other.

        A layer's factors stay if the unit is closer to the float one by them, mean errors taken
        away, on the images that it learns from.
        """
        from tvmq.reconstruct.compensation import MAX_IMAGES
        from tvmq.reconstruct.product_solve import best_factors
        from tvmq.reconstruct.unit_state import apply_state, state_of
        from tvmq.reconstruct.unit_work import unit_loss

        rows = slice(0, min(work.images, MAX_IMAGES))
        kept, least = state_of(work.unit), unit_loss(work.unit, work.cache, work.loss, rows)
        for name, scale in work.unit.products.items():
            scale.use(best_factors(work.unit, work.exact, work.cache, name, rows.stop))
            work.correct_biases()
            found = unit_loss(work.unit, work.cache, work.loss, rows)
            if found < least:
                kept, least = state_of(work.unit), found
            else:
                apply_state(work.unit, kept)
