"""Codes whose rounding errors compensate each other, and exponents chosen with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tvmq.reconstruct.refinement import POWERS_OF_TWO, Need, Refinement

if TYPE_CHECKING:
    from tvmq.reconstruct.unit_work import UnitWork


COMPENSATION = "codes that compensate each other"


@dataclass(frozen=True)
class CompensatedCodes(Refinement):
    """Compensating codes (OPTQ, arXiv 2210.17323) in the steps that there are."""

    name: ClassVar[str] = "compensated"
    decides: ClassVar[frozenset[str]] = frozenset({COMPENSATION})

    def propose(self, work: UnitWork) -> None:
        """Choose the codes of all layers, then take away the mean errors."""
        from tvmq.reconstruct.compensation import compensate_weights

        compensate_weights(work.unit, work.cache, work.images, (0,))
        work.correct_biases()


@dataclass(frozen=True)
class SearchedExponents(Refinement):
    """Exponents of weights and activations by the unit's loss, each with its compensating codes.

    RAPQ (arXiv 2204.12322) relaxes exponents by a sigmoid; there are few, so here each is tried.
    """

    name: ClassVar[str] = "compensated"
    needs: ClassVar[tuple[Need, ...]] = (POWERS_OF_TWO,)
    decides: ClassVar[frozenset[str]] = frozenset({COMPENSATION})

    def propose(self, work: UnitWork) -> None:
        """Choose exponents and codes, then take away the mean errors."""
        from tvmq.reconstruct.step_search import search_unit

        search_unit(work.unit, work.exact, work.cache, work.loss, work.images, work.settings)
        work.correct_biases()
