"""Exponents of activations once more, by what they do to the network's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tvmq.reconstruct.refinement import POWERS_OF_TWO, Need, NetworkRefinement

if TYPE_CHECKING:
    from tvmq.reconstruct.network_work import NetworkPass, NetworkWork


@dataclass(frozen=True)
class NetworkExponents(NetworkRefinement):
    """Each exponent one up and one down, moved where the outputs surely come closer."""

    name: ClassVar[str] = "exponents"
    needs: ClassVar[tuple[Need, ...]] = (POWERS_OF_TWO,)

    def refine(self, work: NetworkWork) -> NetworkPass:
        """Try the exponents in the order of the network."""
        from tvmq.reconstruct.network_pass import search_network

        return search_network(work)
