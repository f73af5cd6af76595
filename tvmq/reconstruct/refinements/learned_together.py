"""All units learned together, by what they do to the network's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tvmq.reconstruct.refinement import NetworkRefinement

if TYPE_CHECKING:
    from tvmq.reconstruct.network_work import NetworkPass, NetworkWork
    from tvmq.settings import Settings


@dataclass(frozen=True)
class LearnedTogether(NetworkRefinement):
    """Codes, biases and free steps by gradient descent, the float network being the teacher."""

    name: ClassVar[str] = "learned together"
    least_held_out: ClassVar[int] = 2

    def iterations(self, settings: Settings) -> int:
        """Its own number, or that of a unit."""
        return settings.distill_iterations or settings.iterations

    def refine(self, work: NetworkWork) -> NetworkPass:
        """Kept where held-out images agree."""
        from tvmq.reconstruct.network_training import learn_together

        return learn_together(work, self.name, self.iterations(work.settings))
